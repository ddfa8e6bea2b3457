"""Which nodes are left out, and when a stage is stopped."""

from __future__ import annotations

import pytest

from flashvideo_ray.graph.health import Fault, Health, Worker
from flashvideo_ray.settings import Stage

A1, A2, B1 = Worker("a1", "a", "host-a"), Worker("a2", "a", "host-a"), Worker("b1", "b", "host-b")
OOM = ("OutOfMemoryError", "no room")
REFINE: Stage = "refine"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(3, {"refine": 2}, clock)


def load(health: Health, *workers: Worker) -> None:
    for worker in workers:
        assert health.starting(REFINE, worker) is not None
        health.joined(REFINE, worker)


def call(health: Health, clip_id: str, worker: Worker, error: tuple[str, str] | None) -> None:
    assert health.began(REFINE, clip_id, worker) == "go"
    health.ended(REFINE, clip_id, worker, error)


def test_an_actor_that_dies_while_loading_is_started_again_with_growing_pauses(health: Health) -> None:
    pauses = [health.starting(REFINE, A1) for _ in range(3)]
    assert pauses == [0.0, 1.0, 2.0]
    health.joined(REFINE, A1)
    assert health.starting(REFINE, A1) == 0.0
    assert health.faults == []


def test_a_node_where_starts_come_to_nothing_is_left_out_and_the_others_go_on(health: Health, clock: Clock) -> None:
    load(health, B1)
    assert [health.starting(REFINE, A1) is None for _ in range(4)] == [False, False, False, True]
    [fault] = health.faults
    assert (fault.stage, fault.host) == ("refine", "host-a")
    assert health.began(REFINE, "c1", B1) == "go"
    clock.now = 100.0
    assert not health.dismissed(REFINE)
    health.ended(REFINE, "c1", B1, None)
    assert not health.dismissed(REFINE)
    clock.now = 200.0
    assert health.dismissed(REFINE)  # all that is left is what the dead one held


def test_a_load_that_raises_leaves_its_node_out_unless_another_actor_works_there(health: Health) -> None:
    health.starting(REFINE, A1)
    health.not_loaded(REFINE, A1, "OSError: no weights")
    assert [str(fault) for fault in health.faults] == ["refine on host-a: OSError: no weights"]
    assert health.starting(REFINE, A2) is None

    other = Health(3, {"refine": 2})
    load(other, A2)
    other.starting(REFINE, A1)
    other.not_loaded(REFINE, A1, "CUDA error")
    assert other.faults == []
    assert other.began(REFINE, "c1", A2) == "go"
    assert other.starting(REFINE, A1) is None


def test_who_waits_is_dismissed_at_once_where_nobody_of_the_pool_is_left(health: Health) -> None:
    for worker in (A1, B1):
        health.starting(REFINE, worker)
    health.not_loaded(REFINE, A1, "no weights")
    assert not health.dismissed(REFINE)
    health.not_loaded(REFINE, B1, "no weights")
    assert health.dismissed(REFINE)


def test_a_call_of_a_process_that_died_does_not_hold_up_the_others(health: Health, clock: Clock) -> None:
    load(health, A1, B1)
    health.began(REFINE, "c1", A1)
    health.starting(REFINE, A1)  # anew
    health.not_loaded(REFINE, A1, "no weights")
    clock.now = 10.0
    assert health.dismissed(REFINE)


def test_a_stage_is_stopped_when_all_fail_alike(health: Health) -> None:
    load(health, A1)
    for n in range(3):
        call(health, f"c{n}", A1, OOM)
    assert health.stopped is not None
    assert str(health.stopped) == "refine: OutOfMemoryError, 3 times in a row: no room"
    assert health.began(REFINE, "c3", A1) == "stop"
    assert health.began("preview", "c4", B1) == "stop"


def test_who_still_loads_elsewhere_may_work_so_the_first_to_fail_is_left_out_alone(health: Health) -> None:
    load(health, A1)
    health.starting(REFINE, B1)
    for n in range(3):
        call(health, f"c{n}", A1, OOM)
    assert health.stopped is None
    assert health.began(REFINE, "c3", A1) == "leave"
    # Who comes out of it no better stops the stage.
    health.joined(REFINE, B1)
    for n in range(3):
        call(health, f"c{n}", B1, OOM)
    assert health.stopped is not None


def test_what_an_actor_held_that_leaves_holds_up_nobody_though_another_has_its_place(clock: Clock) -> None:
    health = Health(3, {"refine": 3}, clock)
    load(health, A1)
    health.starting(REFINE, B1)
    assert health.began(REFINE, "beside", A1) == "go"
    for n in range(3):
        call(health, f"c{n}", A1, OOM)
    assert health.began(REFINE, "c3", A1) == "leave"  # and "beside" with it
    assert health.starting(REFINE, A2) is None  # A1 is started again nowhere
    health.not_loaded(REFINE, B1, "no weights")
    clock.now = 10.0
    assert health.dismissed(REFINE)


def test_a_success_or_another_error_between_begins_the_count_anew(health: Health) -> None:
    load(health, A1)
    for n, error in enumerate([OOM, OOM, None, OOM, OOM, ("ValueError", "x"), OOM, OOM]):
        call(health, f"c{n}", A1, error)
    assert health.stopped is None


def test_failures_on_several_nodes_count_together(health: Health) -> None:
    load(health, A1, B1)
    health = Health(4, {"refine": 2})
    load(health, A1, B1)
    for n, worker in enumerate([A1, A1, B1, B1]):
        call(health, f"c{n}", worker, OOM)
    assert health.stopped is not None


def test_one_bad_node_is_left_out_instead_of_failing_every_row_it_gets(health: Health) -> None:
    load(health, A1, B1)
    for n in range(3):
        call(health, f"c{n}", A1, OOM)  # faster than the others can succeed
    assert health.stopped is None
    assert health.began(REFINE, "c3", A1) == "leave"
    assert health.began(REFINE, "c4", B1) == "go"
    assert health.starting(REFINE, A1) is None
    assert [fault.host for fault in health.faults] == ["host-a"]


def test_when_the_others_fail_like_the_node_that_was_left_out_the_stage_is_stopped(health: Health) -> None:
    load(health, A1, B1)
    for n in range(3):
        call(health, f"c{n}", A1, OOM)
    health.starting(REFINE, A1)
    for n in range(3):
        call(health, f"d{n}", B1, OOM)
    assert health.stopped is not None


def test_what_failed_on_a_node_that_is_left_out_is_named_to_be_tried_elsewhere(health: Health) -> None:
    load(health, A1, A2, B1)
    call(health, "a success", A1, None)
    assert health.began(REFINE, "c9", A2) == "go"
    for n in range(3):
        call(health, f"c{n}", A1, OOM)
    health.ended(REFINE, "c9", A2, ("ValueError", "it had begun before"))
    [fault] = health.faults
    assert fault.candidates == ("c0", "c1", "c2", "c9")


FIRST, SECOND = Worker("a1", "a", "host-a", "0"), Worker("a2", "a", "host-a", "1")
OTHER = Worker("b1", "b", "host-b", "0")


@pytest.mark.parametrize("others", [[SECOND], [SECOND, OTHER]])
def test_one_bad_card_is_left_out_and_the_others_of_its_node_work_on(health: Health, others: list[Worker]) -> None:
    load(health, FIRST, *others)
    for n in range(3):
        call(health, f"c{n}", FIRST, OOM)
        call(health, f"d{n}", SECOND, None)
    assert health.stopped is None
    assert health.began(REFINE, "e", FIRST) == "leave"
    assert [health.began(REFINE, "e", other) for other in others] == ["go"] * len(others)
    [fault] = health.faults
    assert str(fault) == "refine on host-a, card 0: OutOfMemoryError, 3 times in a row: no room"
    assert health.starting(REFINE, FIRST) is None
    assert health.starting(REFINE, Worker("a1", "a", "host-a", "2")) == 0.0  # its process was given another card

    later = Health(3, {"refine": 2}, left_out=[fault])  # of the next round
    assert later.starting(REFINE, FIRST) is None
    assert later.starting(REFINE, SECOND) == 0.0
    assert later.faults == []


def test_a_bad_card_that_fails_before_the_others_can_succeed_is_no_bad_node(health: Health) -> None:
    load(health, FIRST, SECOND, OTHER)
    for n in range(3):
        call(health, f"c{n}", FIRST, OOM)
    assert [fault.card for fault in health.faults] == ["0"]


def test_a_node_whose_cards_all_fail_is_left_out_as_a_whole(health: Health) -> None:
    health = Health(4, {"refine": 3})
    load(health, FIRST, SECOND, OTHER)
    for n, worker in enumerate([FIRST, SECOND, FIRST, SECOND]):
        call(health, f"c{n}", worker, OOM)
    assert health.stopped is None
    assert [(fault.node, fault.card) for fault in health.faults] == [("a", "")]
    assert health.began(REFINE, "d", OTHER) == "go"


def test_all_cards_of_the_only_node_that_fail_stop_the_stage() -> None:
    health = Health(4, {"refine": 2})
    load(health, FIRST, SECOND)
    for n, worker in enumerate([FIRST, SECOND, FIRST, SECOND]):
        call(health, f"c{n}", worker, OOM)
    assert health.stopped is not None


def test_a_pool_that_is_given_only_cards_that_are_left_out_has_to_leave_their_node() -> None:
    bad = Fault(REFINE, "CUDA error", "a", "host-a", "0")
    health = Health(3, {"refine": 1}, left_out=[bad])
    assert health.starting(REFINE, FIRST) is None
    assert health.dismissed(REFINE)
    assert [(fault.node, fault.card) for fault in health.faults] == [("a", "")]
