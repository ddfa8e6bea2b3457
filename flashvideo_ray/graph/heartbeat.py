"""What happens once a second while a graph runs: rows become durable, progress is shown, and the end is looked for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Self

import ray

from flashvideo_ray.errors import in_a_line
from flashvideo_ray.graph import cluster, signals
from flashvideo_ray.graph.arrivals import Arrivals
from flashvideo_ray.graph.health import Fault
from flashvideo_ray.graph.placement import Placement
from flashvideo_ray.graph.progress import Progress
from flashvideo_ray.graph.tracker import StageState
from flashvideo_ray.ledger import jobs
from flashvideo_ray.ledger.claim import Claim
from flashvideo_ray.ledger.patience import LAST_SECONDS
from flashvideo_ray.settings import Stage

_BEAT_SECONDS = 1.0
_NODES_SECONDS = 5.0
_LONGEST_PAUSE = 60.0  # between tries of what goes wrong
_LAST_ROWS_SECONDS = 30.0  # in which rows come out of the graph, once nothing more begins in it
log = logging.getLogger("flashvideo_ray")


def used(states: Mapping[Stage, StageState]) -> jobs.Used:
    """What the pools of one graph held and used."""
    return {stage: (state.held_seconds, state.busy_seconds) for stage, state in states.items()}


class Heartbeat:
    """Threads, so that what looks for the end of the job waits for no store and for no console that is full.

    `over`, `stopped` and `closed` are what the tracker says of them, `no_place` why a pool can have no actor, which
    ends the job, and `given_up` that the last rows of a graph that has enough do not come: they are with actors that
    have no node any more. `came` is for who takes the rows to set. `tell` tells others how the stages were when the
    tracker answered last, whether or not it answers now.
    """

    def __init__(
        self,
        claim: Claim,
        tracker: Any,
        arrivals: Arrivals,
        progress: Progress,
        record: jobs.Record,
        placement: Placement,
        tell: Callable[[Mapping[Stage, StageState]], None],
    ):
        self._claim, self._tracker = claim, tracker
        self._arrivals, self._progress = arrivals, progress
        self._record = record
        self._placement = placement
        self._tell = tell
        self._states: Mapping[Stage, StageState] = {}
        self.no_place: str | None = None
        self.given_up = False
        self._waits = threading.current_thread()
        self.over: tuple[str, int] | None = None
        self.stopped: tuple[Fault, int] | None = None
        self.closed: int | None = None
        self._final_since: float | None = None  # since when one of these is there
        self.came = time.monotonic()  # when rows came out of the graph last
        self._stop = threading.Event()
        acts = {
            "ledger not written": (_BEAT_SECONDS, self._write),
            "not known who is rejected": (_BEAT_SECONDS, arrivals.take),
            "progress not shown": (_BEAT_SECONDS, self._show),
            "not known whether the job can go on": (_BEAT_SECONDS, self._look),
            "not known which nodes there are": (_NODES_SECONDS, self._count_nodes),
            "nobody is told how the job fares": (_BEAT_SECONDS, lambda: self._tell(self._states)),
        }
        self._threads = [
            threading.Thread(target=self._beat, args=(trouble, *act), daemon=True) for trouble, act in acts.items()
        ]
        self._threads.append(threading.Thread(target=self._watch, daemon=True))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        deadline = time.monotonic() + LAST_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with suppress(Exception):
            self._arrivals.take()
        with suppress(Exception):
            self._show(last=True)
        with suppress(Exception):
            self._tell(self._states)  # what came in the last second, too

    def _beat(self, trouble: str, seconds: float, act: Callable[[], None]) -> None:
        """Errors are told in a line and left to a later beat: rows stay in memory until they are written."""
        pause = seconds
        while not self._stop.wait(pause):
            try:
                act()
                pause = seconds
            except Exception as error:
                pause = min(2 * pause, _LONGEST_PAUSE)
                log.warning("%s, trying again in %.0f s: %s", trouble, pause, in_a_line(error))

    def _watch(self) -> None:
        """A job that has lost its run pays for nothing more, even if no row comes for an hour."""
        while not self._stop.is_set():
            if self._claim.lost.wait(_BEAT_SECONDS):
                if not self._stop.is_set():
                    signals.interrupt(self._waits)
                return

    def _write(self) -> None:
        self._arrivals.write_if_due()
        self._record.flush_if_due()

    def _show(self, last: bool = False) -> None:
        states = ray.get(self._tracker.tick.remote())
        self._states = states
        self._record.used(used(states))
        self._progress.update(states, self._arrivals.ended, last)

    def _count_nodes(self) -> None:
        if nodes := cluster.alive():  # an answer without even the driver's node is none
            ray.get(self._tracker.nodes.remote(nodes))

    def _look(self) -> None:
        self.over = ray.get(self._tracker.over.remote())
        self.stopped = ray.get(self._tracker.stopped.remote())
        self.closed = ray.get(self._tracker.closed.remote())
        states: Mapping[Stage, StageState] = ray.get(self._tracker.tick.remote())
        left = self._progress.expected(states, self._arrivals.ended)
        told = self._placement.look({of: states[of].actors for of, total in left.items() if states[of].done < total})
        if told is not None:
            log.warning("%s", told)
        if self._placement.over is not None and self.no_place is None:
            self.no_place = self._placement.over
            signals.interrupt(self._waits)  # for rows that do not come
        if self.over is None and self.stopped is None and self.closed is None:
            self._final_since = None
        elif self._final_since is None:
            self._final_since = time.monotonic()
        elif not self.given_up and time.monotonic() - max(self._final_since, self.came) > _LAST_ROWS_SECONDS:
            self.given_up = True
            signals.interrupt(self._waits)
