import numpy as np
import pytest

from flashvideo_ray import scorers


def sanity(clip: np.ndarray) -> dict[str, float]:
    return scorers.load("sanity")(clip, "")


def test_a_moving_picture_is_sane(pan):
    assert sanity(pan(48, 80, 1)) == {"black": 0, "constant": 0, "frozen": 0}


def test_black_frames_are_counted(pan):
    clip = pan(48, 80, 1, frames=8)
    clip[:2] = np.random.default_rng(0).integers(0, 6, (2, 48, 80, 3))  # as dark as a decoder makes it
    assert sanity(clip) == pytest.approx({"black": 0.25, "constant": 0.25, "frozen": 0})


def test_grey_frames_are_constant_but_not_black():
    rng = np.random.default_rng(0)
    assert sanity(rng.integers(126, 131, (5, 48, 80, 3), dtype=np.uint8)) == {"black": 0, "constant": 1, "frozen": 0}


def test_repeated_frames_are_frozen(pan, still):
    assert sanity(still())["frozen"] == 1
    clip = pan(48, 80, 1, frames=5)
    clip[1] = clip[0]
    assert sanity(clip)["frozen"] == 0.25
    assert sanity(clip[:1])["frozen"] == 0


def test_a_small_thing_that_moves_is_not_frozen(still):
    clip = still()
    for index, frame in enumerate(clip):
        frame[40:44, 10 + index : 14 + index] = 255
    assert sanity(clip)["frozen"] == 0
