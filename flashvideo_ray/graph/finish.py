"""The end of a job: summary.json and report.html anew from the ledger."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from flashvideo_ray.accounting import billing, report
from flashvideo_ray.accounting.summary import statuses, summarise
from flashvideo_ray.graph import audit, remaining
from flashvideo_ray.ledger import decisions, run_file, tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.settings import Settings

_IN = ("previewed", "approved")
_VERDICT = ("status", "reason", "stage", "error_class", "error")


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
    previews, clips = present(store, settings)
    before = _summary(store)
    summary = summarise(previews, clips)
    summary["wall_seconds"] = before.get("wall_seconds", 0.0) + seconds
    summary["pools"] = _added(before.get("pools", {}), usage or {})
    from flashvideo_ray.accounting import estimates

    operations = estimates.known_operations(settings)
    bill = billing.bill(previews, clips, settings, summary["pools"], operations)
    for stage, numbers in summary["stages"].items():
        cards = [line.device_seconds for line in bill.lines if (line.stage, line.unit) == (stage, "GPU")]
        numbers["gpu_seconds"] = round(sum(cards), 3)
    summary["bill"] = billing.as_dict(bill)
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
    return dict(Counter(statuses(previews, clips).values()))


def present(store: Store, settings: Settings) -> tuple[pa.Table, pa.Table]:
    """The ledger's previews and clips, with what selection and people say of the candidates now.

    A clip stays, and so does a failure of a stage. A rejection does not outlive what it came of: where `select` or a
    person decided anew, its row says so here, as the next job will.
    """
    previews, clips = tables.read(store, "previews"), tables.read(store, "clips")
    people = decisions.opinions(store)
    verdicts = remaining.judged(previews, settings, people).select([*_VERDICT, "clip_id"]).to_pylist()
    # Rules about the whole run come after a preview's row: what nobody said in person counts if row and rules agree.
    now = {
        verdict["clip_id"]: verdict
        for verdict, written in zip(verdicts, previews["status"].to_pylist(), strict=True)
        if verdict["clip_id"] in people or (verdict["status"] in _IN) == (written in _IN)
    }
    ended = clips.select([name for name in ("clip_id", "status", "error_class") if name in clips.column_names])
    anew = {
        row["clip_id"]: now[row["clip_id"]]
        for row in ended.to_pylist()
        if row["clip_id"] in now
        and (row["status"] in ("rejected", "skipped") or row.get("error_class") == tables.MISSING_SCORE)
        and (now[row["clip_id"]]["status"] in _IN) != (row["status"] == "skipped")
    }
    return _decided(previews, {clip_id: now[clip_id] for clip_id in people if clip_id in now}), _decided(clips, anew)


def _decided(table: pa.Table, verdicts: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """The rows with these verdicts instead of theirs."""
    if not verdicts:
        return table
    ids = table["clip_id"].to_pylist()
    for name in _VERDICT:
        if name in table.column_names:
            old = zip(ids, table[name].to_pylist(), strict=True)
            values = [verdicts[clip_id][name] if clip_id in verdicts else value for clip_id, value in old]
            index = table.schema.get_field_index(name)
            table = table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))
    return table


def _added(before: Mapping[str, Any], now: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """What the pools held and used in all jobs of the run."""
    return {
        stage: {
            name: round(before.get(stage, {}).get(name, 0.0) + now.get(stage, {}).get(name, 0.0), 3)
            for name in ("held_seconds", "busy_seconds")
        }
        for stage in dict.fromkeys([*before, *now])
    }


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
