"""For how long actors hold their cards: what a pool costs and what a budget counts. Pure bookkeeping, no Ray."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from flashvideo_ray.graph.health import Worker
from flashvideo_ray.ledger.claim import clock
from flashvideo_ray.settings import STAGES, Stage


@dataclass
class _Held:
    seconds: float = 0.0  # by actors that hold nothing any more
    now: dict[str, tuple[str, float]] = field(default_factory=dict)  # by actor: the node of its card, and since when


class Holdings:
    """An actor holds its card from when it takes work until the round ends, also while its process is replaced.

    It holds none while its node is not there: nobody is paid for a spot machine that was taken back.
    """

    def __init__(self, clock: Callable[[], float] = clock):
        self._clock = clock
        self._held: defaultdict[Stage, _Held] = defaultdict(_Held)

    def joined(self, stage: Stage, worker: Worker) -> None:
        """An actor takes work: for the first time, in a new process, or on another node."""
        held = self._held[stage]
        if worker.actor in held.now and held.now[worker.actor][0] != worker.node:
            self._release(held, worker.actor)
        held.now.setdefault(worker.actor, (worker.node, self._clock()))

    def nodes(self, there: Collection[str]) -> None:
        """Those that are there now: actors of others hold nothing until they join again."""
        for held in self._held.values():
            for actor in [actor for actor, (node, _) in held.now.items() if node and node not in there]:
                self._release(held, actor)

    def _release(self, held: _Held, actor: str) -> None:
        _, since = held.now.pop(actor)
        held.seconds += self._clock() - since

    def actors(self, stage: Stage) -> int:
        """How many hold a card now."""
        return len(self._held[stage].now)

    def seconds(self) -> dict[Stage, float]:
        """That each stage's actors have held their cards by now, all together."""
        now = self._clock()
        return {
            stage: self._held[stage].seconds + sum(now - since for _, since in self._held[stage].now.values())
            for stage in STAGES
        }
