"""How sharp the picture is, whatever its contrast."""

from __future__ import annotations

from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from flashvideo_ray.scorers._frames import luma

_WINDOW = 11  # pixels of the box filter that stands for "blurred"


class Sharpness:
    """One minus the perceptual blur metric of Crete et al., 2007; the median over the frames.

    - `sharpness`: 0 (blurred) to 1 (every pixel differs from the next). The metric blurs the frame again and asks how
      much variation between neighbours that destroys: little, if there was none. It is a ratio, so contrast and
      brightness do not matter, and it is measured in the frame's own pixels: a small preview and a large one that are
      both sharp to the pixel score alike. Soft pictures score about 0.2, crisp ones above 0.5; noise counts as sharp.
      A frame without any variation scores 0.
    """

    names: ClassVar[tuple[str, ...]] = ("sharpness",)

    def __call__(self, frames: NDArray[np.uint8], prompt: str) -> dict[str, float]:
        """Measure RGB uint8 `[frames, height, width, 3]`."""
        return {"sharpness": float(np.median([_sharpness(picture) for picture in luma(frames)]))}


def _sharpness(picture: NDArray[np.float32]) -> float:
    """The worse of the two directions, `[height, width]` luma."""
    return min(_lost_variation(picture, (1, 0)), _lost_variation(picture, (0, 1)))


def _lost_variation(picture: NDArray[np.float32], direction: tuple[int, int]) -> float:
    """Share of the variation along (x, y) that a box blur along it destroys."""
    x, y = direction
    blurred = cv2.blur(picture, (_WINDOW if x else 1, _WINDOW if y else 1), borderType=cv2.BORDER_REFLECT)
    before = np.abs(cv2.Sobel(picture, cv2.CV_32F, x, y))[1:-1, 1:-1]
    after = np.abs(cv2.Sobel(blurred, cv2.CV_32F, x, y))[1:-1, 1:-1]
    total = float(before.sum())
    return float(np.maximum(0, before - after).sum()) / total if total > 0 else 0.0
