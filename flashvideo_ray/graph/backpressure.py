"""Which rows Ray Data hands on: none far ahead of the next pool, and of the last ones none to an actor that computes.

Ray Data asks its policies at each step of its scheduler. They use what Ray calls its own (`_topology`, the ranks of a
pool's actors), as no release that `pyproject.toml` allows has another way; a job must not end for its lack.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ray.data import DataContext
from ray.data._internal.execution import backpressure_policy

# Rows that may wait after a step, each in a block of its own: small blocks are in the driver's memory, at 30 KB, while
# Ray Data goes by bytes. It is looked at between two reads, of which one may take all that a task has left (1,000 rows
# of `bundles`). None is set for previews: a stage 1 that is ahead gives its cards back sooner.
WAITING_ROWS = {"_unchanged": 200, "EncodeTexts": 2000}
# Ranks of an actor in its pool. Ray Data's own are how many calls it has, and come back when one begins or ends.
_FREED, _SENT, _SEEN = 0.5, 1, 1.5
# From one question about a pool to the next: while a row waits, while none does, and where no answer came.
_ASKING_SECONDS, _LOOKING_SECONDS, _SILENT_SECONDS = 0.05, 1.0, 1.0
_COMPUTING = "flashvideo_ray.computing"  # in a context: the name of its function

Computing = Callable[[], Collection[str]]
"""The ids of the actors whose device is not free."""

_functions: dict[str, Computing | None] = {}  # not in the contexts: Ray Data hands copies of those to each call


@contextmanager
def policies(context: DataContext, computing: Computing | None) -> Iterator[None]:
    """Give a context both policies. Without `computing` an actor has its device until its call ends."""
    enabled = backpressure_policy.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY
    before = context.get_config(enabled, backpressure_policy.ENABLED_BACKPRESSURE_POLICIES)
    context.set_config(enabled, [*before, _NoFurtherAhead, _NoneBehindAnother])
    name = uuid.uuid4().hex
    context.set_config(_COMPUTING, name)
    _functions[name] = computing
    try:
        yield
    finally:
        del _functions[name]


def rows_of(queue: Any) -> int:
    """How many rows wait in one of Ray Data's queues, whose blocks may be empty."""
    return sum(bundle.num_rows() for bundle in queue._queues)


class _NoFurtherAhead(backpressure_policy.BackpressurePolicy):
    """Rows are cut from their tables, and texts encoded, as the next pool takes them."""

    def max_task_output_bytes_to_read(self, op: Any) -> int | None:
        most = WAITING_ROWS.get(op.name.removeprefix("MapBatches(").removesuffix(")"))
        return 0 if most is not None and self._topology[op].total_enqueued_output_blocks() >= most else None


class _NoneBehindAnother(backpressure_policy.BackpressurePolicy):
    """Of the last rows, none is sent to an actor that computes: it would wait there for its end while others are free.

    While at least as many rows wait as a pool has actors, the next one is with each actor before it is free.
    """

    def __init__(self, context: DataContext, *told: Any):
        super().__init__(context, *told)
        self._computing = _functions.get(context.get_config(_COMPUTING))
        self._asked: dict[Any, tuple[float, bool]] = {}  # by pool: when about it, and whether an answer came

    def can_add_input(self, op: Any) -> bool:
        with suppress(Exception):
            for pool in op.get_autoscaling_actor_pools():
                ranks = pool._alive_actors_to_in_flight_tasks_heap  # the first one gets the next row
                [queue] = self._topology[op].input_queues
                waiting = rows_of(queue)
                if waiting >= pool.max_size() or not ranks:
                    return True
                if pool.max_actor_concurrency() > 1:  # else a call begins when the one before it has ended
                    self._look(pool, ranks, _ASKING_SECONDS if waiting else _LOOKING_SECONDS)
                return not waiting or ranks.peekitem()[1] < _SENT
        return True

    def _look(self, pool: Any, ranks: Any, seconds: float) -> None:
        """Of the actors with one call, find those with a device that is free: they rank behind those without a call.

        Such a call is being stored, or it has ended, which Ray Data learns one or two steps of 0.1 s later. A call that
        was never seen to compute may be on its way. Where no answer comes, all is as it was, and nobody asks for a
        while: the scheduler waits for answers.
        """
        asked, answered = self._asked.get(pool, (0.0, True))
        if self._computing is None or time.monotonic() - asked < (seconds if answered else _SILENT_SECONDS):
            return
        one_call = [(actor, rank) for actor, rank in ranks.items() if _FREED <= rank <= _SEEN]
        if not one_call:
            return
        answered = False
        with suppress(Exception):
            computing = self._computing()
            answered = True
            for actor, rank in one_call:
                if actor._actor_id.hex() in computing:
                    ranks[actor] = _SEEN
                elif rank == _SEEN:
                    ranks[actor] = _FREED
        self._asked[pool] = time.monotonic(), answered
