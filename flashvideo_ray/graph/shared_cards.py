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
    shares: bool = False
    """Whether they have a whole card, however little of it they ask for."""


def units(pools: Pools, stages: Sequence[Stage]) -> list[Unit]:
    """What there is to place: pools by themselves, and the cards that are shared, alike ones as one pool.

    What is beside a pool that is not among the stages has such a pool's cards all the same.
    """
    found = []
    for host in dict.fromkeys(getattr(pools, stage).beside or stage for stage in stages):
        if not pools.guests(host):
            found.append(Unit((host,), getattr(pools, host)))
            continue
        members = [stage for stage in (host, *pools.guests(host)) if stage in stages]
        most = max(getattr(pools, stage).actors for stage in members)
        cards = Counter(
            tuple(stage for stage in members if getattr(pools, stage).actors > number) for number in range(most)
        )
        found += [Unit(own, _together(pools, host, own, size), shares=True) for own, size in cards.items()]
    return found


def card_of(pools: Pools, stage: Stage, stages: Sequence[Stage]) -> Pool:
    """What an actor of a pool asks for; where others are beside it, a whole card with those that are among `stages`."""
    guests = pools.guests(stage)
    if not guests:
        own: Pool = getattr(pools, stage)
        return own
    return _together(pools, stage, [stage, *(guest for guest in guests if guest in stages)], 1)


def _together(pools: Pools, host: Stage, members: Sequence[Stage], size: int) -> Pool:
    """A whole card where the host's are, and what else the members ask for."""
    own: list[Pool] = [getattr(pools, stage) for stage in members]
    resources = Counter[str]()
    for pool in own:
        resources.update(pool.resources)
    asked = {
        "num_cpus": sum(pool.num_cpus for pool in own),
        "num_gpus": 1,
        "memory_gib": sum(pool.memory_gib or 0 for pool in own) or None,
        "resources": dict(resources),
    }
    card: Pool = getattr(pools, host)
    return card.model_copy(update={"size": size, "beside": None, **asked})


class SharedCards:
    """Reserves the shared cards of a graph's pools while it runs: a card that is not there yet is waited for."""

    def __init__(self, pools: Pools, stages: Sequence[Stage], needs: Callable[[Pool], dict[str, float]]):
        self._units = [unit for unit in units(pools, stages) if unit.shares]
        self._needs = needs
        self._cards: dict[Stage, list[PlacementGroup]] = {}
        self._all: list[PlacementGroup] = []

    def __enter__(self) -> Self:
        for unit in self._units:
            for _ in range(unit.pool.actors):
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
