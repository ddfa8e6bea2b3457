"""Previews that exist already: no stage 1, but what settings say of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from flashvideo_ray.engines.engine import Description, Vocabulary
from flashvideo_ray.settings import PreviewSettings, Settings


class Existing:
    """See `engine.Engine`. It has no weights."""

    vocabulary: Vocabulary | None = None

    def __init__(self, settings: Settings):
        self.settings = settings

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

    def refusal(self, num_frames: int | None, height: int | None, width: int | None) -> str | None:
        """See Engine. It is no stage 2."""
        return None

    def on_negative_prompts(self) -> str | None:
        """See Engine."""
        return None

    def source(self) -> None:
        """See Engine. It has none."""

    def fingerprint(self) -> str:
        """See Engine."""
        return "existing"

    def text_fingerprint(self) -> str:
        """See Engine."""
        return "existing"

    def verify(self, fingerprint: str) -> None:
        """See Engine."""

    def networks(self) -> None:
        """See Engine. Not known."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """See Engine."""
        return [0 for _ in texts]

    def load_text(self) -> NoReturn:
        """See Engine. It reads none."""
        raise NotImplementedError("nothing reads a text")

    def load_preview(self) -> NoReturn:
        """See Engine. There is nothing to load."""
        raise NotImplementedError("previews that exist are fetched")

    def load_refine(self) -> NoReturn:
        """See Engine. It is no stage 2."""
        raise NotImplementedError("there is no such stage 2")
