"""Previews that exist already: no stage 1, but what settings say of them."""

from __future__ import annotations

from typing import NoReturn

from flashvideo_ray.engines.engine import Description
from flashvideo_ray.engines.weightless import Weightless
from flashvideo_ray.settings import PreviewSettings


class Existing(Weightless):
    """See `engine.Engine`. It has no weights."""

    name = "existing"

    def resolved(self) -> PreviewSettings:
        """See Engine."""
        return self.settings.preview

    def describe(self) -> Description:
        """See Engine. What settings do not ask for is as each file has it."""
        own = self.settings.preview
        return Description(height=own.height, width=own.width, num_frames=own.num_frames, fps=None)

    def problems(self) -> list[str]:
        """See Engine."""
        found = []
        if self.settings.video.fps is None:
            found.append("video.fps: set how many frames a second the previews at preview_url have, and clips will")
        if self.settings.pools.preview.num_gpus:
            found.append(
                "pools.preview.num_gpus: previews that exist are fetched on CPUs, and a card would idle; set it to 0"
            )
        return found

    def load_refine(self) -> NoReturn:
        """See Engine. It is no stage 2."""
        raise TypeError(f"{self.name} is no stage 2")
