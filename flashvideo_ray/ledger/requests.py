"""What people asked for: small Parquet parts under `requests/`, added and never rewritten, as decisions are.

A candidate's newest row counts. Its status is what is wanted: `preview`; `refine`, which is a preview and, if that
survives selection or is approved, a clip; or `cancelled`. What is wanted and not in the ledger is open work.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import pyarrow as pa

from flashvideo_ray.ledger import parquet_log, tables
from flashvideo_ray.ledger.store import Store

Wish = Literal["preview", "refine", "cancelled"]
PREFIX = "requests/requests-"
SCHEMA = pa.schema(
    [
        *(field for field in tables.PREVIEWS if field.name in ("clip_id", "id", "prompt", "negative_prompt", "seed")),
        tables.PREVIEWS.field("candidate"),
        pa.field("status", pa.string(), nullable=False),  # preview, refine, cancelled
        pa.field("by", pa.string(), nullable=False),
        pa.field("job", pa.string()),  # which call submitted it
        pa.field("key", pa.string()),  # that call's Idempotency-Key
        pa.field("body", pa.string()),  # a digest of what it asked for
        pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)


def write(store: Store, rows: Iterable[Mapping[str, Any]]) -> None:
    """Make requests durable, all at once. `at` is now, a microsecond apart: they are worked off in this order."""
    now = store.clock.now()
    made = [
        {**{name: row.get(name) for name in SCHEMA.names}, "at": now + dt.timedelta(microseconds=place)}
        for place, row in enumerate(rows)
    ]
    if made:
        parquet_log.write(store, f"{PREFIX}{now:%Y%m%dT%H%M%S%f}", pa.Table.from_pylist(made, schema=SCHEMA))
