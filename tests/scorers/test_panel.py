"""Several scorers that look at the same video: none of them costs the others."""

from __future__ import annotations

import math

import numpy as np

from flashvideo_ray.scorers.panel import Panel, Scored, names_of
from flashvideo_ray.settings import ScorerSettings

FRAMES = np.zeros((2, 16, 16, 3), np.uint8)


class Length:
    names = ("length",)

    def __init__(self, fps: float):
        self.fps = fps

    def __call__(self, frames: np.ndarray, prompt: str) -> dict[str, float]:
        return {"length": len(frames) / self.fps, "more": 1.0}


class Picky:
    names = ("first", "second")

    def __call__(self, frames: np.ndarray, prompt: str) -> dict[str, float]:
        match prompt:
            case "raise":
                raise RuntimeError("no picture")
            case "leave out":
                return {"first": 1.0}
            case "nan":
                return {"first": math.nan, "second": 2.0}
        return {"first": 1, "second": 2}


SPECS = [ScorerSettings(name=f"{__name__}.{name}") for name in ("Picky", "Length")]


def test_a_panel_gives_the_numbers_of_all_its_scorers_and_no_others() -> None:
    assert names_of(SPECS) == ["first", "second", "length"] == list(Panel(SPECS, 8.0).names)
    assert Panel(SPECS, 8.0)(FRAMES, "") == Scored({"first": 1.0, "second": 2.0, "length": 0.25}, ())


def test_a_scorer_that_raises_or_leaves_a_number_out_gives_none_and_the_others_theirs() -> None:
    panel = Panel(SPECS, 8.0)
    for prompt, cause in (("raise", "RuntimeError: no picture"), ("leave out", "KeyError: 'second'")):
        scored = panel(FRAMES, prompt)
        assert scored.numbers == {"first": None, "second": None, "length": 0.25}
        assert scored.errors == (f"{__name__}.Picky: {cause}",)


def test_a_number_that_is_not_finite_stands_and_is_told_of() -> None:
    scored = Panel(SPECS, 8.0)(FRAMES, "nan")
    assert scored.errors == (f"{__name__}.Picky: first is not finite",)
    assert scored.numbers["second"] == 2.0
    assert math.isnan(scored.numbers["first"] or 0.0)
