"""Given what the stages have done, then how much is left for each."""

from __future__ import annotations

from flashvideo_ray.graph.progress import expected
from flashvideo_ray.graph.tracker import StageState
from flashvideo_ray.settings import Stage

TOTALS: dict[Stage, int] = {"text": 300, "preview": 300, "score": 300, "rate": 300, "refine": 300}


def test_what_failed_or_was_rejected_before_a_stage_is_not_left_for_it() -> None:
    """Two failed as text and three as previews; `rate` saw only what the scores let through; one refine failed."""
    states: dict[Stage, StageState] = {
        "text": StageState(done=300, failed=2),
        "preview": StageState(done=298, failed=3),
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
