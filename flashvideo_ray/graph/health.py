"""Where a stage cannot work, and when it cannot work at all. Pure bookkeeping, no Ray."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from flashvideo_ray.settings import Stage

Order = Literal["go", "stop", "leave"]
"""What a call is to do: begin; let its row pass, as the job ends; or end its process, as the node is left out."""

_QUIET_SECONDS = 5.0  # rows are on their way from one stage to the next for less
_LONGEST_PAUSE = 30.0


@dataclass(frozen=True)
class Worker:
    """An actor, which keeps its name when its process is replaced, and the node that it runs on."""

    actor: str = ""
    node: str = ""
    host: str = ""


@dataclass(frozen=True)
class Fault:
    """Why a stage does not run on a node, or, where no node is named, on none."""

    stage: Stage
    cause: str
    node: str | None = None
    host: str | None = None

    def __str__(self) -> str:
        return f"{self.stage} on {self.host}: {self.cause}" if self.host else f"{self.stage}: {self.cause}"


_Place = tuple[Stage, str]  # a stage on a node


class Health:
    """Counts starts that came to nothing, and failures that are alike, by stage and node.

    A node on which a stage fails to load, or fails `limit` times in a row with one class of error while others work, is
    left out: its actors take no more rows. They wait until nothing else is left to do and are then dismissed, so that
    a new round can do what they held. A stage that fails alike everywhere is stopped, and the job with it. `sizes` is
    how many actors each pool has.
    """

    def __init__(self, limit: int, sizes: Mapping[Stage, int], clock: Callable[[], float] = time.monotonic):
        self._limit = limit
        self._sizes = sizes
        self._clock = clock
        self._last_event = clock()
        self._loading: dict[tuple[Stage, str], Worker] = {}  # by stage and actor
        self._working: defaultdict[_Place, set[str]] = defaultdict(set)  # actors
        self._waiting: defaultdict[Stage, dict[str, str]] = defaultdict(dict)  # actors that could not load: their node
        self._deaths: Counter[_Place] = Counter()  # while loading, since one loaded
        self._out: dict[_Place, Fault] = {}
        self._expelled: set[_Place] = set()  # of those left out: for their failures, however well they load
        self._open: dict[tuple[Stage, str], str] = {}  # the actor of each call
        self._alike: dict[Stage, tuple[str, Counter[str]]] = {}  # class of error, and how often on each node
        self._alike_here: dict[_Place, tuple[str, int]] = {}
        self.stopped: Fault | None = None

    def starting(self, stage: Stage, worker: Worker) -> float | None:
        """A process of an actor is about to load. Returns the seconds that it is to pause before; None: not to load."""
        self._last_event = self._clock()
        place = (stage, worker.node)
        self._working[place].discard(worker.actor)
        if (stage, worker.actor) in self._loading:
            self._deaths[place] += 1
        if self._deaths[place] >= self._limit:
            self._give_up(stage, worker, f"its process died {self._deaths[place]} times in a row while loading")
        here_before = self._waiting[stage].get(worker.actor) == worker.node
        if place in self._expelled or (place in self._out and (here_before or not self._working[place])):
            self._loading.pop((stage, worker.actor), None)
            self._waiting[stage][worker.actor] = worker.node
            return None
        self._waiting[stage].pop(worker.actor, None)
        self._loading[stage, worker.actor] = worker
        return min(2.0 ** (self._deaths[place] - 1), _LONGEST_PAUSE) if self._deaths[place] else 0.0

    def not_loaded(self, stage: Stage, worker: Worker, cause: str) -> None:
        """A process tried to load, more than once, and could not."""
        self._last_event = self._clock()
        self._loading.pop((stage, worker.actor), None)
        self._give_up(stage, worker, cause)

    def joined(self, stage: Stage, worker: Worker) -> None:
        """A process has loaded and takes work."""
        self._last_event = self._clock()
        self._loading.pop((stage, worker.actor), None)
        self._working[stage, worker.node].add(worker.actor)
        self._deaths.pop((stage, worker.node), None)

    def began(self, stage: Stage, clip_id: str, worker: Worker) -> Order:
        """A call is about to begin; whether it is to."""
        self._last_event = self._clock()
        if self.stopped is not None:
            return "stop"
        if (stage, worker.node) in self._expelled:
            return "leave"
        self._open[stage, clip_id] = worker.actor
        return "go"

    def ended(self, stage: Stage, clip_id: str, worker: Worker, error: tuple[str, str] | None) -> None:
        """A call ended, well or with a class of error and a message."""
        self._last_event = self._clock()
        self._open.pop((stage, clip_id), None)
        place = (stage, worker.node)
        if error is None:
            self._alike.pop(stage, None)
            self._alike_here.pop(place, None)
            return
        kind, message = error
        before, here = self._alike_here.get(place, (kind, 0))
        here = here + 1 if before == kind else 1
        self._alike_here[place] = (kind, here)
        before, nodes = self._alike.get(stage, (kind, Counter()))
        if before != kind:
            nodes = Counter()
        nodes[worker.node] += 1
        self._alike[stage] = (kind, nodes)
        self._judge(place, worker, kind, message, here, nodes)

    def _judge(self, place: _Place, worker: Worker, kind: str, message: str, here: int, nodes: Counter[str]) -> None:
        """One node's fault, or everybody's: a bad node may fail faster than the others can succeed."""
        stage = place[0]
        alone = not any(actors for (of, node), actors in self._working.items() if of == stage and node != worker.node)
        total = nodes.total()
        elsewhere = total - max(nodes.values())
        if total >= self._limit and (alone or elsewhere >= min(2, self._limit - 1)):
            self.stopped = self.stopped or Fault(stage, f"{kind}, {total} times in a row: {message}")
        elif here >= self._limit and not alone:
            self._out[place] = Fault(stage, f"{kind}, {here} times in a row: {message}", worker.node, worker.host)
            self._expelled.add(place)
            del nodes[worker.node]

    def _give_up(self, stage: Stage, worker: Worker, cause: str) -> None:
        self._waiting[stage][worker.actor] = worker.node
        self._out.setdefault((stage, worker.node), Fault(stage, cause, worker.node, worker.host))

    def dismissed(self, stage: Stage) -> bool:
        """Whether an actor that waits, because its node is left out, may end, and the round with it.

        That is when no other of its pool is left, or when all others are done: nothing loads, no call is open, and for
        some seconds nothing has come.
        """
        if len(self._waiting[stage]) >= self._sizes.get(stage, 1):
            return True
        waiting = set().union(*self._waiting.values())
        if self._loading or any(actor not in waiting for actor in self._open.values()):
            return False
        return self._clock() - self._last_event >= _QUIET_SECONDS

    @property
    def faults(self) -> list[Fault]:
        """What is left out: a node where nobody of the stage works now, or that fails whatever it gets."""
        return [fault for place, fault in self._out.items() if place in self._expelled or not self._working[place]]
