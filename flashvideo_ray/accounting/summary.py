"""What a run cost and produced, in figures: for summary.json. Made from the ledger's two tables alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flashvideo_ray.scorers import columns
from flashvideo_ray.selection.survivors import reasons_without_numbers

STAGES = {
    "text": "previews", "preview": "previews", "score": "previews", "rate": "previews",
    "refine": "clips", "publish": "clips",
}  # fmt: skip
_MEDIA = ("bytes", "frames", "fps")
_KINDS = {"bytes": pa.int64(), "frames": pa.int32(), "fps": pa.float64(), "candidate": pa.int32()}  # else strings
_AT_ONCE = 10_000  # rows whose reasons are Python's
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
    rows = merged(previews, clips, ["id", "status", "reason", "stage", "error_class", "clip", *_MEDIA])
    status = rows["status"]
    failures: dict[str, Counter[str]] = {}
    for stage, error_class, alike in failed_alike(rows):
        failures.setdefault(stage, Counter())[error_class] += alike.num_rows
    rejected = rows.filter(pc.equal(status, "rejected"))
    reasons: Counter[str] = Counter()
    for chunk in rejected.select(["reason"]).to_batches(max_chunksize=_AT_ONCE):
        reasons.update(reasons_without_numbers(reason or "no reason") for reason in chunk["reason"].to_pylist())
    lost = without_preview(previews, clips)
    well = with_clip(clips)
    made = {"previews": previews, "clips": clips.filter(well)}
    others = {"previews": lost, "clips": clips.filter(pc.invert(well))}
    stages = {stage: _times(made[table], stage) for stage, table in STAGES.items()}
    failed = {stage: _times(others[table], stage) for stage, table in STAGES.items()}
    devices = _by_device(previews, "preview") + _by_device(lost, "preview") + _by_device(clips, "refine")
    not_scored = pc.not_equal(pc.fill_null(rows["stage"], ""), "score")
    kept = _count(pc.and_(rows["previewed"], pc.and_(pc.not_equal(status, "rejected"), not_scored)))
    mean_refine = stages["refine"]["mean_seconds"]
    rendered = rows.filter(pc.equal(status, "rendered"))
    spared = _count(pc.equal(pc.fill_null(rejected["clip"], ""), ""))
    seconds = pc.divide(rendered["frames"].cast(pa.float64()), rendered["fps"].cast(pa.float64()))
    return {
        "candidates": rows.num_rows,
        "prompts": len(pc.unique(rows["id"])),
        "status": counts(status),
        "failures": {stage: dict(classes.most_common()) for stage, classes in failures.items()},
        "rejections": dict(reasons.most_common()),
        "previews": previews.num_rows,
        "survivors": kept,
        "acceptance_rate": kept / previews.num_rows if previews.num_rows else None,
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
            "clips": rendered.num_rows,
            "bytes": pc.sum(rendered["bytes"]).as_py() or 0,
            "frames": pc.sum(rendered["frames"]).as_py() or 0,
            "seconds": round(math.fsum(finite(seconds)), 3),
        },
    }


def statuses(previews: pa.Table, clips: pa.Table) -> pa.Table:
    """`clip_id` and `status` of each candidate that the ledger knows; what the clips table says goes first."""
    return merged(previews, clips, ["status"]).select(["clip_id", "status"])


def counts(values: pa.ChunkedArray) -> dict[str, int]:
    """How often there is each value, the most frequent first."""
    found = Counter({str(each["values"]): each["counts"] for each in pc.value_counts(values).to_pylist()})
    return dict(found.most_common())


def merged(previews: pa.Table, clips: pa.Table, names: Sequence[str]) -> pa.Table:
    """One row a candidate, with some columns; what the clips table says goes first, as in `joined`.

    `clip_id` and `previewed` (whether it has a row of previews) are always there. Those that have one come first.
    """
    known, ended = (table["clip_id"].combine_chunks() for table in (previews, clips))
    alone = pc.invert(pc.is_in(ended, known))
    ids = pa.concat_arrays([known.cast(pa.string()), ended.filter(alone).cast(pa.string())])
    # Where a row is in its table; a null takes a null.
    place_of_preview = pa.array(np.arange(len(ids)), pa.int64(), mask=np.arange(len(ids)) >= len(known))
    place_of_clip = pc.index_in(ids, ended)
    columns: dict[str, Any] = {"clip_id": ids}
    for name in names:
        of_preview, of_clip = (
            table[name].take(place) if name in table.column_names else None
            for table, place in ((previews, place_of_preview), (clips, place_of_clip))
        )
        if of_preview is None or of_clip is None:
            only = of_clip if of_preview is None else of_preview
            columns[name] = pa.nulls(len(ids), _KINDS.get(name, pa.string())) if only is None else only
        elif name == "reason":
            columns[name] = pc.if_else(place_of_clip.is_valid(), of_clip, of_preview)
        else:
            columns[name] = pc.coalesce(of_clip, of_preview)
    return pa.table({**columns, "previewed": place_of_preview.is_valid()})


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


def failed_alike(rows: pa.Table) -> Iterator[tuple[str, str, pa.Table]]:
    """The failed ones of `merged` candidates, by stage and class of the error."""
    rows = rows.filter(pc.equal(rows["status"], "failed"))
    for kind in rows.group_by(["stage", "error_class"], use_threads=False).aggregate([]).to_pylist():
        alike = pc.and_(*(_is(rows[name], kind[name]) for name in ("stage", "error_class")))
        yield kind["stage"] or "unknown", kind["error_class"] or "unknown", rows.filter(alike)


def _is(column: pa.ChunkedArray, value: str | None) -> pa.ChunkedArray:
    return column.is_null() if value is None else pc.fill_null(pc.equal(column, value), False)


def finite(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """The numbers of a column that are numbers."""
    values = column.cast(pa.float64()).to_numpy()
    return values[np.isfinite(values)]


def _count(mask: pa.ChunkedArray) -> int:
    return pc.sum(mask).as_py() or 0


def _times(table: pa.Table, stage: str) -> dict[str, Any]:
    name = f"{stage}_seconds"
    values = finite(table[name]) if name in table.column_names else np.empty(0)
    total = math.fsum(values)
    return {
        "count": len(values),
        "seconds": round(total, 3),
        "mean_seconds": round(total / len(values), 3) if len(values) else None,
    }


def _by_device(table: pa.Table, stage: str) -> Counter[str]:
    """Seconds of a stage by device; Counter, so that two stages add up."""
    name = f"{stage}_seconds"
    if not {"device", name} <= set(table.column_names):
        return Counter()
    return Counter({device: math.fsum(values) for device, values in by_value(table["device"], table[name]) if device})


def by_value(names: pa.ChunkedArray, numbers: pa.ChunkedArray) -> Iterator[tuple[str | None, NDArray[np.float64]]]:
    """The numbers of a column that are numbers, by what another one says; of values that have any."""
    for name in pc.unique(names).to_pylist():
        if len(values := finite(numbers.filter(_is(names, name)))):
            yield name, values


def usable(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)
