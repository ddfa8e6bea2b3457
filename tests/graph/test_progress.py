"""Given what the stages have done, then how much is left for each, and how fast it goes."""

from __future__ import annotations

import pytest

from flashvideo_ray.graph.progress import expected, pace
from flashvideo_ray.graph.tracker import StageState
from flashvideo_ray.settings import Stage

TOTALS: dict[Stage, int] = {"text": 300, "preview": 300, "score": 300, "rate": 300, "refine": 300}


def test_what_failed_or_was_rejected_before_a_stage_is_not_left_for_it() -> None:
    """Two failed as text and three as previews; `rate` saw only what the scores let through; one refine failed."""
    states: dict[Stage, StageState] = {
        "text": StageState(done=300, failed=2),
        "preview": StageState(done=298, failed=3, judged=295, kept=100),
        "score": StageState(done=295),
        "rate": StageState(done=120),
        "refine": StageState(done=40, failed=1, open=2),
    }
    counts = {"failed": 6, "rejected": 195, "rendered": 39}
    assert expected(TOTALS, states, counts) == {"text": 300, "preview": 298, "score": 295, "rate": 120, "refine": 100}


def test_while_a_stage_still_gives_the_next_one_has_as_many_left() -> None:
    states: dict[Stage, StageState] = {"text": StageState(done=200, failed=1), "preview": StageState(done=10)}
    assert expected(TOTALS, states, {"failed": 1}) == {
        "text": 300, "preview": 299, "score": 299, "rate": 299, "refine": 299,
    }  # fmt: skip
    assert expected(TOTALS, {}, {}) == TOTALS


@pytest.mark.parametrize(("most", "expects"), [(300, 76), (60, 60)])
def test_what_is_not_judged_yet_is_expected_to_fare_as_what_was(most: int, expects: int) -> None:
    """One in four goes on, of 120 that were judged; with `keep` there is a most."""
    states: dict[Stage, StageState] = {
        "text": StageState(done=300),
        "preview": StageState(done=140, judged=120, kept=30),
        "score": StageState(done=130),
        "refine": StageState(done=10, open=2),
    }
    totals: dict[Stage, int] = {**TOTALS, "refine": most}
    assert expected(totals, states, {"rejected": 90, "rendered": 10})["refine"] == expects


def test_that_the_first_previews_are_all_rejected_does_not_end_stage_2() -> None:
    states: dict[Stage, StageState] = {"preview": StageState(done=6, judged=5), "score": StageState(done=5)}
    assert expected(TOTALS, states, {"rejected": 5})["refine"] == 49  # a sixth of those to come


def test_survivors_are_counted_by_what_was_judged_not_by_what_has_come_out() -> None:
    """The rejected stand behind them in the graph; one that is audited is refined, and rejected all the same."""
    states: dict[Stage, StageState] = {
        "preview": StageState(done=300, judged=300, kept=80),
        "refine": StageState(done=50),
    }
    for out in ({"rejected": 0}, {"rejected": 130}, {"rejected": 220 + 10}):
        assert expected(TOTALS, states, out)["refine"] == 80


HALF = StageState(actors=1, done=60, first_begin=0.0, last_end=600.0)  # six a minute


@pytest.mark.parametrize(
    ("now", "total", "said"),
    [
        (600.0, 120, ("6.0/min", "10 min 00 s left")),
        (640.0, 120, ("6.0/min", "10 min 00 s left")),
        (840.0, 120, ("none has ended for 4 min 00 s", "-")),
        (840.0, 60, ("6.0/min", "0 s left")),
    ],
)
def test_a_rate_that_holds_no_longer_gives_way_to_the_silence(now: float, total: int, said: tuple[str, str]) -> None:
    assert pace(HALF, total, now) == said


def test_a_stage_that_has_ended_nothing_has_no_pace() -> None:
    assert pace(StageState(), 3, 10.0) == ("-", "-")
