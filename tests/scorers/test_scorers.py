"""What all scorers have in common, and how they are named in the settings."""

import functools
import subprocess
import sys
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


@pytest.fixture(scope="session")
def scorer(clip_folder, siglip_folder, classifier_folder, video_lm_folder, head_file):
    """`scorer(name)`: each of them, built once, on a tiny model if it needs one."""
    options = {
        "siglip": {"model": str(siglip_folder)},
        "aesthetic": {"model": str(clip_folder), "head": str(head_file)},
        "video-lm": {"model": str(video_lm_folder)},
        "nsfw": {"model": str(classifier_folder)},
        "watermark": {"model": str(classifier_folder)},
    }
    return functools.cache(lambda name: scorers.load(name, options.get(name)))


@pytest.mark.parametrize("name", scorers.SHORT_NAMES)
@pytest.mark.parametrize("shape", [(1, 16, 16, 3), (2, 48, 80, 3), (5, 80, 48, 3)])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_any_clip_gets_a_finite_float_for_every_name(scorer, name, shape, value):
    scores = scorer(name)(np.full(shape, value, np.uint8), "a prompt")
    assert tuple(scores) == scorer(name).names == scorers.resolve(name).names
    assert all(type(score) is float and np.isfinite(score) for score in scores.values())


@pytest.mark.parametrize("name", scorers.SHORT_NAMES)
@pytest.mark.parametrize("frames", [np.zeros((2, 16, 16, 3), np.float32), np.zeros((0, 16, 16, 3), np.uint8)])
def test_what_is_no_clip_is_refused(scorer, name, frames):
    with pytest.raises(ValueError, match="a scorer takes uint8"):
        scorer(name)(frames, "")


def test_names_are_known_without_the_libraries_that_measure_them():
    """A driver that only plans a run waits for no model library."""
    code = (
        "import sys; from flashvideo_ray import scorers\n"
        "[scorers.resolve(name).names for name in scorers.SHORT_NAMES]\n"
        "print({'torch', 'transformers', 'onnxruntime'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


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


def test_options_are_checked_without_building():
    assert scorers.check("nsfw", {"model": "/no/such/model", "frames": 3}) == ("nsfw",)
    with pytest.raises(ValueError, match=r"'nsfw' does not take these options.*threshold"):
        scorers.check("nsfw", {"threshold": 0.5})
    with pytest.raises(ValueError, match=r"'aesthetic' does not take these options.*head"):
        scorers.check("aesthetic")


class Seconds(Letters):
    names: ClassVar[tuple[str, ...]] = ("seconds",)


class TwoWords(Letters):
    names: ClassVar[tuple[str, ...]] = ("letter count",)


def test_a_number_has_a_name_that_rules_can_use_and_the_ledger_does_not():
    assert scorers.check(f"{__name__}.Letters") == ("letters",)
    for scorer in ("Seconds", "TwoWords"):
        with pytest.raises(ValueError, match="calls a number"):
            scorers.check(f"{__name__}.{scorer}")


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match=r"'motion' does not take these options.*speed"):
        scorers.load("motion", {"speed": 3})
