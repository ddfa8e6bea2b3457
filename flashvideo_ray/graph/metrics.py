"""What a run tells Prometheus, by Ray's own metrics: all names once, and who measures what.

Ray exports them as `ray_<name>` from each node's metrics port. The board and the alerts under `deploy/` ask for exactly
these (`EXPORTED`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import ray
from ray.util import metrics as ray_metrics

from flashvideo_ray.ledger.clock import Clock
from flashvideo_ray.ledger.held_store import HeldStore, Permit

_SECONDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)


@dataclass(frozen=True)
class Metric:
    """One metric: what Ray makes of it, and in how many kinds it comes. All have the tag `run`, which is OUTPUT."""

    kind: Literal["gauge", "counter", "histogram"]
    about: str
    tags: tuple[str, ...] = ()


METRICS: Mapping[str, Metric] = {
    "flashvideo_candidates": Metric("gauge", "candidates of this job by status; open: not ended", ("status",)),
    "flashvideo_call_seconds": Metric("histogram", "seconds that a call had its device", ("stage",)),
    "flashvideo_calls_in_flight": Metric("gauge", "calls that have begun and not ended", ("stage",)),
    "flashvideo_calls_queued": Metric("gauge", "calls that are to come, as far as is known", ("stage",)),
    "flashvideo_calls_done_total": Metric("counter", "calls that ended, whatever came of them", ("stage",)),
    "flashvideo_actors": Metric("gauge", "actors of a pool: busy, idle, or missing", ("stage", "state")),
    "flashvideo_gpu_seconds_total": Metric("counter", "cards that pools held, in seconds", ("stage",)),
    "flashvideo_money_total": Metric("counter", "what pools held, at the settings' prices", ("stage", "currency")),
    "flashvideo_budget_spent_ratio": Metric("gauge", "share of --budget that is spent; 0 without one"),
    "flashvideo_upload_bytes_total": Metric("counter", "bytes that stages stored", ("kind",)),
    "flashvideo_upload_seconds_total": Metric("counter", "seconds that storing them took, waiting included", ("kind",)),
    "flashvideo_failures_total": Metric("counter", "calls that failed", ("stage", "error_class")),
    "flashvideo_waiting_seconds": Metric("gauge", "for how long by now: for store, claim or placement", ("reason",)),
    "flashvideo_oldest_call_seconds": Metric("gauge", "age of the call that has had its device longest", ("stage",)),
    "flashvideo_silent_seconds": Metric("gauge", "since a call of this job ended last"),
}
EXPORTED = {f"ray_{name}": metric for name, metric in METRICS.items()}


class Meter:
    """One run's metrics in this process. Where no Ray is, nothing happens."""

    def __init__(self, run: str):
        self._run = run

    def set(self, name: str, value: float, **tags: str) -> None:
        """What a gauge is now."""
        if ray.is_initialized():
            _metric(name).set(value, {"run": self._run, **tags})

    def add(self, name: str, value: float, **tags: str) -> None:
        """So much more of a counter; nothing where it is not positive."""
        if value > 0 and ray.is_initialized():
            _metric(name).inc(value, {"run": self._run, **tags})

    def observe(self, name: str, value: float, **tags: str) -> None:
        """One more value of a histogram."""
        if ray.is_initialized():
            _metric(name).observe(value, {"run": self._run, **tags})


@cache
def _metric(name: str) -> Any:
    """Ray's object of the name; one a process."""
    metric = METRICS[name]
    tags = ("run", *metric.tags)
    if metric.kind == "histogram":
        return ray_metrics.Histogram(name, metric.about, boundaries=[*_SECONDS], tag_keys=tags)
    kind = ray_metrics.Gauge if metric.kind == "gauge" else ray_metrics.Counter
    return kind(name, metric.about, tag_keys=tags)


class MeteredStore(HeldStore):
    """A store that tells how many bytes it took, and how long that took."""

    def put(self, key: str, data: bytes) -> None:
        """See Store."""
        begun = time.monotonic()
        super().put(key, data)
        meter, kind = Meter(self.url), key.partition("/")[0]
        meter.add("flashvideo_upload_bytes_total", len(data), kind=kind)
        meter.add("flashvideo_upload_seconds_total", time.monotonic() - begun, kind=kind)

    def __reduce__(self) -> tuple[type[MeteredStore], tuple[str, float, Permit, Clock]]:  # type: ignore[override]
        return MeteredStore, (self.url, self.patience_seconds, self.permit, self.clock)
