"""When a job has enough: so many clips accepted, or so many hours of cards spent. Pure bookkeeping, no Ray."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Self

from flashvideo_ray.errors import InputError
from flashvideo_ray.graph.holdings import Holdings
from flashvideo_ray.ledger.shard import Shard
from flashvideo_ray.settings import Pools, Stage

Answer = Literal["go", "wait", "stop"]


class QuotaError(InputError):
    """A quota that cannot be read."""


@dataclass(frozen=True)
class Quota:
    """End when the run has `accept` rendered clips, or when this job's pools have held `unit`s for `hours`."""

    accept: int | None = None
    hours: float | None = None
    unit: Literal["gpu", "cpu"] = "gpu"

    @classmethod
    def parse(cls, accept: int | None = None, budget: str | None = None) -> Self | None:
        """Read `--accept` and `--budget '200 gpu-hours'`; None if neither is given. Raises QuotaError."""
        if accept is None and budget is None:
            return None
        if accept is not None and accept < 1:
            raise QuotaError(f"--accept {accept}: give a number of clips, at least 1")
        if budget is None:
            return cls(accept)
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(gpu|cpu)-hours?\s*", budget)
        if found is None or not 0 < float(found[1]) <= 1e9:
            raise QuotaError(f"--budget {budget!r}: write it like '200 gpu-hours', or '8 cpu-hours'")
        return cls(accept, float(found[1]), "gpu" if found[2] == "gpu" else "cpu")

    def part(self, shard: Shard | None) -> Self:
        """That of a job on a share of the prompts: a share of the clips, and the hours as they are, of this job."""
        return self if shard is None or self.accept is None else replace(self, accept=shard.part_of(self.accept))

    def spent(self, pools: Pools, held_seconds: Mapping[Stage, float]) -> tuple[float, str] | None:
        """The share of the budget that actors have held, and the budget in words; None without one."""
        if self.hours is None:
            return None
        return self.held(pools, held_seconds) / self.hours, f"{self.hours:g} {self.unit}-hours"

    def held(self, pools: Pools, held_seconds: Mapping[Stage, float]) -> float:
        """Hours of cards, or of cores, that actors have held."""
        return sum(seconds * units(pools, stage, self.unit) for stage, seconds in held_seconds.items()) / 3600


def units(pools: Pools, stage: Stage, unit: Literal["gpu", "cpu"]) -> float:
    """What an actor of a pool holds: cards, or cores."""
    cores: int = getattr(pools, stage).cores
    return pools.cards(stage) if unit == "gpu" else cores


class Gate:
    """Answers each call of stage 1 and 2 whether it is still wanted.

    Stage 1 waits while the survivors at hand, and as many of the previews under way as have survived so far, would do;
    it goes on if one fails. Stage 2 begins no more clips than are missing. `rendered` and `survivors` are those that
    the job found, `spent_hours` what its earlier rounds held, `holdings` what this one does.
    """

    def __init__(
        self,
        quota: Quota,
        pools: Pools,
        rendered: int,
        survivors: set[str],
        spent_hours: float = 0.0,
        holdings: Holdings | None = None,
    ):
        self._quota = quota
        self._pools = pools
        self.holdings = holdings or Holdings()
        self._spent_before = spent_hours
        self._rendered = rendered
        self._survivors = set(survivors)  # neither rendered nor failed yet, those in stage 2 included
        self._refining: set[str] = set()
        self._prompts: set[str] = set()  # with a preview begun: its other candidates are wanted too
        self._undecided: set[str] = set()  # previews under way, from stage 1 to the last score
        self._judged = self._kept = 0

    def admit(self, stage: Stage, clip_id: str, prompt: str, anyway: bool = False) -> Answer:
        """Whether a call of `preview` or `refine` may begin; it is to ask again after `wait`.

        `anyway`: nothing goes on whose end it could wait for. What it counts on may have come out without stage 2, or
        stand behind the very calls that wait.
        """
        if self.over is not None:
            return "stop"
        if self._quota.accept is None:
            return "go"
        missing = self._quota.accept - self._rendered
        if stage == "refine":
            if anyway or clip_id in self._refining or len(self._refining) < missing:
                self._refining.add(clip_id)
                return "go"
            return "wait"
        # One more of each, so that it is 1 at the start: rather too few previews than too many.
        keep_rate = (self._kept + 1) / (self._judged + 1)
        enough = len(self._survivors) + keep_rate * len(self._undecided) >= missing
        if anyway or prompt in self._prompts or not enough:
            self._prompts.add(prompt)
            self._undecided.add(clip_id)
            return "go"
        return "wait"

    def decided(self, clip_id: str) -> None:
        """A preview is under way no more: it was judged, by a call that was repeated."""
        self._undecided.discard(clip_id)

    def judged(self, clip_id: str, survives: bool) -> None:
        """A preview was let through to stage 2, or not."""
        self.decided(clip_id)
        self._judged += 1
        self._kept += survives
        if survives:
            self._survivors.add(clip_id)

    def lost(self, clip_id: str) -> None:
        """A candidate failed in a stage before stage 2: undecided, or a survivor whose text could not be encoded."""
        self._undecided.discard(clip_id)
        self._survivors.discard(clip_id)

    def gone(self, clip_id: str) -> None:
        """The node that had the candidate's call is gone: it is begun again elsewhere, or never."""
        self._undecided.discard(clip_id)
        self._refining.discard(clip_id)

    def refined(self, clip_id: str, rendered: bool) -> None:
        """A call of stage 2 ended."""
        self._refining.discard(clip_id)
        self._survivors.discard(clip_id)
        self._rendered += rendered

    @property
    def spent(self) -> float:
        """Hours that this job's actors have held cards, or CPUs."""
        return self._spent_before + self._quota.held(self._pools, self.holdings.seconds())

    @property
    def over(self) -> str | None:
        """Why nothing more is to begin, or None."""
        quota = self._quota
        if quota.accept is not None and self._rendered >= quota.accept:
            return f"{quota.accept} clips are accepted"
        if quota.hours is not None and self.spent >= quota.hours:
            return f"the budget of {quota.hours:g} {quota.unit}-hours is spent"
        return None
