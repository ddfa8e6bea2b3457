"""What the tracker remembers of calls, of the processes that died of them, and what it waits for."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from support import S3

from flashvideo_ray.graph.events import Attempt
from flashvideo_ray.graph.health import Worker
from flashvideo_ray.graph.progress import pace
from flashvideo_ray.graph.quota import Gate, Quota
from flashvideo_ray.graph.tracker import Tracker
from flashvideo_ray.graph.tracker_actor import answer, start_tracker, writing
from flashvideo_ray.graph.tracker_client import TrackerClient
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.claim import clock
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.settings import LedgerSettings, Pools


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(Store(str(tmp_path)), tables.PREVIEWS, LedgerSettings())


def test_a_clock_that_is_set_changes_no_count_of_seconds(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker.joined("refine", Worker("one", "node", "host"))
    tracker.begin("refine", "a")
    tracker.attempt("refine", "a", "process")
    monkeypatch.setattr(time, "time", lambda: 0.0)  # to another century
    tracker.survived("refine", "a")
    tracker.end("refine", "a", "rendered")
    state = tracker.tick()["refine"]
    assert 0 <= state.busy_seconds <= state.held_seconds < 60
    assert state.rate > 0
    assert pace(state, 1, clock())[1] == "0 s left"


def preview_row(clip_id: str) -> dict[str, Any]:
    return {"clip_id": clip_id, "id": "p", "prompt": "p", "seed": 1, "candidate": 0, "status": "previewed"}


def test_a_process_dies_of_the_call_that_had_the_device(tracker: Tracker) -> None:
    assert tracker.attempt("refine", "done", "first process").count == 1
    assert tracker.attempt("refine", "deadly", "first process").count == 1
    tracker.survived("refine", "done")
    assert tracker.attempt("refine", "waiting", "first process").count == 1
    # It dies, and its calls come again: those that waited first.
    assert tracker.attempt("refine", "waiting", "second process").count == 1
    assert tracker.attempt("refine", "deadly", "second process").count == 2
    tracker.survived("refine", "waiting")
    # And once more, together with one that was new.
    assert tracker.attempt("refine", "new", "second process").count == 1
    tracker.overdue("refine", "deadly")
    assert tracker.attempt("refine", "deadly", "third process") == Attempt(3, overdue=True)
    assert tracker.attempt("refine", "new", "third process") == Attempt(1, overdue=False)
    tracker.survived("refine", "deadly")
    assert tracker.attempt("refine", "deadly", "third process") == Attempt(1, overdue=False)


def test_an_actor_computes_until_its_calls_have_given_the_device_back(tracker: Tracker) -> None:
    one, two = Worker("one", "node", "host"), Worker("two", "node", "host")
    for clip_id, worker in (("a", one), ("b", two)):
        tracker.begin("refine", clip_id, worker)
        tracker.attempt("refine", clip_id, f"process of {worker.actor}")
    assert tracker.computing() == {"one", "two"}
    tracker.survived("refine", "a")
    assert tracker.computing() == {"two"}
    tracker.begin("refine", "c", one)  # the next one, which has yet to fetch what it needs
    assert tracker.computing() == {"one", "two"}
    tracker.attempt("refine", "c", "process of one")
    tracker.end("refine", "a", "rendered")
    tracker.survived("refine", "c")
    assert tracker.computing() == {"two"}
    tracker.attempt("refine", "c", "process of one")  # once more, as memory ran out
    assert tracker.computing() == {"one", "two"}
    tracker.survived("refine", "c")
    tracker.end("refine", "c", "rendered")
    tracker.survived("refine", "b")
    assert tracker.computing() == set()
    tracker.begin("refine", "b", two)  # its process died
    assert tracker.computing() == {"two"}


def test_an_actor_whose_process_is_replaced_holds_one_card(tracker: Tracker) -> None:
    tracker.joined("refine", Worker("one", "node", "host"))
    time.sleep(0.2)
    held = tracker.tick()["refine"].held_seconds
    for _ in range(20):
        tracker.joined("refine", Worker("one", "node", "host"))
    state = tracker.tick()["refine"]
    assert state.actors == 1
    assert held <= state.held_seconds < 10 * held
    tracker.joined("refine", Worker("two", "node", "host"))
    assert tracker.tick()["refine"].actors == 2


def test_an_actor_whose_node_is_gone_is_not_at_work_and_costs_nothing_until_it_comes_again(tracker: Tracker) -> None:
    """A spot machine that was taken back is not paid for, and its actor, which Ray starts again, is not busy."""
    for actor, node in (("one", "spot"), ("two", "steady")):
        tracker.joined("refine", Worker(actor, node, "host"))
    tracker.begin("refine", "a")
    tracker.nodes({"steady", "spot"})
    assert tracker.tick()["refine"].actors == 2
    tracker.nodes({"steady"})
    state = tracker.tick()["refine"]
    assert (state.actors, state.open) == (1, 1)
    tracker.joined("refine", Worker("one", "another", "host"))
    tracker.nodes({"steady", "another"})
    assert tracker.tick()["refine"].actors == 2


class Unasked:
    """The handle of a tracker that must not be asked."""


def test_a_job_has_enough_whatever_has_begun_since(tmp_path: Path) -> None:
    """Texts are encoded ahead: such a call may be open when a budget is spent, and makes the job no longer."""
    gate = Gate(Quota(hours=1.0), Pools(), rendered=0, survivors=set(), spent_hours=2.0)
    tracker = Tracker(Store(str(tmp_path)), tables.PREVIEWS, LedgerSettings(), gate=gate)
    tracker.begin("text", "a")
    assert tracker.over() is None
    assert tracker.enough() == "the budget of 1 gpu-hours is spent"


def test_without_a_quota_nobody_asks_whether_a_call_may_begin() -> None:
    assert TrackerClient(Unasked(), ray.get, gated=False).admit("preview", "a", "p") == "go"


@pytest.mark.usefixtures("local_ray")
def test_a_store_that_is_away_keeps_no_card_waiting(s3: S3, tmp_path: Path) -> None:
    store = Store(f"s3://{s3.bucket}/{tmp_path.name}")
    actor = start_tracker(store, tables.PREVIEWS, LedgerSettings(), {}, None)
    actor.permit.remote(clock() + 600)
    client = TrackerClient(actor, lambda answer: ray.get(answer, timeout=20), gated=False)
    client.previewed([preview_row("a")])
    s3.process.send_signal(signal.SIGSTOP)
    try:
        written = writing(actor.flush).remote()
        with pytest.raises(ray.exceptions.GetTimeoutError):
            ray.get(written, timeout=1)
        assert client.attempt("preview", "b").count == 1
        client.previewed([preview_row("b")])
    finally:
        s3.process.send_signal(signal.SIGCONT)
    ray.get(written)
    ray.get(writing(actor.flush).remote())
    assert sorted(tables.read(store, "previews")["clip_id"].to_pylist()) == ["a", "b"]
    ray.kill(actor)


class Late:
    """An actor of a stage that begins when the tracker is gone."""

    def __init__(self, client: TrackerClient):
        client.starting("refine")

    def ready(self) -> None:
        """Called once it has begun."""


@pytest.mark.usefixtures("local_ray")
def test_an_actor_that_begins_when_its_round_is_over_leaves_and_fails_where_its_tracker_died(tmp_path: Path) -> None:
    """Ray shows on the job's console what a constructor raises."""
    started = [start_tracker(Store(str(tmp_path)), tables.PREVIEWS, LedgerSettings()) for _ in range(2)]
    over, died = started
    ray.get([actor.tick.remote() for actor in started])
    ray.kill(over)  # as a round does
    died.__ray_call__.remote(lambda tracker: os._exit(1))
    # With a Ray Data actor's options: it would be started again for as long as it takes.
    late: Any = ray.remote(num_cpus=0, max_restarts=-1)(Late)
    begun = [late.remote(TrackerClient(actor, answer, gated=False)).ready.remote() for actor in started]
    failed = []
    for each in begun:
        with pytest.raises(ray.exceptions.ActorDiedError) as error:
            ray.get(each, timeout=120)
        failed.append(error.value.actor_init_failed)
    assert failed == [False, True]


def test_a_call_whose_node_is_gone_keeps_no_job_from_its_end(tmp_path: Path) -> None:
    """No place may come for the actor that had it, and so no end of the call either."""
    gate = Gate(Quota(accept=1), Pools(), rendered=0, survivors={"a"})
    tracker = Tracker(Store(str(tmp_path)), tables.PREVIEWS, LedgerSettings(), gate=gate)
    for actor, node in (("one", "spot"), ("two", "steady")):
        tracker.joined("refine", Worker(actor, node))
    assert tracker.admit("refine", "a", "p") == "go"
    tracker.begin("refine", "a", Worker("one", "spot"))
    tracker.attempt("refine", "a", "process")
    assert tracker.admit("refine", "b", "q") == "wait"  # one clip is missing, and one is being made
    tracker.nodes({"steady"})
    state = tracker.tick()["refine"]
    assert (state.open, state.oldest_seconds) == (0, 0.0)
    assert tracker.admit("refine", "b", "q") == "go"
    tracker.begin("refine", "b", Worker("two", "steady"))
    tracker.end("refine", "b", "rendered", worker=Worker("two", "steady"))
    assert tracker.over() == ("1 clips are accepted", 1)
    # Where it does come again, it is the second time, as after any death of its process.
    assert tracker.begin("refine", "a", Worker("one", "steady")).count == 2
    assert tracker.attempt("refine", "a", "another").count == 2
    assert tracker.tick()["refine"].open == 1


def test_a_preview_whose_node_is_gone_is_not_under_way(tracker: Tracker) -> None:
    tracker.joined("preview", Worker("one", "spot"))
    assert tracker.admit("preview", "a", "p") == "go"
    tracker.begin("preview", "a", Worker("one", "spot"))
    tracker.close()
    assert tracker.closed() is None
    tracker.nodes({"steady"})
    assert tracker.closed() == 0
    assert tracker.admit("preview", "a", "p") == "stop"


def test_nobody_waits_for_what_cannot_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A survivor at hand may come out of the graph without a clip, or stand behind the calls that wait."""
    gate = Gate(Quota(accept=1), Pools(), rendered=0, survivors={"lost"})
    tracker = Tracker(Store(str(tmp_path)), tables.PREVIEWS, LedgerSettings(), gate=gate)
    monkeypatch.setattr("flashvideo_ray.graph.tracker.QUIET_SECONDS", 0.2)
    assert tracker.admit("preview", "a", "p") == "wait"
    time.sleep(0.3)
    assert tracker.admit("preview", "a", "p") == "wait"  # no actor of stage 2 has come yet: that can still change it
    tracker.joined("refine", Worker("one", "node"))
    time.sleep(0.3)
    assert tracker.admit("preview", "a", "p") == "go"
    assert tracker.admit("preview", "b", "q") == "wait"  # one at a time
    assert tracker.admit("preview", "a2", "p") == "go"  # the others of its prompt are judged with it


def test_a_call_that_is_repeated_records_its_previews_once(tracker: Tracker) -> None:
    """Ray repeats calls whose results it lost; by then the latents are there, and the preview seems to cost nothing."""
    tracker.permit(clock() + 60)
    tracker.previewed([{**preview_row("a"), "preview_seconds": 30.0}])
    tracker.previewed([{**preview_row("a"), "preview_seconds": None}])
    tracker.flush()
    assert tables.read(tracker._previews.store, "previews")["preview_seconds"].to_pylist() == [30.0]
    assert tracker.tick()["preview"].judged == 1


def test_a_call_that_is_repeated_gets_the_first_answer_whatever_it_finds(tracker: Tracker) -> None:
    """A scorer may fail once, and another card draws another preview. It ends or goes on, not both."""
    assert tracker.previewed([preview_row("a"), {**preview_row("b"), "status": "rejected"}]) == ["b"]
    assert tracker.previewed([{**preview_row("a"), "status": "rejected"}, preview_row("b")]) == ["b"]
    assert [row["clip_id"] for row in tracker.out(0)] == ["b"]
    state = tracker.tick()["preview"]
    assert (state.judged, state.kept) == (2, 1)


def test_a_preview_that_is_repeated_after_its_verdict_keeps_no_round_open(tmp_path: Path) -> None:
    gate = Gate(Quota(accept=2), Pools(), rendered=0, survivors=set())
    tracker = Tracker(Store(str(tmp_path)), tables.PREVIEWS, LedgerSettings(), gate=gate)
    for _ in range(2):
        assert tracker.admit("preview", "a", "p") == "go"
        assert tracker.previewed([preview_row("a")]) == []
    tracker.close()
    assert tracker.closed() == 0
    assert not gate._undecided
