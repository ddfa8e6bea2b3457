"""Brightness that jumps back and forth from frame to frame."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from flashvideo_ray.scorers._frames import luma, resize

_CELLS = 8  # rows and columns: large areas, so that moving detail averages out


class Flicker:
    """Size of the brightness alternation, mean over the picture and over time.

    - `flicker`: percent of the full luma range, 0 to 100. It is half the second difference in time of the luma of 8 x 8
      areas: a picture that alternates between two levels scores their distance; a fade or a steady drift scores 0.
      Clean clips stay below 1; 2 and more is seen at once.

    Cuts and objects that rush through a whole area within one frame add to it.
    """

    names: ClassVar[tuple[str, ...]] = ("flicker",)

    def __call__(self, frames: NDArray[np.uint8], prompt: str) -> dict[str, float]:
        """Measure RGB uint8 `[frames, height, width, 3]`; fewer than three frames do not flicker."""
        areas = np.stack([resize(picture, _CELLS, _CELLS) for picture in luma(frames)])
        if len(areas) < 3:
            return {"flicker": 0.0}
        return {"flicker": float(50 * np.abs(np.diff(areas, n=2, axis=0)).mean())}
