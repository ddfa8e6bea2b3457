"""Which row Ray Data hands on, and to which actor."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from ray.cluster_utils import Cluster

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
    assert last["begun"] < short["begun"] + short["seconds"] + _Publishing.SECONDS


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


@pytest.mark.usefixtures("local_ray")
def test_an_answer_that_does_not_come_holds_nothing_up(tmp_path: Path) -> None:
    """Then a row waits for an actor without a call."""

    def computing() -> set[str]:
        raise ray.exceptions.GetTimeoutError("no answer within 0.1 s")

    with datasets.data_context(computing):
        rows = datasets.dataset_of([pa.table({"seconds": [0.5, 0.5, 0.5], "actor": [0] * 3})])
        pool = Pool(size=2, num_cpus=0.1)
        rows = rows.map_batches(_Sleeping, fn_constructor_args=(tmp_path,), **datasets.map_options(pool))
        assert len([*rows.iter_rows()]) == 3


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
