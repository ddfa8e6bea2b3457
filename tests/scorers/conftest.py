"""Clips whose scores are known, and tiny models."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_vision
import torch
from PIL import Image

from flashvideo_ray.nano import world


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """As in a Ray actor of one CPU. Threads that wait for each other make tiny models a hundred times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


@pytest.fixture(scope="session")
def scenes() -> world.Scenes:
    """Sixty scenes of the nano world."""
    return world.sample(60, torch.Generator().manual_seed(0), "all")


@pytest.fixture(scope="session")
def draw() -> Callable[[world.Scenes], np.ndarray]:
    """`draw(scenes)`: what they look like, uint8 [scenes, 9, 48, 64, 3]."""

    def make(scenes: world.Scenes) -> np.ndarray:
        return (world.render(scenes).permute(0, 1, 3, 4, 2) * 255).round().to(torch.uint8).numpy()

    return make


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    return tiny_vision.save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory) -> Path:
    return tiny_vision.save_siglip(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory) -> Path:
    """Its labels are normal, nsfw, Watermark."""
    return tiny_vision.save_classifier(tmp_path_factory.mktemp("classifier"), "normal", "nsfw", "Watermark")


@pytest.fixture(scope="session")
def video_lm_folder(tmp_path_factory) -> Path:
    return tiny_vision.save_video_lm(tmp_path_factory.mktemp("video_lm"))


@pytest.fixture(scope="session")
def head_file(tmp_path_factory) -> Path:
    """An aesthetic head for embeddings of 16 numbers, in the form of LAION's first."""
    path = tmp_path_factory.mktemp("head") / "linear.pth"
    torch.save({"weight": torch.randn(1, 16, generator=torch.Generator().manual_seed(0)), "bias": torch.ones(1)}, path)
    return path
