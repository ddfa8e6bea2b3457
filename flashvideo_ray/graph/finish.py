"""The end of a job: summary.json and report.html anew from the ledger."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from flashvideo_ray.accounting import billing, report
from flashvideo_ray.accounting.summary import summarise
from flashvideo_ray.graph import audit
from flashvideo_ray.ledger import run_file, tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.texts import COLUMNS, Texts, still_open
from flashvideo_ray.settings import STAGES, Settings


def finish(
    store: Store, settings: Settings, seconds: float = 0.0, usage: Mapping[str, Mapping[str, float]] | None = None
) -> dict[str, int]:
    """Write summary.json and report.html from the ledger, after a job of so many seconds of wall time.

    `usage` is what the job's pools held and used, by stage, in seconds of actors. Returns how many candidates have each
    status.
    """
    run = run_file.read_run(store)
    if run is None:
        raise run_file.NoRunError(f"{store.url}: no run here (no run.json)")
    all_previews, all_clips = tables.read(store, "previews"), tables.read(store, "clips")
    texts = Texts.read(store)
    previews, clips = texts.present(all_previews), texts.present(all_clips)
    before = _summary(store)
    summary = summarise(previews, clips)
    summary["earlier_texts"] = len(clip_ids(all_previews, all_clips)) - summary["candidates"]
    summary["wall_seconds"] = before.get("wall_seconds", 0.0) + seconds
    summary["pools"] = _added(before.get("pools", {}), usage or {})
    for stage, numbers in summary["stages"].items():
        cards = getattr(settings.pools, stage).num_gpus if stage in STAGES else 0
        numbers["gpu_seconds"] = round(cards * numbers["seconds"], 3)
    from flashvideo_ray.accounting import estimates

    operations = estimates.known_operations(settings)
    summary["bill"] = billing.as_dict(billing.bill(all_previews, all_clips, settings, summary["pools"], operations))
    store.put("summary.json", json.dumps(summary, indent=2).encode())
    page = report.write_report(
        previews,
        clips,
        run,
        summary,
        audit=audit.read(store),
        poster=lambda key: _bytes(store, key),
        title=store.url.rstrip("/").rpartition("/")[2],
    )
    store.put("report.html", page.encode())
    return statuses(previews, clips)


def _added(before: Mapping[str, Any], now: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """What the pools held and used in all jobs of the run."""
    return {
        stage: {
            name: round(before.get(stage, {}).get(name, 0.0) + now.get(stage, {}).get(name, 0.0), 3)
            for name in ("held_seconds", "busy_seconds")
        }
        for stage in dict.fromkeys([*before, *now])
    }


def clip_ids(previews: pa.Table, clips: pa.Table) -> set[str]:
    """The candidates that are in either table."""
    return {*previews["clip_id"].to_pylist(), *clips["clip_id"].to_pylist()}


def standing(store: Store, wanted: int) -> dict[str, int]:
    """How many candidates have each status, those that are `open`, and those of an `earlier text`.

    `wanted` is what run.json says of their number, for runs whose ledger does not.
    """
    columns = [*COLUMNS, "status"]
    candidates, previews, clips = (tables.read(store, table, columns) for table in tables.SCHEMAS)
    texts = Texts.of(candidates, previews, clips)
    counts = statuses(texts.present(previews), texts.present(clips))
    ended = sum(counts.values())
    counts["open"] = still_open(candidates, previews, clips) if candidates.num_rows else max(0, wanted - ended)
    earlier = len(clip_ids(previews, clips)) - ended
    return counts | ({"earlier text": earlier} if earlier else {})


def statuses(previews: pa.Table, clips: pa.Table) -> dict[str, int]:
    """How many candidates have each status; one that has not ended counts as its preview says."""
    state = dict(zip(previews["clip_id"].to_pylist(), previews["status"].to_pylist(), strict=True))
    state |= dict(zip(clips["clip_id"].to_pylist(), clips["status"].to_pylist(), strict=True))
    return dict(Counter(state.values()))


def _summary(store: Store) -> dict[str, Any]:
    """Of the jobs before this one."""
    try:
        return dict(json.loads(store.get("summary.json")))
    except (FileNotFoundError, ValueError):
        return {}


def _bytes(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key)
    except FileNotFoundError:
        return None
