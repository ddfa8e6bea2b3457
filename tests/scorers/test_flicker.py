import numpy as np
import pytest

from flashvideo_ray import scorers


def flicker(clip: np.ndarray) -> float:
    return scorers.load("flicker")(np.clip(clip, 0, 255).astype(np.uint8), "")["flicker"]


def offsets(values) -> np.ndarray:
    return np.asarray(values)[:, None, None, None]


@pytest.mark.parametrize(("height", "width"), [(48, 80), (256, 480)])
def test_alternating_brightness_scores_its_step(still, height, width):
    clip = still(height, width) * 0.8 + 20
    assert flicker(clip + offsets([0, 10] * 3 + [0])) == pytest.approx(100 * 10 / 255, abs=0.2)


def test_fades_and_pans_do_not_flicker(still, pan):
    assert flicker(still()) == 0
    assert flicker(still() * 0.5 + offsets(range(0, 70, 10))) < 0.1
    assert flicker(pan(256, 480, 5)) < 0.5


def test_two_frames_cannot_flicker(still):
    assert flicker(still(frames=2) * offsets([0, 1])) == 0
