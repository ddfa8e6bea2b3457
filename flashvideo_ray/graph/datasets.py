"""Ray Data, as a job uses it: rows of megabytes, one in a block, through actor pools."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.map_operator import MapOperator

from flashvideo_ray.graph import backpressure, cluster
from flashvideo_ray.settings import Pool

# One call computes while the one before it is being encoded and uploaded.
PUBLISHING_CALLS = 2
EMPTY_BLOCKS = 100  # that may wait before a pool, of calls that returned no row; or a quarter of all blocks that do
# Ray Data's own tasks between the pools move rows and compute nothing. They ask for no CPU, as the pools may hold them
# all, and few of them run at once.
GLUE: dict[str, Any] = {"num_cpus": 0, "compute": TaskPoolStrategy(2)}


@contextmanager
def data_context(computing: Callable[[], Collection[str]] | None = None) -> Iterator[None]:
    """Within it Ray Data is for long rows: one in a block, in no order, waiting as long as it takes, and silent.

    `computing` tells the ids of actors whose device is not free. It is asked while few rows wait; see `backpressure`.
    Other datasets of this process, made before or after, are as they were, and so is what Ray Data says of them.
    """
    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = False
    # In bytes: every row is a block. `repartition` would do it in a task that asks for a whole CPU.
    context.target_max_block_size = 1
    context.execution_no_progress_timeout_s = 24 * 3600  # waiting for a spot card can take hours
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []  # hints about memory and long calls: both are meant
    context.custom_execution_callback_classes.append(_Tidy)
    with (
        backpressure.policies(context, computing),
        DataContext.current(context),
        warnings.catch_warnings(),
        _silent_logs(),
    ):
        # It warns of pools that are larger than a small run needs.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"ray\.data\.")
        # Nothing else of this release gives each actor of a pool a place of its own.
        warnings.filterwarnings("ignore", message="`ray_remote_args_fn` is deprecated")
        # Else a row would wait for an actor of the node that it is on, while those of other nodes are free.
        warnings.filterwarnings("ignore", message="`ExecutionOptions.actor_locality_enabled` is deprecated")
        context.execution_options.actor_locality_enabled = False
        yield


class _Tidy(ExecutionCallback):
    """Drops what Ray Data keeps in the driver until a job's end, a little of each row.

    Statistics of blocks are for `Dataset.stats`, which no job asks for: 1 KB a row and operator. A call that returns no
    row leaves a block all the same, which waits for the next pool as if it had one, and is held to the end: 17 KB.
    """

    def on_execution_step(self, executor: Any) -> None:
        for operator, state in executor._topology.items():
            # No release that `pyproject.toml` allows has another way to them; a job must not end for its lack.
            with suppress(Exception):
                for blocks in operator.get_stats().values():
                    blocks.clear()
                if isinstance(operator, MapOperator) and not operator._inputs_complete:
                    _drop_empty(operator, state)


def _drop_empty(operator: Any, state: Any) -> None:
    [queue] = state.input_queues
    if len(queue) - backpressure.rows_of(queue) > max(EMPTY_BLOCKS, len(queue) // 4):
        bundles = [queue.pop() for _ in range(len(queue))]
        for bundle in sorted(bundles, key=lambda each: each.num_rows() != 0):  # the others stay in their order
            queue.append(bundle)
        for _ in range(sum(bundle.num_rows() == 0 for bundle in bundles)):
            state.dispatch_next_task()  # begins none, and needs no actor that is free
            _clear_empty(operator._block_ref_bundler)  # at once: the next one is merged with what is there
    _clear_empty(operator._block_ref_bundler)
    if not operator._block_ref_bundler.num_blocks():
        for bundle in [each for each in operator.metrics._internal_inqueues[0] if each.num_rows() == 0]:
            operator.metrics.on_input_dequeued(bundle, input_index=0)


def _clear_empty(bundler: Any) -> None:
    if bundler.num_blocks() and bundler.num_rows() == 0:
        bundler.clear()


@contextmanager
def _silent_logs() -> Iterator[None]:
    every, bars = logging.getLogger("ray.data"), logging.getLogger("ray.data._internal.progress")
    pools = logging.getLogger("ray.data._internal.execution.operators.map_operator")
    before = every.level, bars.level
    every.setLevel(logging.WARNING)
    bars.setLevel(logging.ERROR)  # they say that they are off
    pools.addFilter(_is_news)
    try:
        yield
    finally:
        every.setLevel(before[0])
        bars.setLevel(before[1])
        pools.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    # It takes a pool that asks for cores and a card for an experiment.
    return not record.getMessage().startswith("Specifying both num_cpus and num_gpus for map tasks is experimental")


def dataset_of(pieces: Iterable[pa.Table]) -> ray.data.Dataset:
    """A dataset of some rows at a time, with every row in a block of its own. Call it within `data_context`."""
    handed_over: list[Any] = [ray.put(piece) for piece in pieces]  # one by one: no list of all pieces beside the rows
    return ray.data.from_arrow_refs(handed_over).map_batches(
        _unchanged, batch_size=None, batch_format="pyarrow", **GLUE
    )


def _unchanged(batch: pa.Table) -> pa.Table:
    return batch  # what comes out of a task is cut into blocks


def map_options(
    pool: Pool, calls: int = 1, *, same_rows: bool = True, cards: Callable[[], dict[str, Any]] | None = None
) -> dict[str, Any]:
    """A pool as arguments of `Dataset.map_batches`. `calls` may run in one actor at the same time.

    `same_rows`: a call returns as many rows as it gets. `cards` gives each actor its place where the pool shares cards.
    """
    options: dict[str, Any] = {
        "batch_size": pool.batch_size,
        "batch_format": "pyarrow",
        "compute": ActorPoolStrategy(
            size=pool.actors,
            max_tasks_in_flight_per_actor=max(pool.in_flight, calls),
            max_concurrent_calls_per_actor=calls,
            enable_true_multi_threading=calls > 1,
        ),
        "udf_modifying_row_count": not same_rows,
    }
    if cards is None:
        return options | cluster.placement(pool)
    placed = pool.model_copy(update={"labels": {}, "fallback": (), "accelerator_type": None})
    return options | cluster.placement(placed) | {"ray_remote_args_fn": cards}
