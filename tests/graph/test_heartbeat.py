"""What is looked at once a second does not depend on what else goes wrong in that second."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from flashvideo_ray.graph import heartbeat
from flashvideo_ray.graph.heartbeat import Heartbeat


class Tracker:
    """One that has something to tell."""

    def __getattr__(self, name: str) -> Any:
        told = {"tick": {}, "over": ("enough", 3), "stopped": None, "closed": 2}.get(name)
        return SimpleNamespace(remote=lambda: told)


def refuses(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_the_end_of_a_job_is_seen_though_nothing_can_be_shown_or_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "ray", SimpleNamespace(get=lambda answer: answer))
    monkeypatch.setattr(heartbeat, "writing", lambda method: method)
    monkeypatch.setattr(heartbeat, "cluster", SimpleNamespace(alive=set))
    monkeypatch.setattr(heartbeat, "_BEAT_SECONDS", 0.01)
    claim: Any = SimpleNamespace(lost=threading.Event())
    full: Any = SimpleNamespace(update=refuses, flush_if_due=refuses, used=lambda used: None)
    places: Any = SimpleNamespace(look=lambda actors: None, over="no node has that label")
    with Heartbeat(claim, Tracker(), full, full, {}, full, places, refuses) as beats:
        beats._waits = threading.Thread()  # who is interrupted
        deadline = time.monotonic() + 10
        while beats.over is None or beats.no_place is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert (beats.over, beats.closed) == (("enough", 3), 2)
