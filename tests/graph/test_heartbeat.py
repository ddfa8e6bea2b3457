"""What is looked at once a second does not depend on what else goes wrong in that second."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from flashvideo_ray.graph import heartbeat
from flashvideo_ray.graph.heartbeat import Heartbeat
from flashvideo_ray.graph.tracker import StageState


class Tracker:
    """One that has something to tell."""

    def __getattr__(self, name: str) -> Any:
        told = {"tick": {}, "over": ("enough", 3), "stopped": None, "closed": 2}.get(name)
        return SimpleNamespace(remote=lambda *_: told)


class Leaving(Tracker):
    """One that has begun to wait for the last rows, and pools of which one is done."""

    def __getattr__(self, name: str) -> Any:
        if name != "tick":
            return super().__getattr__(name)
        return SimpleNamespace(remote=lambda: {"preview": StageState(0, done=5), "refine": StageState(2, done=3)})


def test_last_rows_that_do_not_come_are_given_up_and_a_stage_that_is_done_needs_no_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They may be with an actor whose node is gone. The nodes of a pool that is done are given back."""
    interrupted: list[threading.Thread] = []
    monkeypatch.setattr(heartbeat, "ray", SimpleNamespace(get=lambda answer: answer))
    monkeypatch.setattr(heartbeat, "signals", SimpleNamespace(interrupt=interrupted.append))
    monkeypatch.setattr(heartbeat, "_LAST_ROWS_SECONDS", 0.1)
    progress: Any = SimpleNamespace(expected=lambda states, ended: {"preview": 5, "refine": 4})
    asked: list[Any] = []
    places: Any = SimpleNamespace(look=asked.append, over=None)
    none: Any = SimpleNamespace(ended={}, take=None)
    beats = Heartbeat(none, Leaving(), none, progress, none, places, refuses)
    beats._look()
    assert (beats.given_up, asked) == (False, [{"refine": 2}])
    time.sleep(0.2)
    beats.came = time.monotonic()  # some come still
    beats._look()
    assert not beats.given_up
    time.sleep(0.2)
    beats._look()
    assert (beats.given_up, interrupted) == (True, [threading.current_thread()])


def refuses(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_the_end_of_a_job_is_seen_though_nothing_can_be_shown_or_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "ray", SimpleNamespace(get=lambda answer: answer))
    monkeypatch.setattr(heartbeat, "cluster", SimpleNamespace(alive=set))
    monkeypatch.setattr(heartbeat, "_BEAT_SECONDS", 0.01)
    claim: Any = SimpleNamespace(lost=threading.Event())
    full: Any = SimpleNamespace(
        update=refuses,
        write_if_due=refuses,
        take=refuses,
        ended={},
        used=lambda used: None,
        expected=lambda *_: {},
    )
    places: Any = SimpleNamespace(look=lambda actors: None, over="no node has that label")
    with Heartbeat(claim, Tracker(), full, full, full, places, refuses) as beats:
        beats._waits = threading.Thread()  # who is interrupted
        deadline = time.monotonic() + 10
        while beats.over is None or beats.no_place is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert (beats.over, beats.closed) == (("enough", 3), 2)


def test_what_is_shown_last_counts_all_that_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates that were rejected in the last second, too."""
    monkeypatch.setattr(heartbeat, "ray", SimpleNamespace(get=lambda answer: answer))
    ended: dict[str, int] = {}
    shown: list[tuple[dict[str, int], bool]] = []
    arrivals: Any = SimpleNamespace(take=lambda: ended.update(rejected=3), write_if_due=None, ended=ended)
    progress: Any = SimpleNamespace(update=lambda states, ended, last: shown.append(({**ended}, last)))
    record: Any = SimpleNamespace(used=lambda used: None)
    claim: Any = SimpleNamespace(lost=threading.Event())
    with Heartbeat(claim, Tracker(), arrivals, progress, record, None, refuses):  # type: ignore[arg-type]
        pass
    assert shown == [({"rejected": 3}, True)]
