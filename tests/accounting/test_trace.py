"""A trace of a run: each call where the ledger says that it was."""

from __future__ import annotations

import datetime as dt

import pyarrow as pa

from flashvideo_ray.accounting.trace import trace

NOON = dt.datetime(2026, 11, 26, 12, tzinfo=dt.UTC)
ROW = {"clip_id": "ab", "id": "1", "prompt": "a star", "host": "large-1", "device": "H100", "reason": None}


def test_calls_stand_one_after_the_other_before_their_row() -> None:
    preview = {**ROW, "status": "previewed", "at": NOON, "text_seconds": None, "preview_seconds": 30.0}
    clip = {**ROW, "status": "rendered", "at": NOON + dt.timedelta(minutes=2), "host": "small-1", "device": "L40S"}
    previews = pa.Table.from_pylist([{**preview, "score_seconds": 2.0}])
    clips = pa.Table.from_pylist([{**clip, "refine_seconds": 70.0, "publish_seconds": 5.0}])
    events = trace(previews, clips)["traceEvents"]
    slices = {event["name"]: event for event in events if event["ph"] == "X"}
    noon = NOON.timestamp() * 1e6
    assert {name: (event["ts"] - noon, event["dur"]) for name, event in slices.items()} == {
        "preview": (-32e6, 30e6),
        "score": (-2e6, 2e6),
        "refine": (45e6, 70e6),
        "publish": (115e6, 5e6),
    }
    names = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names[slices["preview"]["pid"]] == "large-1: H100"
    assert names[slices["refine"]["pid"]] == "small-1: L40S"
    assert [event["ph"] for event in events if event.get("id") == "ab"] == ["s", "f"]
    assert slices["refine"]["args"]["clip_id"] == "ab"
    assert slices["refine"]["args"]["status"] == "rendered"


def test_what_took_no_time_has_no_slice() -> None:
    skipped = {**ROW, "status": "skipped", "at": NOON, "refine_seconds": None}
    assert trace(pa.Table.from_pylist([], schema=pa.schema([])), pa.Table.from_pylist([skipped]))["traceEvents"] == []
