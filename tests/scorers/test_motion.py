import numpy as np
import pytest

from flashvideo_ray import scorers

SIZES = [(48, 80), (144, 256), (256, 480)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("share", [1 / 80, 1 / 16, 1 / 10])
def test_a_pan_scores_its_speed(pan, height, width, share):
    step = round(width * share)
    scores = scorers.load("motion", {"fps": 8})(pan(height, width, step), "")
    assert scores["motion"] == pytest.approx(100 * 8 * step / np.hypot(height, width), rel=0.05)
    assert scores["motion_area"] > 0.99


def test_speed_is_a_second_not_a_frame(pan):
    clip = pan(96, 160, 2)
    slow, fast = (scorers.load("motion", {"fps": fps})(clip, "")["motion"] for fps in (8, 24))
    assert fast == pytest.approx(3 * slow)


def test_a_still_does_not_move(still):
    assert scorers.load("motion")(still(), "") == {"motion": 0.0, "motion_area": 0.0}
    assert scorers.load("motion")(still(frames=1), "") == {"motion": 0.0, "motion_area": 0.0}


def test_noise_and_flicker_are_not_motion(still):
    clip = still().astype(int)
    noisy = np.clip(clip + np.random.default_rng(0).normal(0, 3, clip.shape), 0, 255).astype(np.uint8)
    lamp = np.clip(clip + np.where(np.arange(len(clip)) % 2, 15, -15)[:, None, None, None], 0, 255).astype(np.uint8)
    assert scorers.load("motion")(noisy, "")["motion"] < 0.5
    assert scorers.load("motion")(lamp, "")["motion"] < 0.5


def test_area_is_the_share_that_moves(still, pan):
    clip = still(96, 160)
    clip[:, :, 80:] = pan(96, 80, 2)
    assert scorers.load("motion")(clip, "")["motion_area"] == pytest.approx(0.5, abs=0.1)


def test_a_rate_must_be_positive():
    with pytest.raises(ValueError, match="fps"):
        scorers.load("motion", {"fps": 0})
