"""What of a run is not needed any more."""

from __future__ import annotations

from typing import Any

from flashvideo_ray.ledger import prune, tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.writer import Writer
from flashvideo_ray.settings import LedgerSettings


def test_what_has_ended_well_needs_nothing_and_what_failed_may_be_tried_again(store: Store) -> None:
    """A clip that could not be signed, say: its latents would be paid for once more."""
    ends = {"a": "rendered", "b": "rejected", "c": "failed", "d": None}
    row: dict[str, Any] = {"id": "p", "prompt": "p", "seed": 1, "candidate": 0}
    previews = Writer(store, "previews", tables.PREVIEWS, LedgerSettings())
    clips = Writer(store, "clips", tables.CLIPS, LedgerSettings())
    for clip_id, status in ends.items():
        key = f"latents/{clip_id}.safetensors"
        store.put(key, b"latents")
        previews.append({**row, "clip_id": clip_id, "status": "previewed", "latents": key})
        if status is not None:
            clips.append({**row, "clip_id": clip_id, "status": status, "stage": "refine"})
    previews.flush()
    clips.flush()
    planned = prune.plan(store, ["previews"])
    assert (sorted(planned.clip_ids.to_pylist()), planned.bytes) == (["a", "b"], 14)
    prune.prune(store, planned)
    assert store.keys("latents") == ["latents/c.safetensors", "latents/d.safetensors"]
