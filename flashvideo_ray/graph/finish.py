"""The end of a job: summary.json and report.html anew from the ledger."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow.compute as pc

from flashvideo_ray.accounting import billing, forecast, report
from flashvideo_ray.accounting.summary import counts, statuses, summarise
from flashvideo_ray.graph import audit
from flashvideo_ray.graph.standing import Standing
from flashvideo_ray.ledger import jobs, run_file, tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.settings import Settings


def settings_of(store: Store, run: Mapping[str, Any]) -> Settings:
    """The settings of a run, as its newest job was told them."""
    return Settings.of_tree(jobs.newest_settings(store, run), where="run.json")


def finish(store: Store, settings: Settings) -> dict[str, int]:
    """Write summary.json and report.html from the ledger. Returns how many candidates have each status."""
    run = run_file.read_run(store)
    if run is None:
        raise run_file.NoRunError(f"{store.url}: no run here (no run.json)")
    jobs.take_up(store, run)
    now = Standing.read(store, settings, figures=True)
    summary = summary_of(store, settings, now)
    summary["forecast"] = forecast_of(store, settings, now, run["candidates"])
    store.put("summary.json", json.dumps(summary, indent=2).encode())
    page = report.write_report(
        now.previews,
        now.clips,
        run,
        summary,
        audit=audit.read(store),
        poster=lambda key: _bytes(store, key),
        title=store.url.rstrip("/").rpartition("/")[2],
        whole=lambda clip_ids: (
            tables.read(store, "previews", only=clip_ids),
            tables.read(store, "clips", only=clip_ids),
        ),
    )
    store.put("report.html", page.encode())
    return counts(statuses(now.previews, now.clips)["status"])


def forecast_of(store: Store, settings: Settings, now: Standing, wanted: int) -> dict[str, Any]:
    """When the run ends, and what it costs by then, as `forecast.as_dict` says it. `wanted` as in `Standing.counts`."""
    previews, clips = now.paid()
    spent = billing.bill(previews, clips, settings).total
    started = max((row["started"] for row in jobs.read(store)), default=None)
    # What ended before that tells nothing of the rate.
    at = now.clips["at"]
    ends = [] if started is None else at.filter(pc.greater_equal(at, started)).to_pylist()
    found = forecast.of_run(now.counts(wanted), ends, started, spent)
    return forecast.as_dict(found, settings.prices.currency)


def summary_of(store: Store, settings: Settings, now: Standing) -> dict[str, Any]:
    """summary.json of a run."""
    summary = summarise(now.previews, now.clips)
    summary["earlier_texts"] = statuses(*now.earlier).num_rows
    done = jobs.read(store)
    summary["wall_seconds"], summary["pools"] = jobs.usage(done)
    summary["troubles"] = [row["error"] for row in done if row["error"]]
    from flashvideo_ray.accounting import estimates

    operations = estimates.known_operations(settings)
    previews, clips = now.paid()
    bill = billing.bill(previews, clips, settings, summary["pools"], operations)
    if (unknown := estimates.not_known(settings)) is not None:
        bill = replace(bill, notes=(*bill.notes, f"{unknown}; so neither is what a single stage would take"))
    for stage, numbers in summary["stages"].items():
        cards = [line.device_seconds for line in bill.lines if (line.stage, line.unit) == (stage, "GPU")]
        numbers["gpu_seconds"] = round(sum(cards), 3)
    summary["bill"] = billing.as_dict(bill)
    return summary


def _bytes(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key)
    except FileNotFoundError:
        return None
