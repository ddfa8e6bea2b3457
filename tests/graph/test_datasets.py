"""Ray Data for the rows of a job."""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa
import pytest
from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators import map_operator

from flashvideo_ray.graph import backpressure, cluster, datasets
from flashvideo_ray.settings import Pool


def test_other_datasets_of_the_process_are_as_if_no_job_had_been() -> None:
    """A notebook that renders goes on to use Ray Data for its own tables."""
    before = DataContext.get_current()
    told = before.copy()
    with datasets.data_context():
        assert DataContext.get_current().target_max_block_size == 1
    assert DataContext.get_current() is before
    for name in ("target_max_block_size", "enable_progress_bars", "execution_no_progress_timeout_s"):
        assert getattr(before, name) == getattr(told, name)
    assert before.execution_options == told.execution_options
    assert len(before.issue_detectors_config.detectors) == len(told.issue_detectors_config.detectors) > 0


def test_a_pool_that_asks_for_cores_and_a_card_is_warned_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """All of ours with cards do. What else Ray Data warns of is told."""
    logger = map_operator.logger
    logger.addHandler(caplog.handler)
    both = cluster.placement(Pool(num_cpus=1, num_gpus=0.5))
    with datasets.data_context():
        map_operator._canonicalize_ray_remote_args(both)
        assert not caplog.records
        logger.warning("a disk is full")
        assert {*caplog.messages} == {"a disk is full"}
    map_operator._canonicalize_ray_remote_args(both)  # of somebody else's
    logger.removeHandler(caplog.handler)
    assert len({*caplog.messages}) == 2


class Looking(ExecutionCallback):
    """What Ray Data holds in the driver at each step of an execution."""

    statistics: list[int]
    waiting: list[int]
    counted: list[int]
    empty: list[int]

    def on_execution_step(self, executor: Any) -> None:
        kept = [len(each) for operator in executor._topology for each in operator.get_stats().values()]
        self.statistics.append(sum(kept))
        cut = [state for operator, state in executor._topology.items() if "_unchanged" in operator.name]
        self.waiting.append(max(state.total_enqueued_output_blocks() for state in cut))
        inputs = [operator.metrics.obj_store_mem_internal_inqueue_blocks for operator in executor._topology]
        self.counted.append(max(inputs))
        queues = [queue for state in executor._topology.values() for queue in state.input_queues]
        self.empty.append(max(len(queue) - sum(each.num_rows() for each in queue._queues) for queue in queues))


@pytest.mark.usefixtures("local_ray")
def test_what_the_driver_holds_does_not_grow_with_the_rows_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Data would keep statistics of all rows that went through, and cut all rows that have not."""
    monkeypatch.setattr(backpressure, "WAITING_ROWS", {"_unchanged": 20})
    Looking.statistics, Looking.waiting, Looking.counted, Looking.empty = [], [], [], []
    with datasets.data_context():
        DataContext.get_current().custom_execution_callback_classes.append(Looking)
        rows = datasets.dataset_of([pa.table({"number": [*range(20)]})] * 20)
        rows = rows.map_batches(_Slow, **datasets.map_options(Pool()))
        assert sorted(row["number"] for row in rows.iter_rows()) == sorted([*range(20)] * 20)
    assert max(Looking.statistics) < 10
    # More than wanted by what the two tasks under way have left, if they cut as fast as the driver reads.
    assert 20 <= max(Looking.waiting) < 20 + 2 * 20
    assert Looking not in DataContext.get_current().custom_execution_callback_classes


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("every", [5, 1000])
def test_of_rows_that_go_no_further_nothing_is_kept(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that returns none leaves an empty block. It would wait behind the others, and be held to the end."""
    monkeypatch.setattr(datasets, "EMPTY_BLOCKS", 10)
    Looking.statistics, Looking.waiting, Looking.counted, Looking.empty = [], [], [], []
    with datasets.data_context():
        DataContext.get_current().custom_execution_callback_classes.append(Looking)
        rows = datasets.dataset_of([pa.table({"number": [*range(200)], "every": [every] * 200})])
        rows = rows.map_batches(_Some, **datasets.map_options(Pool(), same_rows=False))
        rows = rows.map_batches(_Slow, fn_constructor_args=(6.0,), **datasets.map_options(Pool()))
        assert sorted(row["number"] for row in rows.iter_rows()) == [*range(0, 200, every)]
    assert max(Looking.empty) < 40
    assert max(Looking.counted) < 20


class _Some:
    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = batch.to_pylist()
        return pa.Table.from_pylist([row for row in rows if row["number"] % row["every"] == 0], schema=batch.schema)


class _Slow:
    def __init__(self, first_seconds: float = 0.02):
        self.seconds = first_seconds

    def __call__(self, batch: pa.Table) -> pa.Table:
        time.sleep(self.seconds)
        self.seconds = 0.02
        return batch
