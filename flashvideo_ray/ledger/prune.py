"""Remove what a run no longer needs: latents and previews of candidates that have ended."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.shard import Shard
from flashvideo_ray.ledger.store import Store

_THREADS = 16
_COLUMNS = {"latents": ("latents",), "previews": ("preview", "poster")}


@dataclass(frozen=True)
class Plan:
    """What would go: objects by key, with the preview rows (as they will be) that name them now."""

    keys: tuple[str, ...]
    bytes: int
    rows: pa.Table


def plan(store: Store, keep: Sequence[str], shard: Shard | None = None) -> Plan:
    """Find what is not needed any more and not to be kept, of all candidates or those of one share.

    A candidate needs nothing more when it is rendered, rejected or failed; one that is still open keeps all it has.
    """
    previews = tables.read(store, "previews")
    clips = tables.read(store, "clips", ["clip_id", "status"])
    final = pc.is_in(clips["status"], pa.array(["rendered", "rejected", "failed"]))
    ended = clips.filter(final)["clip_id"].combine_chunks()
    rows = previews.filter(pc.is_in(previews["clip_id"], ended))
    if shard is not None:
        rows = shard.of(rows)
    named: set[str] = set()
    changed = pa.array([False] * rows.num_rows)
    for what, columns in _COLUMNS.items():
        for name in columns if what not in keep else ():
            changed = pc.or_(changed, rows[name].is_valid())
            named.update(rows[name].drop_null().to_pylist())
            rows = tables.with_column(rows, name, None)
    sizes = _sizes(store, sorted({key.partition("/")[0] for key in named}))
    keys = tuple(sorted(named & sizes.keys()))
    return Plan(keys, sum(sizes[key] for key in keys), rows.filter(changed))


def prune(store: Store, planned: Plan) -> None:
    """Do it; hold the claim of the run. Rows first: killed in between, `verify` finds objects that no row names."""
    tables.supersede(store, "previews", planned.rows)
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(store.delete, planned.keys))


def _sizes(store: Store, folders: Sequence[str]) -> dict[str, int]:
    return {key: size for folder in folders for key, size in store.sizes(folder).items()}
