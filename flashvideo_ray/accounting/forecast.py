"""When a job or a run ends, and what it costs by then: from rates that were measured. Pure functions."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flashvideo_ray.accounting import billing
from flashvideo_ray.accounting.billing import Cost
from flashvideo_ray.settings import Settings, Stage

_ENDED = ("rendered", "rejected", "failed", "skipped")
_OPEN = ("open", "previewed", "approved")
_FEW = 2  # ends; fewer have no rate


@dataclass(frozen=True)
class Pace:
    """A stage at work: calls that are done and in all, how many end a second, and what its actors hold.

    `rate` is 0 where none has ended yet, or none does any more.
    """

    stage: Stage
    done: int
    total: int
    rate: float
    actors: int
    held_seconds: float  # of actors, until now


@dataclass(frozen=True)
class Forecast:
    """`seconds_left` and `expected` (cost at the end) are None where no rate is known yet; `spent` is until now."""

    seconds_left: float | None
    spent: Cost
    expected: Cost | None


def of_pools(paces: Iterable[Pace], settings: Settings) -> Forecast:
    """Of a job at work. The stages work beside one another: the slowest decides, and all pools are held until then."""
    paces = list(paces)
    left = [pace for pace in paces if pace.done < pace.total]
    spent = sum((billing.held_cost(pace.stage, pace.held_seconds, settings) for pace in paces), Cost())
    if not paces or any(pace.rate <= 0 for pace in left):
        return Forecast(None, spent, None)
    seconds = max(((pace.total - pace.done) / pace.rate for pace in left), default=0.0)
    more = (billing.held_cost(pace.stage, seconds * pace.actors, settings) for pace in paces)
    return Forecast(seconds, spent, sum(more, spent))


def of_run(
    counts: Mapping[str, int], ends: Sequence[dt.datetime], job_started: dt.datetime | None, spent: Cost
) -> Forecast:
    """Of a run, from its ledger: at the rate at which candidates have ended since its newest job began.

    `counts` are candidates by status, `ends` when those ended that did; what is left costs as much each as they did.
    """
    ended, left = (sum(counts.get(status, 0) for status in statuses) for statuses in (_ENDED, _OPEN))
    if not left:
        return Forecast(0.0, spent, spent)
    of_job = [at for at in ends if job_started is not None and at >= job_started]
    if job_started is None or len(of_job) < _FEW or not ended:
        return Forecast(None, spent, None)
    seconds = (max(of_job) - job_started).total_seconds()
    return Forecast(left * seconds / len(of_job), spent, spent * ((ended + left) / ended))


def as_dict(found: Forecast, currency: str) -> dict[str, Any]:
    """Plain JSON values, for summary.json."""
    spent, expected = ({"money": c.money, "gpu_seconds": c.gpu_seconds, "cpu_seconds": c.cpu_seconds} if c else None
                       for c in (found.spent, found.expected))  # fmt: skip
    return {"seconds_left": found.seconds_left, "spent": spent, "expected": expected, "currency": currency}
