"""How much moves: dense optical flow between neighbouring frames."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from flashvideo_ray.scorers._frames import luma, resize

_LONG_SIDE = 256  # pixels of the longer side at which flow is measured, so that all sizes score alike


class Motion:
    """Mean speed of the picture, and how much of it moves. Camera and subject count alike.

    - `motion`: mean flow magnitude in percent of the frame's diagonal a second; 0 for a still, about 1 to 10 for calm
      scenes, above 50 for fast ones. A pan over a whole frame width in 5 s is about 17.
    - `motion_area`: share of the pixels that move faster than `threshold`, 0 to 1, mean over time.

    Dense inverse search (Kroeger et al., 2016), which follows up to about a tenth of the frame from one frame to the
    next; faster motion is underestimated. Surfaces without texture show no motion.

    Args:
        fps: frames a second of the preview.
        threshold: percent of the diagonal a second above which a pixel counts as moving.
    """

    names: ClassVar[tuple[str, ...]] = ("motion", "motion_area")

    def __init__(self, fps: float = 8.0, threshold: float = 2.0) -> None:
        if not fps > 0:
            raise ValueError(f"motion: fps must be positive, not {fps}")
        self.fps = fps
        self.threshold = threshold
        self.flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self.flow.setFinestScale(0)  # to single pixels: slow motion is a fraction of one

    def __call__(self, frames: NDArray[np.uint8], prompt: str) -> dict[str, float]:
        """Measure RGB uint8 `[frames, height, width, 3]`; one frame alone does not move."""
        pictures = luma(frames)
        scale = _LONG_SIDE / max(pictures.shape[1:])
        height, width = (max(8, round(side * scale)) for side in pictures.shape[1:])
        grey = [(resize(picture, height, width).clip(0, 1) * 255).round().astype(np.uint8) for picture in pictures]
        to_speed = 100 * self.fps / float(np.hypot(height, width))
        speeds = [
            to_speed * np.linalg.norm(self.flow.calc(before, after, None), axis=2)  # type: ignore[call-overload]
            for before, after in pairwise(grey)
        ]
        if not speeds:
            return {"motion": 0.0, "motion_area": 0.0}
        return {
            "motion": float(np.mean([speed.mean() for speed in speeds])),
            "motion_area": float(np.mean([(speed > self.threshold).mean() for speed in speeds])),
        }
