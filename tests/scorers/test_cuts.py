from itertools import pairwise

import numpy as np

from flashvideo_ray import scorers


def cuts(clip: np.ndarray) -> float:
    return scorers.load("cuts")(clip, "")["cuts"]


def test_one_shot_has_no_cut(still, pan):
    assert cuts(still()) == 0
    assert cuts(still(frames=1)) == 0
    for share in (1 / 80, 1 / 16, 1 / 5):
        assert cuts(pan(96, 160, round(160 * share))) == 0


def test_each_change_of_scene_is_a_cut(pan, still):
    one, other = pan(96, 160, 2), still()
    assert cuts(np.concatenate([one, other])) == 1
    assert cuts(np.concatenate([one, other, one])) == 2
    assert cuts(np.concatenate([one[:1], other])) == 1
    assert cuts(np.stack([one[0], other[0]])) == 1


def test_flashes_fades_and_noise_are_no_cuts(still):
    clip = still(frames=9)
    flash = clip.copy()
    flash[4] = 255
    assert cuts(flash) == 0
    fade = np.linspace(0, 1, 9)[:, None, None, None]
    assert cuts((clip * fade).astype(np.uint8)) == 0
    noisy = np.clip(clip + np.random.default_rng(0).normal(0, 20, clip.shape), 0, 255).astype(np.uint8)
    assert cuts(noisy) == 0


def test_the_nano_world_is_of_single_shots(scenes, draw):
    clips = draw(scenes)
    assert [cuts(clip) for clip in clips] == [0] * len(clips)
    spliced = [cuts(np.concatenate([one[:5], other[:4]])) for one, other in pairwise(clips)]
    assert max(spliced) == 1
    assert np.mean(spliced) > 0.85  # the rest changes a small object on the same background
