"""Pools that have no place on the cluster: what is missing, for how long, and what others hold meanwhile."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from flashvideo_ray.accounting.terminal import duration
from flashvideo_ray.graph import cluster
from flashvideo_ray.settings import Pools, Stage

_SAY_SECONDS = 60.0
_LOOK_SECONDS = 5.0
log = logging.getLogger("flashvideo_ray")


class Placement:
    """Looks again and again, says so each minute, and is `over` when that took longer than `patience` seconds.

    `misplaced` tells which pools have no room, one line each; None for the patience: no limit.
    """

    def __init__(
        self,
        pools: Pools,
        patience: float | None,
        misplaced: Callable[[Pools, Sequence[Stage]], list[str]] = cluster.misplaced,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._pools = pools
        self._patience = patience
        self._misplaced = misplaced
        self._clock = clock
        self._since: float | None = None
        self._said = self._looked = clock()
        self.over: str | None = None

    def look(self, actors: Mapping[Stage, int]) -> str | None:
        """`actors` is how many are at work of each pool that has something to do: what is done needs no place.

        Returns what there is to say, if anything is, each minute.
        """
        now = self._clock()
        if now - self._looked < _LOOK_SECONDS:
            return None
        self._looked = now
        missing = any(count < getattr(self._pools, stage).actors for stage, count in actors.items())
        problems = self._misplaced(self._pools, tuple(actors)) if missing else []
        if not problems:
            self._since = None
            return None
        if self._since is None:
            self._since = self._said = now
        waited = now - self._since
        if self._patience is not None and waited >= self._patience:
            self.over = "; ".join(problems) + f": no node came that has it in {duration(waited)}"
        if now - self._said < _SAY_SECONDS:
            return None
        self._said = now
        held = [f"{stage} {count} times {self._describe(stage)}" for stage, count in actors.items() if count]
        meanwhile = f"; meanwhile these are held: {', '.join(held)}" if held else ""
        return "; ".join(problems) + f"; waiting for {duration(waited)}{meanwhile}"

    @property
    def seconds(self) -> float:
        """For how long a pool has had no place; 0 where all have."""
        return 0.0 if self._since is None else self._clock() - self._since

    def _describe(self, stage: Stage) -> str:
        return cluster.describe(getattr(self._pools, stage))
