"""One row a candidate of a run: what the ledger, the scorers, people and the prompt file say of it, joined."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.graph.standing import Standing
from flashvideo_ray.ledger import decisions, tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.texts import Texts
from flashvideo_ray.scorers import columns
from flashvideo_ray.settings import Settings

PEOPLE = ("decision", "decided_by")
_OWN = {*tables.PREVIEWS.names, *tables.CLIPS.names, *PEOPLE}


def read(store: Store, settings: Settings) -> pa.Table:
    """The candidates of a run's present prompts that the ledger knows more of than that they are wanted.

    All columns of both tables; what the clips table says goes first. `decision` is `approved` or `rejected` by a
    person, `decided_by` who it was.
    """
    now = Standing.read(store, settings)
    previews, clips = now.previews, now.clips
    known = previews["clip_id"].combine_chunks()
    ids = pa.concat_arrays(
        [known, clips.filter(pc.invert(pc.is_in(clips["clip_id"], known)))["clip_id"].combine_chunks()]
    )
    ended = pc.index_in(ids, clips["clip_id"].combine_chunks())
    rows = _first_of(clips.take(ended), previews.take(pc.index_in(ids, known)))
    reason = pc.if_else(ended.is_valid(), clips["reason"].take(ended), rows["reason"])
    rows = tables.with_column(rows, "reason", reason)
    people = decisions.opinions(store)
    said = [people.get(clip_id) for clip_id in ids.to_pylist()]
    words = [None if each is None else "approved" if each.approved else "rejected" for each in said]
    rows = tables.with_column(rows, "decision", pa.array(words, pa.string()))
    return tables.with_column(
        rows, "decided_by", pa.array([None if each is None else each.by for each in said], pa.string())
    )


def with_open(store: Store, rows: pa.Table) -> pa.Table:
    """The candidates that `read` gave, and those that have not begun, whose status is `open`.

    Of the latter the ledger knows no carried columns but those of other candidates of the same prompt. By prompt and
    candidate, in the order in which they were asked for.
    """
    wanted = tables.read(store, "candidates")
    newest = wanted.group_by("id").aggregate([("at", "max")])
    last = newest["at_max"].take(pc.index_in(wanted["id"], newest["id"].combine_chunks()))
    wanted = wanted.filter(pc.equal(wanted["at"], last))
    wanted = wanted.filter(pc.invert(pc.is_in(wanted["clip_id"], rows["clip_id"].combine_chunks())))
    wanted = Texts.read(store).present(wanted)
    wanted = tables.with_column(wanted, "status", "open")
    like = pc.index_in(wanted["id"], rows["id"].combine_chunks())
    for name in carried(rows):
        wanted = wanted.append_column(name, rows[name].take(like))
    together = pa.concat_tables([rows, wanted], promote_options="permissive")
    prompts = together["id"].combine_chunks().dictionary_encode().indices
    order = pa.table({"prompt": prompts, "candidate": together["candidate"]})
    return together.take(pc.sort_indices(order, [("prompt", "ascending"), ("candidate", "ascending")]))


def carried(rows: pa.Table) -> list[str]:
    """The columns that the prompt file had beside its own."""
    return [name for name in rows.column_names if name not in _OWN and not columns.is_score(name)]


def named_as_in_rules(rows: pa.Table) -> pa.Table:
    """The rows with each score also by its plain name, as rules of `select` call it, and all columns of the ledger."""
    for schema in (tables.PREVIEWS, tables.CLIPS):
        for field in schema:
            if field.name not in rows.column_names:
                rows = rows.append_column(field.name, pa.nulls(rows.num_rows, field.type))
    for name in columns.those_in(rows.column_names):
        plain = columns.name_of(name)
        if plain not in rows.column_names:
            rows = rows.append_column(plain, rows[name])
    return rows


def _first_of(first: pa.Table, second: pa.Table) -> pa.Table:
    """Tables of equal length as one; of a column that both have, the first value that is not null."""
    both = pa.concat_tables([first, second], promote_options="permissive")
    one, other = both.slice(0, first.num_rows), both.slice(first.num_rows)
    names = dict.fromkeys([*second.column_names, *first.column_names])
    return pa.table({name: pc.coalesce(one[name], other[name]) for name in names})
