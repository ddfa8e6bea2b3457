"""What people decide about previews: small Parquet parts under `decisions/`, added and never rewritten.

The newest decision on a preview counts. `cleared` takes a decision back: the rules decide again. Whoever decides needs
no claim on the run: parts of several people stand side by side.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from flashvideo_ray.ledger import parquet_log
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.selection.survivors import Opinion

Word = Literal["approved", "rejected", "cleared"]
PREFIX = "decisions/decisions-"
SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # approved, rejected, cleared
        pa.field("by", pa.string(), nullable=False),
        pa.field("note", pa.string()),
        pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)


@dataclass(frozen=True)
class Decision:
    """One word of one person about one preview. Brought back by an undo it still is theirs."""

    clip_id: str
    word: Word
    by: str
    note: str | None = None


def write(store: Store, made: Iterable[Decision]) -> dt.datetime | None:
    """Make decisions durable, all of them at once. Returns when they were made, or None if there were none.

    They are newer than all decisions that were read from this store, whatever the clocks say.
    """
    now = store.clock.now()
    rows = [{"clip_id": d.clip_id, "status": d.word, "by": d.by, "note": d.note, "at": now} for d in made]
    if not rows:
        return None
    parquet_log.write(store, f"{PREFIX}{now:%Y%m%dT%H%M%S%f}", pa.Table.from_pylist(rows, schema=SCHEMA))
    return now


def read(store: Store) -> pa.Table:
    """The newest decision on each preview, oldest first, those that were taken back included."""
    found = [*parquet_log.read_all(store, PREFIX).values()]
    return parquet_log.newest(found) if found else SCHEMA.empty_table()


def opinions(store: Store) -> dict[str, Opinion]:
    """The decisions that count, by clip_id."""
    table = read(store)
    return {
        clip_id: Opinion(word == "approved", by)
        for clip_id, word, by in zip(
            table["clip_id"].to_pylist(), table["status"].to_pylist(), table["by"].to_pylist(), strict=True
        )
        if word != "cleared"
    }
