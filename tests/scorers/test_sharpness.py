import cv2
import numpy as np
import pytest

from flashvideo_ray import scorers


def sharpness(clip: np.ndarray) -> float:
    return scorers.load("sharpness")(clip, "")["sharpness"]


def natural(height: int, width: int) -> np.ndarray:
    """One frame with the 1/f spectrum of photographs: detail at every scale, down to the pixel."""
    noise = np.fft.fft2(np.random.default_rng(0).normal(size=(height, width)))
    radius = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.fftfreq(width)[None] * width)
    radius[0, 0] = 1
    picture = np.fft.ifft2(noise / radius).real
    picture = (picture - picture.mean()) / picture.std() * 45 + 128
    return np.repeat(picture.clip(0, 255).astype(np.uint8)[None, ..., None], 3, axis=3)


def test_blur_lowers_it():
    frame = natural(256, 480)[0]
    scores = [sharpness(frame[None])] + [sharpness(cv2.GaussianBlur(frame, (0, 0), s)[None]) for s in (1, 2, 4, 8)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.6
    assert scores[-1] < 0.15


def test_size_and_contrast_do_not_change_it():
    large = sharpness(natural(256, 480))
    assert sharpness(natural(48, 80)) == pytest.approx(large, abs=0.06)
    assert sharpness((natural(256, 480) // 2) + 60) == pytest.approx(large, abs=0.03)


def test_it_is_the_published_metric():
    blur_effect = pytest.importorskip("skimage.measure").blur_effect
    for sigma in (0.1, 1, 3):
        frame = cv2.GaussianBlur(natural(144, 256)[0], (0, 0), sigma)
        assert sharpness(frame[None]) == pytest.approx(1 - blur_effect(frame[..., 0]), abs=0.02)


def test_one_spoilt_frame_does_not_decide():
    clip = np.repeat(natural(96, 160), 5, axis=0)
    before = sharpness(clip)
    clip[2] = 128
    assert sharpness(clip) == pytest.approx(before)
    assert sharpness(np.full_like(clip, 128)) == 0
