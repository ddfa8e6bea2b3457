"""No stage 2: the preview, encoded as asked, is the clip."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import numpy as np

from flashvideo_ray.engines.engine import Description, StepTold, Text
from flashvideo_ray.engines.weightless import Weightless
from flashvideo_ray.settings import RefineSettings

if TYPE_CHECKING:
    import torch


class NoRefiner(Weightless):
    """See `engine.Engine`. It has neither weights nor settings."""

    name = "none"

    def resolved(self) -> RefineSettings:
        """See Engine."""
        return self.settings.refine

    def describe(self) -> Description:
        """See Engine."""
        return Description(height=None, width=None, num_frames=None, fps=None)

    def problems(self) -> list[str]:
        """See Engine."""
        plain, own = RefineSettings(model="none"), self.settings.refine
        asked = [name for name in RefineSettings.model_fields if getattr(own, name) != getattr(plain, name)]
        found = [f"refine.{name}: there is no stage 2 (refine.model: none) to heed it; leave it out" for name in asked]
        if self.settings.pools.refine.num_gpus and self.settings.video.codec == "libx264":
            found.append("pools.refine.num_gpus: without a stage 2 (refine.model: none) a card would idle; set it to 0")
        return found

    def load_refine(self) -> Unrefined:
        """See Engine."""
        return Unrefined()


class Unrefined:
    """See `engine.RefineModel`."""

    device_name = f"cpu ({platform.machine()})"

    def refine(
        self, preview: torch.Tensor | np.ndarray, text: Text, seed: int, told: StepTold
    ) -> tuple[np.ndarray, str | None]:
        """See RefineModel. It is given frames."""
        assert isinstance(preview, np.ndarray)
        return preview, None
