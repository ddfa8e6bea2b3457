"""No stage 2: the preview, encoded as asked, is the clip."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import torch

from flashvideo_ray.engines.engine import Description, StepTold, Text, Vocabulary
from flashvideo_ray.settings import RefineSettings, Settings


class NoRefiner:
    """See `engine.Engine`. It has neither weights nor settings."""

    vocabulary: Vocabulary | None = None

    def __init__(self, settings: Settings):
        self.settings = settings

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

    def refusal(self, num_frames: int | None, height: int | None, width: int | None) -> str | None:
        """See Engine."""
        return None

    def on_negative_prompts(self) -> str | None:
        """See Engine."""
        return None

    def source(self) -> None:
        """See Engine. It has none."""

    def fingerprint(self) -> str:
        """See Engine."""
        return "none"

    def text_fingerprint(self) -> str:
        """See Engine."""
        return "none"

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
        """See Engine. It is no stage 1."""
        raise NotImplementedError("there is no such stage 1")

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
