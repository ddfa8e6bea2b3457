"""Which row Ray Data hands on, and to which actor."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.data import DataContext
from ray.data._internal.utils.heapdict import heapdict

from flashvideo_ray.graph import backpressure, datasets, stages
from flashvideo_ray.settings import Pool


@pytest.mark.usefixtures("local_ray")
def test_of_the_last_rows_none_waits_behind_a_long_call_while_an_actor_is_free(tmp_path: Path) -> None:
    actors = 3
    with datasets.data_context():
        rows = datasets.dataset_of([pa.table({"seconds": [8.0, 8.0, 2.5, 0.1, 0.1], "actor": [0] * 5})])
        rows = rows.map_batches(_AfterOthers, fn_constructor_args=(tmp_path, actors), **datasets.map_options(Pool()))
        pool = Pool(size=actors, num_cpus=0.1, in_flight=2)
        rows = rows.map_batches(_Sleeping, fn_constructor_args=(tmp_path,), **datasets.map_options(pool))
        done = sorted(rows.iter_rows(), key=lambda row: row["seconds"])
    *short, one, other = (row["actor"] for row in done)
    assert one != other
    assert not {one, other} & {*short}


@pytest.mark.usefixtures("local_ray")
def test_of_the_last_rows_one_goes_to_the_actor_that_only_publishes(tmp_path: Path) -> None:
    """Its device is free, though its call goes on. The one that computes gets none."""

    def computing() -> set[str]:
        return {file.stem for file in tmp_path.glob("*.computing")}

    with datasets.data_context(computing):
        rows = datasets.dataset_of([pa.table({"seconds": [8.0, 2.0, 0.1], "actor": [""] * 3, "begun": [0.0] * 3})])
        rows = rows.map_batches(_AfterOthers, fn_constructor_args=(tmp_path, 2), **datasets.map_options(Pool()))
        pool = Pool(size=2, num_cpus=0.1)
        rows = rows.map_batches(
            _Publishing, fn_constructor_args=(tmp_path,), **datasets.map_options(pool, datasets.PUBLISHING_CALLS)
        )
        last, short, long = sorted(rows.iter_rows(), key=lambda row: row["seconds"])
    assert last["actor"] == short["actor"] != long["actor"]
    assert 0 <= last["begun"] - short["begun"] - short["seconds"] < _Publishing.SECONDS


class _Publishing:
    """Computes for the seconds of a row, one row at a time, and then publishes, beside the next one's computing."""

    SECONDS = 5.0

    def __init__(self, folder: Path):
        self.actor = ray.get_runtime_context().get_actor_id() or ""
        self.file = folder / f"{self.actor}.computing"
        (folder / f"{os.getpid()}").touch()

    def __call__(self, batch: pa.Table) -> pa.Table:
        [row] = batch.to_pylist()
        self.file.touch()
        row |= {"actor": self.actor, "begun": time.time()}
        time.sleep(row["seconds"])
        self.file.unlink()
        time.sleep(self.SECONDS)
        return pa.Table.from_pylist([row], schema=batch.schema)


class _Actor:
    def __init__(self, name: str):
        self._actor_id = self
        self.hex = lambda: name


class _Pool(SimpleNamespace):
    __hash__ = object.__hash__


class _Scheduler:
    """One pool as Ray Data's scheduler has it, with actors `a`, `b`, ...: how many calls each has, and what waits."""

    def __init__(self, calls: dict[str, int], waiting: int = 1, concurrency: int = 2):
        self.ranks = heapdict()
        for name, count in calls.items():
            self.ranks[_Actor(name)] = count
        pool = _Pool(
            _alive_actors_to_in_flight_tasks_heap=self.ranks,
            max_size=lambda: len(calls),
            max_actor_concurrency=lambda: concurrency,
        )
        rows = SimpleNamespace(_queues=[SimpleNamespace(num_rows=lambda: self.waiting)])
        self.pools = [pool]
        self.waiting = waiting
        self.computing: set[str] = set()
        self.asked = 0
        self.silent = False
        context = DataContext()
        with backpressure.policies(context, self._ask):
            self.policy = backpressure._NoneBehindAnother(context, {self: SimpleNamespace(input_queues=[rows])}, None)

    def _ask(self) -> set[str]:
        self.asked += 1
        if self.silent:
            raise ray.exceptions.GetTimeoutError("no answer within 0.1 s")
        return self.computing

    def get_autoscaling_actor_pools(self) -> list[Any]:
        return self.pools

    def next_actor(self) -> str | None:
        """Whom the next row goes to, if anybody."""
        return self.ranks.peekitem()[0]._actor_id.hex() if self.policy.can_add_input(self) else None

    def has_calls(self, name: str, count: int) -> None:
        """Ray Data has sent an actor a row, or heard of the end of its call."""
        for actor in [*self.ranks]:
            if actor._actor_id.hex() == name:
                self.ranks[actor] = count


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backpressure, "_ASKING_SECONDS", 0.0)
    monkeypatch.setattr(backpressure, "_LOOKING_SECONDS", 0.0)


@pytest.mark.usefixtures("no_pauses")
def test_a_row_that_is_on_its_way_to_an_actor_is_not_taken_for_one_that_it_is_done_with() -> None:
    """Until its call has begun nobody knows of it; then the actor computes, and at last its device is free."""
    pool = _Scheduler({"a": 1, "b": 2})
    assert pool.next_actor() is None
    pool.computing = {"a", "b"}
    assert pool.next_actor() is None
    pool.computing = {"b"}
    assert pool.next_actor() == "a"
    pool.has_calls("a", 2)
    assert pool.next_actor() is None
    pool.has_calls("a", 1)  # the first of them has ended
    assert pool.next_actor() is None


@pytest.mark.usefixtures("no_pauses")
def test_an_actor_that_takes_its_device_once_more_gets_no_row() -> None:
    """Its memory had run out, or its call has several rows."""
    pool = _Scheduler({"a": 1, "b": 1})
    pool.computing = {"a", "b"}
    assert pool.next_actor() is None
    pool.computing = {"b"}
    assert pool.next_actor() == "a"
    pool.computing = {"a", "b"}
    assert pool.next_actor() is None


@pytest.mark.usefixtures("no_pauses")
def test_an_actor_without_a_call_comes_first() -> None:
    pool = _Scheduler({"a": 1, "b": 1})
    pool.computing = {"a", "b"}
    assert pool.next_actor() is None
    pool.computing = {"b"}
    pool.has_calls("b", 0)
    assert pool.next_actor() == "b"


def test_when_a_row_comes_it_does_not_wait_for_the_next_look() -> None:
    """While none waits, the tracker is asked once a second."""
    pool = _Scheduler({"a": 1, "b": 1}, waiting=0)
    pool.computing = {"a", "b"}
    assert pool.next_actor() is not None  # there is none to send
    pool.computing, pool.waiting = {"b"}, 1
    time.sleep(0.1)
    assert pool.next_actor() == "a"
    assert pool.asked == 2


def test_a_tracker_that_does_not_answer_is_left_in_peace_for_a_while() -> None:
    """Ray Data's scheduler waits for each answer. It asks its policies again for each row that it hands on."""
    pool = _Scheduler({"a": 1, "b": 1})
    pool.silent = True
    assert [pool.next_actor() for _ in range(100)] == [None] * 100
    assert pool.asked == 1


@pytest.mark.usefixtures("no_pauses")
def test_nobody_is_asked_about_a_pool_without_calls_beside_one_another_or_with_many_rows() -> None:
    one_by_one = _Scheduler({"a": 1, "b": 1}, concurrency=1)
    assert one_by_one.next_actor() is None
    many = _Scheduler({"a": 1, "b": 1}, waiting=2)
    assert many.next_actor() in {"a", "b"}
    full = _Scheduler({"a": 2, "b": 2})
    assert full.next_actor() is None
    assert one_by_one.asked == many.asked == full.asked == 0


def test_a_row_goes_to_another_node_when_the_actors_of_its_own_are_busy(tmp_path: Path) -> None:
    """It has megabytes, which are where it was made; Ray Data would leave it there until each of these has two."""
    ray.shutdown()
    nodes = Cluster()
    try:
        for name, cores in (("one", 3), ("other", 1)):
            nodes.add_node(num_cpus=cores, labels={"name": name})
        ray.init(address=nodes.address, logging_level="warning")
        with datasets.data_context():
            rows = datasets.dataset_of(
                [pa.table({"seconds": [8.0, 0.1], "actor": [0] * 2, "bulk": [b"." * 2**20] * 2})]
            )
            here = Pool(num_cpus=2, labels={"name": "one"})
            rows = rows.map_batches(_AfterOthers, fn_constructor_args=(tmp_path, 2), **datasets.map_options(here))
            both = Pool(size=2, in_flight=2)
            rows = rows.map_batches(_Sleeping, fn_constructor_args=(tmp_path,), **datasets.map_options(both))
            one, other = (row["actor"] for row in rows.iter_rows())
    finally:
        ray.shutdown()
        nodes.shutdown()
    assert one != other


class _AfterOthers:
    """Rows come one by one, a second apart, when so many actors of the next step are there."""

    def __init__(self, folder: Path, count: int):
        self.folder, self.count = folder, count

    def __call__(self, batch: pa.Table) -> pa.Table:
        while len([*self.folder.iterdir()]) < self.count:
            time.sleep(0.1)
        time.sleep(1.0)
        return batch


class _Sleeping:
    def __init__(self, folder: Path):
        (folder / str(os.getpid())).touch()

    def __call__(self, batch: pa.Table) -> pa.Table:
        [row] = batch.to_pylist()
        time.sleep(row["seconds"])
        return pa.Table.from_pylist([{**row, "actor": os.getpid()}], schema=batch.schema)


def test_the_rows_that_wait_are_counted_after_steps_that_there_are() -> None:
    """Ray Data calls a step by its function or class."""
    assert {*backpressure.WAITING_ROWS} == {datasets._unchanged.__name__, stages.EncodeTexts.__name__}
