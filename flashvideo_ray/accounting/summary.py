"""What a run cost and produced, in figures: for summary.json. Made from the ledger's two tables alone."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.scorers import columns
from flashvideo_ray.selection.survivors import reasons_without_numbers

STAGES = {
    "text": "previews", "preview": "previews", "score": "previews", "rate": "previews",
    "refine": "clips", "publish": "clips",
}  # fmt: skip
Row = dict[str, Any]  # one candidate: its rows of both tables, joined


def summarise(previews: pa.Table, clips: pa.Table) -> dict[str, Any]:
    """Count what happened. Plain JSON values; rates and means are None where there is nothing to divide by.

    Args:
        previews: the ledger's previews, one row a finished preview.
        clips: the ledger's clips, one row a candidate that ended.

    Returns:
        - `candidates`, `prompts`: how many there are in either table.
        - `status`: candidates by their present status; `failures`: failed ones by stage, then by exception class.
        - `rejections`: rejected ones by reason, without the numbers that were seen.
        - `previews`, `survivors`: previews made, those that selection let through; `acceptance_rate`: the ratio.
        - `stages`: `count`, `seconds` and `mean_seconds` of the calls of each stage that went well; `failed_calls`:
          `count` and `seconds` of the others, of stages that have any.
        - `devices`: seconds of preview and refine by the device they ran on, `gpu_seconds`: those not on a CPU. Both
          with the calls that failed.
        - `refine_seconds_saved`: rejected candidates that were not refined, times the mean refine time; an estimate.
        - `media`: `clips`, `bytes`, `frames`, `seconds` of playing time, of rendered clips.
    """
    rows = joined(previews, clips)
    status = Counter(str(row["status"]) for row in rows)
    failures: dict[str, Counter[str]] = {}
    for row in rows:
        if row["status"] == "failed":
            failures.setdefault(row.get("stage") or "unknown", Counter())[row.get("error_class") or "unknown"] += 1
    reasons = Counter(
        reasons_without_numbers(row["reason"] or "no reason") for row in rows if row["status"] == "rejected"
    )
    lost = without_preview(previews, clips)
    well = with_clip(clips)
    made = {"previews": previews, "clips": clips.filter(well)}
    others = {"previews": lost, "clips": clips.filter(pc.invert(well))}
    stages = {stage: _times(made[table], stage) for stage, table in STAGES.items()}
    failed = {stage: _times(others[table], stage) for stage, table in STAGES.items()}
    devices = _by_device(previews, "preview") + _by_device(lost, "preview") + _by_device(clips, "refine")
    kept = [row for row in rows if row["previewed"] and row["status"] != "rejected" and row.get("stage") != "score"]
    mean_refine = stages["refine"]["mean_seconds"]
    rendered = [row for row in rows if row["status"] == "rendered"]
    spared = sum(row["status"] == "rejected" and not row.get("clip") for row in rows)
    return {
        "candidates": len(rows),
        "prompts": len({row.get("id") for row in rows}),
        "status": dict(status.most_common()),
        "failures": {stage: dict(classes.most_common()) for stage, classes in failures.items()},
        "rejections": dict(reasons.most_common()),
        "previews": previews.num_rows,
        "survivors": len(kept),
        "acceptance_rate": len(kept) / previews.num_rows if previews.num_rows else None,
        "stages": stages,
        "failed_calls": {
            stage: {name: times[name] for name in ("count", "seconds")}
            for stage, times in failed.items()
            if times["count"]
        },
        "devices": {device: round(seconds, 3) for device, seconds in devices.items()},
        "gpu_seconds": round(sum(s for device, s in devices.items() if not device.lower().startswith("cpu")), 3),
        "refine_seconds_saved": round(spared * mean_refine, 3) if mean_refine is not None else None,
        "media": {
            "clips": len(rendered),
            "bytes": sum(row.get("bytes") or 0 for row in rendered),
            "frames": sum(row.get("frames") or 0 for row in rendered),
            "seconds": round(sum((row.get("frames") or 0) / row["fps"] for row in rendered if row.get("fps")), 3),
        },
    }


def statuses(previews: pa.Table, clips: pa.Table) -> dict[str, str]:
    """The status of each candidate that the ledger knows, by clip_id; what the clips table says goes first."""
    state = dict(zip(previews["clip_id"].to_pylist(), previews["status"].to_pylist(), strict=True))
    state |= dict(zip(clips["clip_id"].to_pylist(), clips["status"].to_pylist(), strict=True))
    return state


def without_preview(previews: pa.Table, clips: pa.Table) -> pa.Table:
    """Clips rows of candidates that failed before they had a preview: what they cost stands in no other table."""
    return clips.filter(pc.invert(pc.is_in(clips["clip_id"], previews["clip_id"].combine_chunks())))


def joined(previews: pa.Table, clips: pa.Table) -> list[Row]:
    """One row a candidate, candidates of one prompt side by side; what the clips table says goes first."""
    blank = dict.fromkeys([*previews.column_names, *clips.column_names])
    rows: dict[str, Row] = {}
    for row in previews.to_pylist():
        rows[row["clip_id"]] = {**blank, **row, "preview_poster": row.get("poster"), "poster": None, "previewed": True}
    for row in clips.to_pylist():
        known = {name: value for name, value in row.items() if value is not None or name == "reason"}
        rows[row["clip_id"]] = {**blank, "previewed": False, **rows.get(row["clip_id"], {}), **known}
    order = {prompt: index for index, prompt in enumerate(dict.fromkeys(row["id"] for row in rows.values()))}
    return sorted(rows.values(), key=lambda row: (order[row["id"]], row["candidate"] or 0))


def score_names(previews: pa.Table) -> list[str]:
    """Names of the score columns, in the order of the table."""
    return [
        columns.name_of(field.name)
        for field in previews.schema
        if columns.is_score(field.name) and (pa.types.is_floating(field.type) or pa.types.is_integer(field.type))
    ]


def with_clip(clips: pa.Table) -> pa.Array:
    """Which rows of clips hold a clip, rendered or refined for the audit: the calls of stage 2 that went well."""
    rendered = pc.equal(clips["status"], "rendered")
    return pc.or_(rendered, clips["clip"].is_valid()) if "clip" in clips.column_names else rendered


def _times(table: pa.Table, stage: str) -> dict[str, Any]:
    column = table[f"{stage}_seconds"].to_pylist() if f"{stage}_seconds" in table.column_names else []
    values = [value for value in column if usable(value)]
    total = math.fsum(values)
    return {
        "count": len(values),
        "seconds": round(total, 3),
        "mean_seconds": round(total / len(values), 3) if values else None,
    }


def _by_device(table: pa.Table, stage: str) -> Counter[str]:
    """Seconds of a stage by device; Counter, so that two stages add up."""
    seconds: Counter[str] = Counter()
    if {"device", f"{stage}_seconds"} <= set(table.column_names):
        for device, value in zip(table["device"].to_pylist(), table[f"{stage}_seconds"].to_pylist(), strict=True):
            if device and usable(value):
                seconds[device] += value
    return seconds


def usable(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)
