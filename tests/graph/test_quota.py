"""Enough is enough: what may begin when so many clips, or so many hours, are all that is wanted."""

from __future__ import annotations

import pytest

from flashvideo_ray.graph.health import Worker
from flashvideo_ray.graph.holdings import Holdings
from flashvideo_ray.graph.quota import Gate, Quota, QuotaError
from flashvideo_ray.settings import Pools


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_a_quota_is_read_from() -> None:
    assert Quota.parse() is None
    assert Quota.parse(accept=10) == Quota(accept=10)
    assert Quota.parse(None, "200 gpu-hours") == Quota(hours=200.0, unit="gpu")
    assert Quota.parse(5, "0.5 cpu-hours") == Quota(5, 0.5, "cpu")
    for budget in ("", "200", "9" * 400 + " gpu-hours", "200 hours", "-1 gpu-hours", "0 gpu-hours", "many gpu-hours"):
        with pytest.raises(QuotaError, match="write it like '200 gpu-hours'"):
            Quota.parse(None, budget)
    with pytest.raises(QuotaError, match="at least 1"):
        Quota.parse(0)


def test_no_more_previews_than_the_clips_that_are_missing() -> None:
    gate = Gate(Quota(accept=3), Pools(), rendered=1, survivors={"old"})
    assert gate.admit("preview", "a", "pa") == "go"
    assert gate.admit("preview", "b", "pb") == "wait"  # one is rendered, one waits, one is on its way
    gate.judged("a", survives=False)
    assert gate.admit("preview", "b", "pb") == "go"
    assert gate.admit("preview", "b", "pb") == "go"  # a call that is repeated


def test_where_few_survive_more_are_begun() -> None:
    gate = Gate(Quota(accept=1), Pools(), rendered=0, survivors=set())
    for index in range(9):
        assert gate.admit("preview", f"x{index}", f"p{index}") == "go"
        gate.judged(f"x{index}", survives=False)
    begun = [gate.admit("preview", f"y{index}", f"q{index}") for index in range(20)]
    assert begun.count("go") == 10  # a tenth is expected to survive


def test_candidates_of_a_prompt_stay_together() -> None:
    gate = Gate(Quota(accept=1), Pools(), rendered=0, survivors=set())
    assert gate.admit("preview", "a0", "a") == "go"
    assert gate.admit("preview", "b0", "b") == "wait"
    assert gate.admit("preview", "a1", "a") == "go"


def test_a_clip_that_fails_is_replaced() -> None:
    gate = Gate(Quota(accept=1), Pools(), rendered=0, survivors={"a", "b"})
    assert gate.admit("refine", "a", "a") == "go"
    assert gate.admit("refine", "b", "b") == "wait"
    gate.refined("a", rendered=False)
    assert gate.admit("refine", "b", "b") == "go"
    gate.refined("b", rendered=True)
    assert gate.over == "1 clips are accepted"
    assert gate.admit("preview", "c", "c") == gate.admit("refine", "d", "d") == "stop"


def test_a_preview_that_fails_is_not_waited_for() -> None:
    gate = Gate(Quota(accept=1), Pools(), rendered=0, survivors=set())
    assert gate.admit("preview", "a", "a") == "go"
    gate.lost("a")
    assert gate.admit("preview", "b", "b") == "go"


def test_a_survivor_that_fails_before_stage_2_is_not_counted_on() -> None:
    """Its text could not be encoded."""
    gate = Gate(Quota(accept=2), Pools(), rendered=0, survivors={"a", "b"})
    assert gate.admit("preview", "c", "c") == "wait"
    gate.lost("a")
    assert gate.admit("preview", "c", "c") == "go"


def test_a_budget_counts_the_cards_that_actors_hold() -> None:
    clock = Clock()
    pools = Pools.model_validate({"preview": {"num_gpus": 2}, "refine": {"num_gpus": 0.5}, "score": {"num_cpus": 4}})
    held = Holdings(clock)
    gate = Gate(Quota(hours=5, unit="gpu"), pools, rendered=0, survivors=set(), holdings=held)
    for stage in ("preview", "refine", "score"):
        held.joined(stage, Worker("one", "node"))
    clock.now = 3600.0
    assert gate.spent == 2.5
    held.joined("preview", Worker("one", "node"))  # its process was replaced: the card is the same
    assert gate.spent == 2.5
    assert gate.admit("preview", "a", "a") == "go"
    clock.now = 7200.0
    assert gate.spent == 5  # and was counted once in the hour since
    assert gate.over == "the budget of 5 gpu-hours is spent"
    assert gate.admit("refine", "a", "a") == "stop"


def test_a_machine_that_was_taken_back_is_not_paid_for_until_its_actor_has_another() -> None:
    clock = Clock()
    held = Holdings(clock)
    gate = Gate(Quota(hours=5), Pools.model_validate({"preview": {"num_gpus": 1}}), 0, set(), holdings=held)
    held.joined("preview", Worker("one", "spot"))
    clock.now = 3600.0
    held.nodes({"steady"})
    assert (gate.spent, held.actors("preview")) == (1, 0)
    clock.now = 7200.0
    assert gate.spent == 1
    held.joined("preview", Worker("one", "steady"))
    clock.now = 10_800.0
    held.joined("preview", Worker("one", "third"))  # moved before anybody saw that the node was gone
    clock.now = 14_400.0
    assert (gate.spent, held.actors("preview")) == (3, 1)


def test_a_budget_is_of_the_job_and_not_of_each_of_its_rounds() -> None:
    clock, quota, pools = Clock(), Quota(hours=5, unit="gpu"), Pools.model_validate({"preview": {"num_gpus": 2}})
    assert quota.held(pools, {"preview": 2 * 3600.0}) == 4
    held = Holdings(clock)
    gate = Gate(quota, pools, rendered=0, survivors=set(), spent_hours=4.0, holdings=held)
    held.joined("preview", Worker("one"))
    assert gate.admit("preview", "a", "a") == "go"
    clock.now = 1800.0
    assert gate.admit("preview", "b", "b") == "stop"
