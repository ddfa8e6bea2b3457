"""Where each clip's seconds went, as a trace that Perfetto and chrome://tracing show. From the ledger alone.

The ledger has when a row was written and how long each stage took; what a stage did stands right before what followed
it, so gaps (a wait for a card, for the other candidates of a prompt) show as gaps before the row's time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

_PREVIEW = ("text_seconds", "preview_seconds", "score_seconds", "rate_seconds")  # in their order, the row after them
_CLIP = ("refine_seconds", "publish_seconds")
_MICRO = 1_000_000


def trace(previews: pa.Table, clips: pa.Table) -> dict[str, Any]:
    """Chrome's trace format, JSON values: a process a host and device, a row a stage, one slice a call.

    Slices of one candidate are joined by a flow from its preview to its clip; their arguments name the clip_id, the
    prompt and what became of it. `ts` is in microseconds since the epoch.
    """
    events: list[dict[str, Any]] = []
    places: dict[str, int] = {}
    for row in previews.to_pylist():
        events += _slices(row, _PREVIEW, places, "s")
    for row in clips.to_pylist():
        if row.get("refine_seconds"):
            events += _slices(row, _CLIP, places, "f")
    names = [{"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}} for name, pid in places.items()]
    return {"traceEvents": names + events, "displayTimeUnit": "ms"}


def _slices(
    row: Mapping[str, Any], columns: Sequence[str], places: dict[str, int], flow: str
) -> Iterator[dict[str, Any]]:
    """The stages of a row, the last first: each ends where the one after it begins."""
    place = f"{row.get('host') or 'unknown host'}: {row.get('device') or 'unknown device'}"
    pid = places.setdefault(place, len(places) + 1)
    end = row["at"].timestamp() * _MICRO
    about = {name: row.get(name) for name in ("clip_id", "id", "prompt", "status", "reason")}
    for column in reversed(columns):
        seconds = row.get(column)
        if not seconds:
            continue
        stage = column.removesuffix("_seconds")
        begin = end - seconds * _MICRO
        common = {"pid": pid, "tid": stage, "ts": round(begin)}
        yield {"ph": "X", "name": stage, "cat": stage, "dur": round(end - begin), "args": about, **common}
        if column in ("preview_seconds", "refine_seconds"):
            yield {"ph": flow, "name": "candidate", "cat": "candidate", "id": row["clip_id"], "bp": "e", **common}
        end = begin
