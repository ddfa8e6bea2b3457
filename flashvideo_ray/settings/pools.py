"""The actor pools of the graph: how many actors a stage has, on what, and who shares cards with whom."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, TypeAdapter, field_validator, model_validator

from flashvideo_ray.settings.kinds import STAGES, Frozen, NonNegative, Positive, Seconds, Stage

BALANCED: tuple[Stage, ...] = ("preview", "refine")
"""The stages whose pools may be sized `auto`."""
_POSITIVE: TypeAdapter[int] = TypeAdapter(Positive)


class Pool(Frozen):
    """One stage's pool of actors: how many, on what, and how they are fed.

    `labels` selects nodes by Ray node labels (`{gpu-tier: large}`; values may be `in(a,b)` or `!in(a,b)`), `fallback`
    lists selectors to try when no such node exists. A GPU pool should always have one: plain `num_gpus: 1` takes any
    card of the cluster. The pool is of fixed size: growing pools start slowly and hold cards they do not use. Only
    between rounds of a job may a size that is `auto` be another one.
    """

    size: Positive | Literal["auto"] = Field(
        1, description="actors; `auto` (preview, refine): as many as do the run soonest on the cards there are"
    )
    num_cpus: NonNegative = 1
    num_gpus: NonNegative = 0
    memory_gib: NonNegative | None = Field(None, description="host memory to reserve for each actor, in GiB")
    labels: dict[str, str] = Field({})
    fallback: tuple[dict[str, str], ...] = ()
    accelerator_type: str | None = None
    resources: dict[str, NonNegative] = Field({})
    batch_size: Positive = Field(1, description="rows a call; each row is still computed by itself")
    in_flight: Positive = Field(
        2,
        description="calls sent to an actor at once, while enough of them wait; 1 leaves a gap between calls",
    )
    time_limit_seconds: Seconds = Field(3600.0, description="for one row; then it is tried anew")
    beside: Stage | None = Field(
        None, description="each actor shares a card with one of this pool's, of which each has a card of its own"
    )
    offload: Literal["none", "model", "group"] = Field("none", description="diffusers' CPU offload, for small cards")
    spot: bool = Field(False, description="whether its nodes are paid at the spot price")

    @field_validator("size", mode="before")
    @classmethod
    def _auto_or_a_number(cls, value: Any) -> Any:
        return value if value == "auto" else _POSITIVE.validate_python(value)  # one message, not one for each kind

    @property
    def actors(self) -> int:
        """The size as a number. What is `auto` has none before it is chosen: see `Pools.sized`."""
        if self.size == "auto":
            raise ValueError("a size of auto is chosen when a round of a job begins")
        return self.size

    @property
    def cores(self) -> int:
        """Cores that one call can use: Ray gives an actor a thread for each whole one of `num_cpus`, at least one."""
        return max(1, math.floor(self.num_cpus))


class Pools(Frozen):
    """The actor pools of the graph. `rate` exists only where a scorer asks for it."""

    text: Pool = Pool()
    preview: Pool = Pool()
    score: Pool = Pool()
    rate: Pool = Pool()
    refine: Pool = Pool()

    @model_validator(mode="after")
    def _sizes_can_be_chosen(self) -> Self:
        for stage in STAGES:
            if getattr(self, stage).size == "auto" and stage not in BALANCED:
                raise ValueError(f"{stage}.size: auto is for {' and '.join(BALANCED)} alone; give {stage} a number")
        return self

    @model_validator(mode="after")
    def _cards_can_be_shared(self) -> Self:
        for stage in STAGES:
            if (host := getattr(self, stage).beside) is not None:
                self._check_beside(stage, host)
        return self

    def _check_beside(self, stage: Stage, host: Stage) -> None:
        pool, other = getattr(self, stage), getattr(self, host)
        if host == stage or other.beside is not None:
            raise ValueError(f"{stage}.beside: {host} has no card of its own; name the pool that has")
        if pool.labels or pool.fallback or pool.accelerator_type or other.fallback:
            raise ValueError(f"{stage}.beside: its nodes are those of {host}, whose labels alone can choose them")
        if pool.size == "auto" or (other.size == "auto" and stage in BALANCED):
            raise ValueError(
                f"{stage}.beside: {stage} has the cards of {host}, so there is nothing to divide between them; "
                "give both sizes that are numbers"
            )
        if other.size != "auto" and pool.size > other.size:
            raise ValueError(f"{stage}.beside: {host} has {other.size} actors, too few for {pool.size} beside them")
        shares = [getattr(self, name).num_gpus for name in (host, *self.guests(host))]
        if not all(shares) or sum(shares) > 1:
            raise ValueError(
                f"{stage}.beside: {host} and those beside it must ask for shares of one card, found num_gpus "
                + " + ".join(f"{share:g}" for share in shares)
            )

    def guests(self, stage: Stage) -> tuple[Stage, ...]:
        """The pools whose actors share the cards of a pool."""
        return tuple(name for name in STAGES if getattr(self, name).beside == stage)

    def cards(self, stage: Stage) -> float:
        """Cards that an actor of a pool takes, on average: its share, or what those beside it leave of a whole card."""
        pool: Pool = getattr(self, stage)
        if not self.guests(stage):
            return pool.num_gpus
        if pool.size == "auto":  # more of them than of those beside them, as a rule
            return 1.0
        beside = [getattr(self, name) for name in self.guests(stage)]
        return 1 - sum(each.num_gpus * each.actors for each in beside) / pool.actors

    @property
    def auto(self) -> tuple[Stage, ...]:
        """The stages whose size is chosen when a round of a job begins."""
        return tuple(stage for stage in BALANCED if getattr(self, stage).size == "auto")

    def sized(self, sizes: Mapping[Stage, int] | None = None) -> Self:
        """The pools with these sizes in the place of `auto`, or with the fewest actors that work: see `least`."""
        chosen = {stage: (sizes or {}).get(stage, self.least(stage)) for stage in self.auto}
        return self.model_copy(
            update={stage: getattr(self, stage).model_copy(update={"size": n}) for stage, n in chosen.items()}
        )

    def least(self, stage: Stage) -> int:
        """How many actors it must have at least: as many as the largest pool beside it."""
        return max([1, *(getattr(self, guest).actors for guest in self.guests(stage))])

    def where(self, stage: Stage) -> Pool:
        """The pool that says on which nodes and cards a stage runs: its own, or the one that it is beside."""
        return getattr(self, getattr(self, stage).beside or stage)
