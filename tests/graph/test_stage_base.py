"""What all stages share, without Ray: an error is a value in the row, with its cost; calls follow one another."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from flashvideo_ray import Settings
from flashvideo_ray.graph import logs
from flashvideo_ray.graph.health import Health
from flashvideo_ray.graph.stage_base import LoadError, StageBase, row_schema
from flashvideo_ray.graph.tracker import Tracker
from flashvideo_ray.graph.tracker_client import TrackerClient
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.settings import LedgerSettings


class Here:
    """A tracker in this process, spoken to as to an actor."""

    def __init__(self, tracker: Tracker):
        self._tracker = tracker

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._tracker, name))


class Doing(StageBase):
    """A stage that does what it is told while it has the device."""

    name = "preview"

    def __init__(self, act: Callable[[str], Any], folder: Path, settings: Settings | None = None):
        self.act = act
        tracker = Tracker(Store(str(folder)), tables.PREVIEWS, LedgerSettings())
        super().__init__(settings or Settings(), TrackerClient(Here(tracker), lambda answer: answer, gated=False))

    def takes(self, row: Mapping[str, Any]) -> bool:
        return True

    def process(self, row: dict[str, Any]) -> dict[str, Any]:
        with self.device(row):
            self.act(row["clip_id"])
        return {"status": "previewed"}


def batch(clip_id: str) -> pa.Table:
    row = {"clip_id": clip_id, "id": "p", "prompt": "p", "seed": 1, "candidate": 0, "status": "open", "group": 0}
    return pa.Table.from_pylist([row], schema=row_schema())


@pytest.mark.parametrize("form", ["json", "text"])
def test_json_lines_name_the_candidate_and_the_stage_that_they_are_about(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A stage that says something itself, and whose library does; the second row fails."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as in a worker
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", False)  # as it is once it was imported
    monkeypatch.setattr(logging.getLogger("diffusers"), "handlers", [logging.StreamHandler()])

    def act(clip_id: str) -> None:
        logging.getLogger("diffusers").warning("of %s: a word", clip_id)
        logs.say("and\nanother")
        if clip_id == "b":
            raise ValueError("no such thing")

    stage = Doing(act, tmp_path, Settings.of_tree({}, [f"log_format={form}"]))
    logging.getLogger("flashvideo_ray").warning("about no candidate")
    stage(batch("a"))
    stage(batch("b"))
    said = capfd.readouterr().err.splitlines()
    logs.use("text")
    if form == "text":
        assert not any(line.startswith("{") for line in said)
        return
    first, *lines = [json.loads(line) for line in said]
    assert {"at", "level", "message"} <= set(first)
    assert "clip_id" not in first
    assert [(line["stage"], line["clip_id"]) for line in lines] == [("preview", "a")] * 2 + [("preview", "b")] * 3


class CannotSayError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


@pytest.mark.parametrize("error", [ValueError("no such file: a\udcff.bin"), CannotSayError()])
def test_a_failure_that_cannot_be_told_to_anybody_costs_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def act(clip_id: str) -> None:
        raise error

    with suppress(OSError), open("/dev/full", "w", buffering=1) as full:  # a log on a full disk: each write is refused
        monkeypatch.setattr("sys.stderr", full)
        [row] = Doing(act, tmp_path)(batch("a")).to_pylist()
        monkeypatch.undo()
    assert (row["status"], row["error_class"]) == ("failed", type(error).__name__)
    assert row["error"]


def test_a_pool_that_asks_for_no_card_sees_none_where_there_are_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")  # as Ray leaves it
    Doing(print, tmp_path, Settings.of_tree({"pools": {"preview": {"num_gpus": 0.5}}}))
    Doing(print, tmp_path)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"  # what this process sees is its own affair
    monkeypatch.setattr("flashvideo_ray.graph.stage_base._is_an_actor", lambda: True)
    Doing(print, tmp_path)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_a_call_is_marked_before_the_device_is_free_for_it(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def act(clip_id: str) -> None:
        if clip_id == "first":
            begun.set()
            assert go_on.wait(60)

    stage = Doing(act, tmp_path)
    threads = [threading.Thread(target=stage, args=[batch(clip_id)]) for clip_id in ("first", "second")]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    marks = stage.events._handle._tracker._calls._process  # type: ignore[attr-defined]
    deadline = time.monotonic() + 60
    while ("preview", "second") not in marks:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    go_on.set()
    for thread in threads:
        thread.join()
    assert not marks


class Renders(StageBase):
    """A stage 2 that takes its time and then fails on prompts that say so, on its card or after it."""

    name = "refine"
    device_name = "NVIDIA L40S"

    def takes(self, row: Mapping[str, Any]) -> bool:
        return True

    def process(self, row: dict[str, Any]) -> dict[str, Any]:
        with self.device(row):
            time.sleep(0.02)
            if row["prompt"] == "fails":
                raise ValueError("NaN")
        if row["prompt"] == "cannot be stored":
            raise OSError("no space")
        return {"status": "rendered", "refine_seconds": 1.0}


@pytest.fixture
def stage(tmp_path: Path) -> Renders:
    tracker = Tracker(Store(str(tmp_path)), tables.PREVIEWS, LedgerSettings())
    return Renders(Settings(), TrackerClient(Here(tracker), lambda answer: answer, gated=False))


def test_a_call_that_fails_says_what_it_cost_and_on_what(stage: Renders) -> None:
    """The row came with the device that made its preview; it was another one that failed."""
    row = {**dict.fromkeys(row_schema().names), "clip_id": "a", "status": "previewed", "device": "NVIDIA H100"}
    prompts = ("fails", "cannot be stored", "goes well")
    batch = pa.Table.from_pylist([{**row, "prompt": prompt} for prompt in prompts], schema=row_schema())
    failed, stored, well = stage(batch).to_pylist()
    for each in (failed, stored):
        assert (each["status"], each["stage"], each["device"]) == ("failed", "refine", "NVIDIA L40S")
        assert 0.02 <= each["refine_seconds"] < 1.0
    assert (well["status"], well["refine_seconds"]) == ("rendered", 1.0)


class Loading(Doing):
    """A stage that does not load at the first tries."""

    def __init__(self, failures: int, folder: Path, health: Health):
        self.failures = failures
        self.act = lambda clip_id: None
        tracker = Tracker(Store(str(folder)), tables.PREVIEWS, LedgerSettings(), health=health)
        StageBase.__init__(self, Settings(), TrackerClient(Here(tracker), lambda answer: answer, gated=False))

    def load(self) -> None:
        self.failures -= 1
        if self.failures >= 0:
            raise OSError("the weights are not there yet")


def test_a_load_is_tried_again_in_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashvideo_ray.graph.stage_base.LOAD_PAUSES", (0.0, 0.0, 0.0))
    health = Health(3, {"preview": 1})
    [row] = Loading(3, tmp_path, health)(batch("a")).to_pylist()
    assert row["status"] == "previewed"
    assert health.faults == []


def test_a_load_in_vain_names_stage_node_and_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashvideo_ray.graph.stage_base.LOAD_PAUSES", (0.0, 0.0, 0.0))
    health = Health(3, {"preview": 1})
    with pytest.raises(LoadError, match=f"preview .*{socket.gethostname()}.*OSError: the weights are not there yet"):
        Loading(4, tmp_path, health)
    [fault] = health.faults
    assert (fault.stage, fault.cause) == ("preview", "OSError: the weights are not there yet")


NO_MEMORY = [
    MemoryError("the host's"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),  # of torch's own requests
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=["host", "torch", "driver", "library"])
def test_a_call_that_ran_out_of_memory_is_tried_once_more(tmp_path: Path, error: Exception) -> None:
    tries: Counter[str] = Counter()
    held: list[weakref.ref[Any]] = []

    def act(clip_id: str) -> None:
        assert not [each for each in held if each() is not None], "the try before still holds memory"
        activations = np.zeros(1)
        held.append(weakref.ref(activations))
        tries[clip_id] += 1
        if tries[clip_id] == 1 or clip_id == "too large":
            raise type(error)(*error.args)  # one of its own: it holds what its call had

    stage = Doing(act, tmp_path)
    rows = [row for clip_id in ("fits now", "too large") for row in stage(batch(clip_id)).to_pylist()]
    assert [row["status"] for row in rows] == ["previewed", "failed"]
    assert rows[1]["error_class"] == type(error).__name__
    assert tries == {"fits now": 2, "too large": 2}


def test_what_a_stopped_stage_had_not_begun_stays_open(tmp_path: Path) -> None:
    def act(clip_id: str) -> None:
        raise ValueError("all alike")

    stage = Doing(act, tmp_path)
    tracker = stage.events._handle._tracker  # type: ignore[attr-defined]
    tracker._health = Health(3, {"preview": 1})
    statuses = [row["status"] for n in range(5) for row in stage(batch(f"c{n}")).to_pylist()]
    assert statuses == ["failed"] * 3 + ["skipped"] * 2
    fault, ended = tracker.stopped()
    assert (fault.stage, fault.cause, ended) == ("preview", "ValueError, 3 times in a row: all alike", 3)


class Waiting(Doing):
    """A stage 2 whose calls begin together; the one that has the device lets the others go."""

    name = "refine"
    gated = True

    def process(self, row: dict[str, Any]) -> dict[str, Any]:
        return {**super().process(row), "status": "rendered"}


def test_a_call_that_waits_for_the_device_while_its_round_is_closed_stays_open(tmp_path: Path) -> None:
    """An hour of a card may lie between its beginning and that."""
    begun = threading.Event()
    made, statuses = list[str](), dict[str, str]()

    def act(clip_id: str) -> None:
        made.append(clip_id)
        begun.set()
        deadline = time.monotonic() + 60
        while tracker.tick()["refine"].open < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        tracker.close()

    stage = Waiting(act, tmp_path)
    tracker = stage.events._handle._tracker  # type: ignore[attr-defined]
    stage.events._gated = True  # type: ignore[attr-defined]

    def call(clip_id: str) -> None:
        statuses[clip_id] = stage(batch(clip_id)).to_pylist()[0]["status"]

    threads = [threading.Thread(target=call, args=[clip_id]) for clip_id in ("first", "second")]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert (made, statuses) == (["first"], {"first": "rendered", "second": "skipped"})
    assert (tracker.closed(), tracker.tick()["refine"].done, tracker.tick()["refine"].open) == (1, 1, 0)


_OVERDUE = """
import sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_stage_base import Doing, batch
from flashvideo_ray import Settings
stage = Doing(lambda clip_id: threading.Event().wait(), Path(sys.argv[2]))
stage.settings = Settings.load(None, ["pools.preview.time_limit_seconds=0.1"])
stage.events.overdue = lambda stage, clip_id: print("too long", flush=True) or threading.Event().wait()
stage(batch("a"))
"""


def test_a_call_over_its_time_limit_ends_its_process_even_if_nobody_can_be_told(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _OVERDUE, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (1, "too long\n"), done.stderr


class EndedError(BaseException):
    """This process."""


def test_a_process_that_has_lost_its_card_ends_instead_of_failing_whatever_it_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some errors a card does nothing more for a process, and everything for the next one."""

    def fails(*_: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def end(status: int) -> None:
        raise EndedError

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    stage = Doing(fails, tmp_path)
    [row] = stage(batch("a")).to_pylist()
    assert (row["status"], row["error_class"]) == ("failed", "AcceleratorError")
    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    with pytest.raises(EndedError):
        stage(batch("b"))


def test_a_call_over_its_time_limit_ends_its_process_even_if_no_thread_can_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a host without memory: who is to be told is told by a thread."""
    stage, ended = Doing(print, tmp_path), []

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with suppress(RuntimeError):
        stage._give_up("a")
    assert ended == [1]
