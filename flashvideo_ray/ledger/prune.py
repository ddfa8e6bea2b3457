"""Remove what a run no longer needs: latents and previews of candidates that have ended."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.objects import Objects
from flashvideo_ray.ledger.shard import Shard
from flashvideo_ray.ledger.store import Store

_THREADS = 16
_AT_ONCE = 50_000  # rows, or objects
_COLUMNS = {"latents": ("latents",), "previews": ("preview", "poster")}


@dataclass(frozen=True)
class Plan:
    """What would go: objects by key, of candidates whose preview rows will not name them in these columns any more."""

    keys: pa.Array
    bytes: int
    clip_ids: pa.Array
    columns: tuple[str, ...]


def plan(store: Store, keep: Sequence[str], shard: Shard | None = None) -> Plan:
    """Find what is not needed any more and not to be kept, of all candidates or those of one share.

    A candidate needs nothing more when it is rendered or rejected. One that is still open keeps all it has, and so does
    one that failed: `--retry failed` begins where it was.
    """
    columns = tuple(name for what, names in _COLUMNS.items() if what not in keep for name in names)
    previews = tables.read(store, "previews", ["id", *columns])
    clips = tables.read(store, "clips", ["clip_id", "status"])
    final = pc.is_in(clips["status"], pa.array(["rendered", "rejected"]))
    ended = clips.filter(final)["clip_id"].combine_chunks()
    rows = previews.filter(pc.is_in(previews["clip_id"], ended))
    if shard is not None:
        rows = shard.of(rows)
    named = pc.unique(
        pa.chunked_array([chunk for name in columns for chunk in rows[name].drop_null().chunks], pa.string())
    )
    folders = pc.unique(pc.list_element(pc.split_pattern(named, "/"), 0)).to_pylist()
    sizes = Objects(store, folders).sizes(named)
    changed = pa.array([False] * rows.num_rows)
    for name in columns:
        changed = pc.or_(changed, rows[name].is_valid())
    clip_ids = rows.filter(changed)["clip_id"].combine_chunks()
    return Plan(named.filter(sizes.is_valid()), pc.sum(sizes).as_py() or 0, clip_ids, columns)


def prune(store: Store, planned: Plan) -> None:
    """Do it; hold the claim of the run. Rows first: killed in between, `verify` finds objects that no row names."""
    for start in range(0, len(planned.clip_ids), _AT_ONCE):
        rows = tables.read(store, "previews", only=planned.clip_ids[start : start + _AT_ONCE])
        for name in planned.columns:
            rows = tables.with_column(rows, name, None)
        tables.supersede(store, "previews", rows)
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(planned.keys), _AT_ONCE):
            list(pool.map(store.delete, planned.keys[start : start + _AT_ONCE].to_pylist()))
