"""Cards that several pools share, one actor of each on a card: what they take together, and the cards reserved for it.

Left to itself Ray fills one card before it begins the next: on a node of four cards, four actors that ask for half a
card each and four more that do would come to two cards of the one kind and two of the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Any, Self

import ray.util
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from flashvideo_ray.settings import Pool, Pools, Stage


@dataclass(frozen=True)
class Unit:
    """Actors that are placed together, as one pool that asks for what they take."""

    stages: tuple[Stage, ...]
    pool: Pool


def units(pools: Pools, stages: Sequence[Stage]) -> list[Unit]:
    """What there is to place: pools by themselves, and the cards that are shared, alike ones as one pool."""
    found = []
    for stage in stages:
        pool: Pool = getattr(pools, stage)
        if pool.beside is not None and pool.beside in stages:
            continue
        if not pools.guests(stage):
            found.append(Unit((stage,), pool))
            continue
        guests = [guest for guest in pools.guests(stage) if guest in stages]
        cards = Counter(
            (stage, *(guest for guest in guests if getattr(pools, guest).size > number)) for number in range(pool.size)
        )
        found += [Unit(members, _together(pools, members, size)) for members, size in cards.items()]
    return found


def _together(pools: Pools, members: Sequence[Stage], size: int) -> Pool:
    """A whole card, and what else the members ask for."""
    host, *guests = (getattr(pools, stage) for stage in members)
    resources = Counter[str]()
    for pool in (host, *guests):
        resources.update(pool.resources)
    asked = {
        "num_cpus": sum(pool.num_cpus for pool in (host, *guests)),
        "num_gpus": 1,
        "memory_gib": sum(pool.memory_gib or 0 for pool in (host, *guests)) or None,
        "resources": dict(resources),
    }
    return host.model_copy(update={"size": size, "beside": None, **asked})


class SharedCards:
    """Reserves the shared cards of a graph's pools while it runs: a card that is not there yet is waited for."""

    def __init__(self, pools: Pools, stages: Sequence[Stage], needs: Callable[[Pool], dict[str, float]]):
        self._units = [unit for unit in units(pools, stages) if pools.guests(unit.stages[0])]
        self._needs = needs
        self._cards: dict[Stage, list[PlacementGroup]] = {}
        self._all: list[PlacementGroup] = []

    def __enter__(self) -> Self:
        for unit in self._units:
            for _ in range(unit.pool.size):
                labels = [dict(unit.pool.labels)] if unit.pool.labels else None
                card = ray.util.placement_group([self._needs(unit.pool)], bundle_label_selector=labels)
                self._all.append(card)
                for stage in unit.stages:
                    self._cards.setdefault(stage, []).append(card)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for card in self._all:
            ray.util.remove_placement_group(card)

    def next_of(self, stage: Stage) -> Callable[[], dict[str, Any]] | None:
        """What gives each new actor of a pool its card, as Ray's options; None for a pool that shares none."""
        if not any(stage in unit.stages for unit in self._units):
            return None
        numbers = count()

        def placed() -> dict[str, Any]:
            cards = self._cards[stage]
            card = cards[next(numbers) % len(cards)]
            return {"scheduling_strategy": PlacementGroupSchedulingStrategy(card, 0)}

        return placed
