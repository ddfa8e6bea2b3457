"""Watermarks and stock-photo logos that a model has learned to draw, by an image classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from flashvideo_ray.scorers._vision import Classifier


class Watermark:
    """The classifier's probability in the worst of the frames that it looks at.

    - `watermark`: 0 to 1; the classifier itself decides at 0.5.

    The default, prithivMLmods/Watermark-Detection-SigLIP2, tells `No Watermark` from `Watermark`; its authors report an
    accuracy of 94 %. It was trained on photographs of qwertyforce/scenery_watermarks, which are CC-BY-NC-4.0: read its
    licence before you sell what it has sorted. amrul-hzz/watermark_detector (a ViT, Apache-2.0) is another.

    Args:
        model: folder or hub id of an image classifier.
        labels: whose probabilities count.
        frames: how many frames are looked at, evenly spaced.
        batch: frames that the model sees at once.
        dtype: float32, bfloat16 or float16.
    """

    names: ClassVar[tuple[str, ...]] = ("watermark",)

    def __init__(
        self,
        model: str = "prithivMLmods/Watermark-Detection-SigLIP2",
        labels: Sequence[str] = ("Watermark",),
        frames: int = 8,
        batch: int = 16,
        dtype: str = "float32",
    ) -> None:
        self.classifier = Classifier(model, labels, frames, batch, dtype)

    def __call__(self, frames: NDArray[np.uint8], prompt: str) -> dict[str, float]:
        """Measure RGB uint8 `[frames, height, width, 3]`."""
        return {"watermark": self.classifier(frames)}
