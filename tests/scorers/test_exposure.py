import numpy as np
import pytest

from flashvideo_ray import scorers


@pytest.mark.parametrize(
    ("colour", "luma"),
    [((0, 0, 0), 0), ((255, 255, 255), 1), ((128, 128, 128), 128 / 255), ((0, 255, 0), 0.7152), ((0, 0, 255), 0.0722)],
)
def test_mean_luma_is_bt709(colour, luma):
    clip = np.broadcast_to(np.array(colour, np.uint8), (3, 48, 80, 3))
    assert scorers.load("exposure")(clip, "")["exposure"] == pytest.approx(luma, abs=1e-3)


def test_clipped_shares():
    clip = np.full((4, 48, 80, 3), 128, np.uint8)
    clip[:, :12] = 2
    clip[:2, 24:] = 255
    scores = scorers.load("exposure")(clip, "")
    assert scores["exposure_dark"] == pytest.approx(0.25)
    assert scores["exposure_bright"] == pytest.approx(0.25)
    assert scorers.load("exposure", {"dark": 0.6})(clip, "")["exposure_dark"] == pytest.approx(0.75)
