"""Pictures that are not safe for work, by an image classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from flashvideo_ray.scorers._vision import Classifier


class NSFW:
    """The classifier's probability in the worst of the frames that it looks at.

    - `nsfw`: 0 to 1; the classifier itself decides at 0.5. Rather too low a threshold than too high: a clip is only as
      safe as its worst frame.

    The default, Falconsai/nsfw_image_detection (a ViT, Apache-2.0), tells `normal` from `nsfw`. The `opennsfw` scorer
    does the same without a download.

    Args:
        model: folder or hub id of an image classifier.
        labels: whose probabilities count.
        frames: how many frames are looked at, evenly spaced.
        batch: frames that the model sees at once.
        dtype: float32, bfloat16 or float16.
    """

    names: ClassVar[tuple[str, ...]] = ("nsfw",)

    def __init__(
        self,
        model: str = "Falconsai/nsfw_image_detection",
        labels: Sequence[str] = ("nsfw",),
        frames: int = 8,
        batch: int = 16,
        dtype: str = "float32",
    ) -> None:
        self.classifier = Classifier(model, labels, frames, batch, dtype)

    def __call__(self, frames: NDArray[np.uint8], prompt: str) -> dict[str, float]:
        """Measure RGB uint8 `[frames, height, width, 3]`."""
        return {"nsfw": self.classifier(frames)}
