"""How bright the picture is, and how much of it has no detail left."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from flashvideo_ray.scorers._frames import luma


class Exposure:
    """Mean luma and clipped shares, over all pixels of all frames. Each 0 to 1.

    - `exposure`: mean BT.709 luma; a well exposed picture lies around 0.3 to 0.6.
    - `exposure_dark`: share of pixels with luma at or below `dark`.
    - `exposure_bright`: share of pixels with luma at or above `bright`.

    Args:
        dark: luma, 0 to 1, that counts as clipped shadow.
        bright: luma, 0 to 1, that counts as clipped highlight.
    """

    names: ClassVar[tuple[str, ...]] = ("exposure", "exposure_dark", "exposure_bright")

    def __init__(self, dark: float = 0.02, bright: float = 0.98) -> None:
        self.dark = dark
        self.bright = bright

    def __call__(self, frames: NDArray[np.uint8], prompt: str) -> dict[str, float]:
        """Measure RGB uint8 `[frames, height, width, 3]`."""
        values = luma(frames)
        return {
            "exposure": float(values.mean()),
            "exposure_dark": float((values <= self.dark).mean()),
            "exposure_bright": float((values >= self.bright).mean()),
        }
