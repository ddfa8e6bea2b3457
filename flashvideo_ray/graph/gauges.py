"""How a job stands, told to Prometheus each second by its driver; see `metrics`."""

from __future__ import annotations

import time
from collections.abc import Mapping

from flashvideo_ray.accounting import billing
from flashvideo_ray.graph.metrics import Meter
from flashvideo_ray.graph.tracker import StageState
from flashvideo_ray.ledger.claim import Claim, ClaimLostError, renewal_seconds
from flashvideo_ray.settings import Settings, Stage

_RENEWALS = 3  # that may be missed before a store counts as away


class Gauges:
    """What the driver knows of a job, in Prometheus's terms, in a round before which so many candidates had ended."""

    def __init__(self, run: str, settings: Settings, claim: Claim, before: int = 0):
        self._meter, self._settings, self._claim, self._before = Meter(run), settings, claim, before
        self._held: dict[Stage, float] = {}
        self._done: dict[Stage, int] = {}
        self._moved = time.monotonic()

    def tell(
        self,
        states: Mapping[Stage, StageState],
        totals: Mapping[Stage, int],
        ended: Mapping[str, int],
        spent: tuple[float, str] | None,
        placement_seconds: float,
    ) -> None:
        """Set all gauges; counters get what came since the last time. `totals` are the calls of each stage in all."""
        meter = self._meter
        for stage, total in totals.items():
            self._stage(stage, states.get(stage, StageState()), total)
        for status in ("rendered", "rejected", "failed", "skipped"):
            meter.set("flashvideo_candidates", ended.get(status, 0), status=status)
        left = max(0, totals.get("text", 0) - sum(ended.values()) + self._before)
        meter.set("flashvideo_candidates", left, status="open")
        meter.set("flashvideo_budget_spent_ratio", spent[0] if spent is not None else 0.0)
        meter.set("flashvideo_silent_seconds", time.monotonic() - self._moved)
        for reason, seconds in {"placement": placement_seconds, **self._waits()}.items():
            meter.set("flashvideo_waiting_seconds", seconds, reason=reason)

    def _stage(self, stage: Stage, state: StageState, total: int) -> None:
        meter, pool = self._meter, getattr(self._settings.pools, stage)
        busy = min(state.open, state.actors)
        for name, count in {"busy": busy, "idle": state.actors - busy, "missing": pool.actors - state.actors}.items():
            meter.set("flashvideo_actors", max(0, count), stage=stage, state=name)
        meter.set("flashvideo_calls_in_flight", state.open, stage=stage)
        meter.set("flashvideo_calls_queued", max(0, total - state.done - state.open), stage=stage)
        meter.set("flashvideo_oldest_call_seconds", state.oldest_seconds, stage=stage)
        done, held = state.done - self._done.get(stage, 0), state.held_seconds - self._held.get(stage, 0.0)
        self._done[stage], self._held[stage] = state.done, state.held_seconds
        if done:
            self._moved = time.monotonic()
        meter.add("flashvideo_calls_done_total", done, stage=stage)
        meter.add("flashvideo_gpu_seconds_total", held * self._settings.pools.cards(stage), stage=stage)
        currency = self._settings.prices.currency
        money = billing.held_cost(stage, held, self._settings).money or 0.0
        meter.add("flashvideo_money_total", money, stage=stage, currency=currency)

    def _waits(self) -> dict[str, float]:
        """For how long the claim has not been renewed, and for how long it has been unsure whose run it is."""
        try:
            left = self._claim.seconds()
        except ClaimLostError:
            return {"store": 0.0, "claim": 0.0}
        lease = self._claim.lease.lease_seconds
        silent = lease - left
        away = silent if silent > _RENEWALS * renewal_seconds(lease) else 0.0
        return {"store": away, "claim": max(0.0, -left)}
