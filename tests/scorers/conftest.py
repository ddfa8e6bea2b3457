"""Synthetic clips whose scores are known."""

import numpy as np
import pytest
from PIL import Image


def textured(height: int, width: int, cell: float, seed: int = 0) -> np.ndarray:
    """A smooth random picture, uint8 [height, width, 3], with features of about `cell` pixels."""
    size = (round(height / cell) + 2, round(width / cell) + 2, 3)
    noise = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def pan():
    """`pan(height, width, step)`: a textured picture that moves `step` pixels to the left each frame."""

    def make(height: int, width: int, step: int, frames: int = 7) -> np.ndarray:
        picture = textured(height, width + step * frames, cell=width / 12)
        return np.stack([picture[:, step * index : step * index + width] for index in range(frames)])

    return make


@pytest.fixture
def still():
    """`still(height, width, frames)`: the same textured picture again and again."""

    def make(height: int = 96, width: int = 160, frames: int = 7) -> np.ndarray:
        return np.repeat(textured(height, width, cell=width / 20)[None], frames, axis=0)

    return make
