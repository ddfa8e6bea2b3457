"""One row a candidate of a run: what the ledger, the scorers, people and the prompt file say of it, joined."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.graph import finish
from flashvideo_ray.ledger import decisions
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.settings import Settings


def read(store: Store, settings: Settings) -> pa.Table:
    """The candidates of a run's present prompts, with all columns of both tables.

    What the clips table says goes first. `decision` is `approved` or `rejected` by a person, `decided_by` who it was.
    """
    previews, clips = finish.present(store, settings)
    known = previews["clip_id"].combine_chunks()
    ids = pa.concat_arrays(
        [known, clips.filter(pc.invert(pc.is_in(clips["clip_id"], known)))["clip_id"].combine_chunks()]
    )
    ended = pc.index_in(ids, clips["clip_id"].combine_chunks())
    rows = _first_of(clips.take(ended), previews.take(pc.index_in(ids, known)))
    reason = pc.if_else(ended.is_valid(), clips["reason"].take(ended), rows["reason"])
    rows = rows.set_column(rows.schema.get_field_index("reason"), "reason", reason)
    people = decisions.opinions(store)
    said = [people.get(clip_id) for clip_id in ids.to_pylist()]
    words = [None if each is None else "approved" if each.approved else "rejected" for each in said]
    return rows.append_column("decision", pa.array(words, pa.string())).append_column(
        "decided_by", pa.array([None if each is None else each.by for each in said], pa.string())
    )


def _first_of(first: pa.Table, second: pa.Table) -> pa.Table:
    """Tables of equal length as one; of a column that both have, the first value that is not null."""
    both = pa.concat_tables([first, second], promote_options="permissive")
    one, other = both.slice(0, first.num_rows), both.slice(first.num_rows)
    names = dict.fromkeys([*second.column_names, *first.column_names])
    return pa.table({name: pc.coalesce(one[name], other[name]) for name in names})
