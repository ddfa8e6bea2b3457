"""What all scorers have in common, and how they are named in the settings."""

from typing import ClassVar

import numpy as np
import pytest

from flashvideo_ray import scorers


class Letters:
    names: ClassVar[tuple[str, ...]] = ("letters",)

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def __call__(self, frames: np.ndarray, prompt: str) -> dict[str, float]:
        return {"letters": self.factor * len(prompt)}


@pytest.mark.parametrize("name", scorers.SHORT_NAMES)
@pytest.mark.parametrize("shape", [(1, 16, 16, 3), (2, 48, 80, 3), (5, 80, 48, 3)])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_any_clip_gets_a_finite_float_for_every_name(name, shape, value):
    scorer = scorers.load(name)
    scores = scorer(np.full(shape, value, np.uint8), "a prompt")
    assert tuple(scores) == scorer.names == scorers.resolve(name).names
    assert all(type(score) is float and np.isfinite(score) for score in scores.values())


@pytest.mark.parametrize("name", scorers.SHORT_NAMES)
@pytest.mark.parametrize("frames", [np.zeros((2, 16, 16, 3), np.float32), np.zeros((0, 16, 16, 3), np.uint8)])
def test_what_is_no_clip_is_refused(name, frames):
    with pytest.raises(ValueError, match="a scorer takes uint8"):
        scorers.load(name)(frames, "")


def test_names_of_all_scorers_differ():
    names = [name for short in scorers.SHORT_NAMES for name in scorers.resolve(short).names]
    assert len(names) == len(set(names))


def test_a_scorer_of_ones_own_by_its_path():
    scorer = scorers.load(f"{__name__}.Letters", {"factor": 2})
    assert scorer(np.zeros((1, 16, 16, 3), np.uint8), "cat") == {"letters": 6}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("motoin", "did you mean motion"),
        ("beauty", "there are motion, flicker"),
        ("no_such_package.Taste", "cannot be imported: No module named"),
        ("flashvideo_ray.scorers.motion.Taste", "cannot be imported"),
        ("flashvideo_ray.scorers.SHORT_NAMES", "is no scorer"),
        ("collections.OrderedDict", "is no scorer"),
    ],
)
def test_names_that_lead_nowhere(name, message):
    with pytest.raises(ValueError, match=message):
        scorers.load(name)


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match=r"'motion' does not take these options.*speed"):
        scorers.load("motion", {"speed": 3})
