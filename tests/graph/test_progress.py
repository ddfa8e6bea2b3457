"""What is said of a stage's pace."""

from __future__ import annotations

import pytest

from flashvideo_ray.graph.progress import pace
from flashvideo_ray.graph.tracker import StageState

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
