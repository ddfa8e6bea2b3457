import cv2
import numpy as np
import pytest

from flashvideo_ray import scorers
from flashvideo_ray.media import video
from flashvideo_ray.nano import world
from flashvideo_ray.scorers.phash import NEAR, distance


def hashes(clips) -> np.ndarray:
    scorer = scorers.load("phash")
    return np.array([scorer(clip, "")["hash"] for clip in clips])


def encoded(clip: np.ndarray) -> np.ndarray:
    return video.decode_mp4(video.encode_mp4(clip, world.FPS, crf=30))[0]


def noisy(clip: np.ndarray) -> np.ndarray:
    return np.clip(clip + np.random.default_rng(0).normal(0, 3, clip.shape), 0, 255).round().astype(np.uint8)


def halved(clip: np.ndarray) -> np.ndarray:
    return np.stack([cv2.resize(frame, (32, 24), interpolation=cv2.INTER_AREA) for frame in clip])


@pytest.mark.parametrize("copy", [encoded, noisy, halved])
def test_a_copy_of_a_clip_is_near(scenes, draw, copy):
    clips = draw(scenes[:30])
    apart = distance(hashes(clips), hashes(copy(clip) for clip in clips))
    assert np.median(apart) <= 1
    assert apart.max() <= NEAR


def test_another_clip_of_the_same_prompt_is_far(scenes, draw):
    """The same object moves in the same way, from another place."""
    moved = world.Scenes(scenes.index, scenes.start.flip(0))
    elsewhere = ((scenes.start - moved.start).abs().sum(1) >= 8).numpy()
    apart = distance(hashes(draw(scenes)), hashes(draw(moved)))[elsewhere]
    assert np.mean(apart > NEAR) >= 0.97
    assert np.median(apart) > 3 * NEAR


def test_the_order_of_frames_counts(scenes, draw):
    clips = draw(scenes[scenes.index["motion"] == 0])
    assert np.median(distance(hashes(clips), hashes(clips[:, ::-1]))) > 2 * NEAR


def test_a_hash_survives_the_ledger():
    """It is a number with a column of its own: a float64, which must hold all 48 bits."""
    clip = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
    found = scorers.load("phash")(clip, "")["hash"]
    assert found == int(found)
    assert 2**32 < found < 2**48


def test_distance_counts_bits():
    assert distance(0.0, float(2**48 - 1)) == 48
    assert distance(0b1100, 0b1010) == 2
    assert distance([0, 1, 3], 1).tolist() == [1, 0, 1]
    assert distance(np.array([[0.0], [3.0]]), [0.0, 1.0]).tolist() == [[0, 1], [2, 1]]
    for wrong in (np.nan, -1, 0.5, 2**48):
        with pytest.raises(ValueError, match="hashes are integers"):
            distance(wrong, 0)
