"""Clips that are no clips: black, without content, or standing still."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from flashvideo_ray.scorers._frames import luma


class Sanity:
    """Shares of broken frames, each 0 (none) to 1 (all).

    - `black`: share of frames in which 99 % of the pixels have luma at or below `dark`.
    - `constant`: share of frames without content: the luma's standard deviation is at or below `flat`. Black frames are
      constant too.
    - `frozen`: share of the steps from one frame to the next in which at most 0.01 % of the pixels change by more than
      one of 255 levels; 0 for one frame alone.

    Values that are not numbers never reach a scorer: frames are checked when they are quantised to uint8.

    Args:
        dark: luma, 0 to 1, up to which a pixel is black.
        flat: standard deviation of luma, 0 to 1, up to which a frame is constant.
    """

    names: ClassVar[tuple[str, ...]] = ("black", "constant", "frozen")

    def __init__(self, dark: float = 0.05, flat: float = 0.01) -> None:
        self.dark = dark
        self.flat = flat

    def __call__(self, frames: NDArray[np.uint8], prompt: str) -> dict[str, float]:
        """Measure RGB uint8 `[frames, height, width, 3]`."""
        values = luma(frames)
        changed = [_changed(before, after) for before, after in pairwise(frames)]
        return {
            "black": float(np.mean([(picture <= self.dark).mean() >= 0.99 for picture in values])),
            "constant": float(np.mean([picture.std() <= self.flat for picture in values])),
            "frozen": float(np.mean([share <= 0.0001 for share in changed])) if changed else 0.0,
        }


def _changed(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> float:
    """Share of the pixels in which any channel changes by more than one level."""
    difference = np.maximum(before, after) - np.minimum(before, after)
    return float((difference > 1).any(axis=-1).mean())
