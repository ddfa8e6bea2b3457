"""What every scorer does to frames first: check them, and look at their brightness."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_BT709 = np.array([0.2126, 0.7152, 0.0722], np.float32) / 255


def check(frames: NDArray[np.uint8]) -> None:
    """Raise ValueError unless these are frames: RGB uint8 `[frames, height, width, 3]`, at least one."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"a scorer takes uint8 [frames, height, width, 3], not {frames.dtype} {list(frames.shape)}")


def spread(frames: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """At most `count` frames, evenly spaced from the first to the last. Raises ValueError as `check`."""
    check(frames)
    return frames[np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)]


def luma(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """BT.709 luma in [0, 1], `[frames, height, width]`, of RGB uint8 frames. Raises ValueError as `check`."""
    check(frames)
    return np.stack([frame.astype(np.float32) @ _BT709 for frame in frames])


def resize(picture: NDArray[Any], height: int, width: int) -> NDArray[np.float32]:
    """One `[height, width]` or `[height, width, channels]` picture at another size.

    Area means when it gets smaller, cubic when it gets larger.
    """
    smaller = height * width <= picture.shape[0] * picture.shape[1]
    resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    return resized.astype(np.float32, copy=False)
