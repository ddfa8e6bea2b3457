"""What is left to do in a run: the candidates that have not ended, and how far the next round takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.graph import labels
from flashvideo_ray.graph.labels import News
from flashvideo_ray.graph.verdicts import judged
from flashvideo_ray.ledger import decisions, tables, texts
from flashvideo_ray.ledger.shard import Shard
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.texts import Texts
from flashvideo_ray.prompts import PromptError
from flashvideo_ray.scorers import columns
from flashvideo_ray.settings import Settings

Until = Literal["preview", "refine"]
_DECIDED_BY = (*texts.COLUMNS, "candidate", "status", "at", "latents", "preview_sha256", "scorer_errors")


@dataclass(frozen=True)
class Work:
    """What is left to do: one round of a job.

    `rows` go through the graph, those that have a preview first. `context` holds previews of further candidates of
    their prompts, to be compared with. `decided` need nothing more than their row in the ledger. All of them are of
    prompts as they are now. `news` is to be told to the ledger first; `rendered` counts the clips that there are.
    `without_latents` are wanted, and cannot be refined from what is kept: only `render`, which has the prompts, makes
    their previews anew.
    """

    rows: pa.Table
    context: pa.Table
    decided: pa.Table
    until: Until
    news: News
    rendered: int
    without_latents: int = 0

    @property
    def previews(self) -> bool:
        """Whether a row needs a preview."""
        return "open" in self.rows["status"].unique().to_pylist()

    def __bool__(self) -> bool:
        return bool(self.rows.num_rows or self.decided.num_rows or self.news)


def next_work(
    store: Store,
    table: pa.Table | None,
    schema: pa.Schema,
    settings: Settings,
    until: Until = "refine",
    retry: str | None = None,
    more: Callable[[], pa.Table] | None = None,
    relabel: bool = False,
    shard: Shard | None = None,
) -> Work:
    """The candidates that have not ended, and how far to take them in the next round.

    Args:
        table: the candidates that the job is about; None for all that have a preview.
        schema: of rows of the graph.
        retry: as `check_retry` lets pass; failed candidates are taken up again.
        more: further candidates of the prompts in `table`, for those none of whose candidates survived.
        relabel: candidates that the ledger has under another id, or with other carried columns, get those of `table`.
            Otherwise they raise PromptError: what is made next would carry the old ones.
        shard: the share of the prompts that `table` has; all that is not of it is another job's.

    Rules that look at the whole run need all previews first: then a round makes previews, and the next one goes on. A
    preview whose latents were pruned is made anew if it is needed.
    """
    carried = [] if table is None else [name for name in table.column_names if name not in tables.CANDIDATES.names]
    # Texts, and all that no decision needs, are read of those alone that go on.
    recorded = tables.read(store, "candidates", [*texts.COLUMNS, "status", "at"], made=texts.digested)
    previews = tables.read(store, "previews", _decides, made=texts.digested)
    ended = [*texts.COLUMNS, "status", "stage", "error_class", "clip", "at", *carried]
    clips = tables.read(store, "clips", ended, made=texts.digested)
    if shard is not None and table is not None:
        recorded, previews, clips = (_own(rows, shard, table) for rows in (recorded, previews, clips))
    news, changed = News(), None
    if table is not None:
        changed = labels.relabelled(table, previews, clips)
        if changed is not None:
            if not relabel:
                raise PromptError(f"{store.url}: {labels.refusal(changed, previews, clips)}")
            previews, clips = labels.labelled(previews, changed), labels.labelled(clips, changed)
        unrecorded = texts.unrecorded(table, recorded, previews, clips)
        news = News(unrecorded if unrecorded.num_rows else None, changed)
    present = Texts.of(recorded, previews, clips, newest=table)
    previews, clips = present.present(previews), present.present(clips)
    previews = judged(previews, settings, decisions.opinions(store))
    over = _ended(previews, clips, settings, retry)
    if table is not None and more is not None and settings.select.draw:
        table = _with_more(table, more, previews, over, clips)
    usable = pc.or_(previews["latents"].is_valid(), pc.is_in(previews["clip_id"], over))
    wanted = pc.or_(pc.is_in(previews["status"], pa.array(["previewed", "approved"])), previews["audit"])
    gone = 0 if table is not None else pc.sum(pc.and_(wanted, pc.invert(usable))).as_py() or 0
    known = previews
    previews = previews.filter(usable)
    if table is not None:
        previews_here = previews.filter(pc.is_in(previews["clip_id"], table["clip_id"].combine_chunks()))
        fresh = _without(_without(table, previews["clip_id"]), over)
    else:
        previews_here, fresh = previews, previews.slice(0, 0)
    ready = _without(previews_here, over)
    if fresh.num_rows and settings.candidates > 1 and settings.select.compares_candidates:
        # Candidates whose prompt has others still to come are judged with them, and go on in the next round.
        context = previews_here.filter(pc.is_in(previews_here["id"], fresh["id"].combine_chunks()))
        ready = _without(ready, context["clip_id"])
    else:
        context = previews.slice(0, 0)
    lost = pc.and_(pc.is_in(ready["status"], pa.array(["rejected", "failed"])), pc.invert(ready["audit"]))
    ready = _whole(store, ready, changed)
    decided, survivors = ready.filter(lost), ready.filter(pc.invert(lost))
    if until == "preview":
        survivors = survivors.slice(0, 0)
    if fresh.num_rows and settings.select.needs_whole_run:
        until, survivors, decided = "preview", survivors.slice(0, 0), decided.slice(0, 0)
    fresh = _with_digests(_grouped(fresh, context, settings.select.compares_candidates), known)
    rows = [as_rows(survivors, schema), as_rows(fresh, schema)]
    rendered = pc.sum(pc.equal(clips["status"], "rendered")).as_py() or 0
    return Work(pa.concat_tables(rows), context, as_rows(decided, schema), until, news, rendered, gone)


def _decides(name: str) -> bool:
    """Whether a column of previews has a part in what is left to do: scores and labels have."""
    return name in _DECIDED_BY or name not in tables.PREVIEWS.names


def _own(rows: pa.Table, shard: Shard, table: pa.Table) -> pa.Table:
    """What the ledger has of a share; and of its candidates also where the ledger has them under another id."""
    mine = pc.is_in(rows["clip_id"], table["clip_id"].combine_chunks())
    return rows.filter(pc.or_(shard.holds(rows), mine))


def _ended(previews: pa.Table, clips: pa.Table, settings: Settings, retry: str | None) -> pa.Array:
    """The candidates that need nothing more, as selection is now."""
    place = pc.index_in(clips["clip_id"], previews["clip_id"].combine_chunks())
    now, audit = previews["status"].take(place), pc.fill_null(previews["audit"].take(place), False)
    was, error_class = clips["status"], pc.fill_null(clips["error_class"], "")
    out = pc.fill_null(pc.is_in(now, pa.array(["rejected", "failed"])), False)
    refined = pc.not_equal(pc.fill_null(clips["clip"], ""), "")
    _, _, wanted_class = (retry or "").partition(":")
    no_score = pc.equal(error_class, tables.MISSING_SCORE)
    stays = pc.not_equal(error_class, wanted_class) if wanted_class else pa.scalar(retry is None)
    rejected = pc.and_(pc.or_(out, place.is_null()), pc.or_(refined, pc.invert(audit)))
    failed = pc.if_else(no_score, pc.fill_null(pc.equal(now, "failed"), False), stays)
    done = pc.or_(
        pc.equal(was, "rendered"),
        pc.or_(pc.and_(pc.equal(was, "rejected"), rejected), pc.and_(pc.equal(was, "failed"), failed)),
    )
    return clips.filter(done)["clip_id"].combine_chunks()


def _whole(store: Store, previews: pa.Table, changed: pa.Table | None) -> pa.Table:
    """Previews with all columns of the ledger, and with what is said of them now."""
    if not previews.num_rows:
        return previews
    full = tables.read(store, "previews", only=previews["clip_id"].combine_chunks())
    if changed is not None:
        full = labels.labelled(full, changed)
    full = full.take(pc.index_in(previews["clip_id"], full["clip_id"].combine_chunks()))
    for name in previews.column_names:
        if name not in (texts.DIGEST, "prompt", "negative_prompt"):
            full = tables.with_column(full, name, previews[name])
    return full


def _with_more(
    table: pa.Table, more: Callable[[], pa.Table], previews: pa.Table, over: pa.Array, clips: pa.Table
) -> pa.Table:
    """The table, and further candidates of the prompts all of whose candidates were judged and none survived."""
    gone = pc.is_in(previews["status"], pa.array(["rejected", "failed"]))
    lost = set(previews.filter(gone)["clip_id"].to_pylist())
    lost |= set(clips.filter(pc.equal(clips["status"], "failed"))["clip_id"].to_pylist()) & set(over.to_pylist())
    hopeful = {
        prompt
        for clip_id, prompt in zip(table["clip_id"].to_pylist(), table["id"].to_pylist(), strict=True)
        if clip_id not in lost
    }
    further = more()
    return pa.concat_tables(
        [table, further.filter(pc.invert(pc.is_in(further["id"], pa.array(sorted(hopeful), pa.string()))))]
    )


def _grouped(fresh: pa.Table, context: pa.Table, together: bool) -> pa.Table:
    """Open candidates, each with how many of its prompt are judged at once: itself alone unless `together`."""
    group = pa.repeat(pa.scalar(1, pa.int32()), fresh.num_rows)
    if together:
        ids = fresh["id"].to_pylist()
        sizes = Counter([*ids, *context["id"].to_pylist()])
        group = pa.array([sizes[prompt] for prompt in ids], pa.int32())
    status = pa.repeat("open", fresh.num_rows)
    fresh = fresh.drop_columns([name for name in ("status", "audit") if name in fresh.column_names])
    return fresh.append_column("group", group).append_column("status", status)


def _with_digests(fresh: pa.Table, previews: pa.Table) -> pa.Table:
    """Open candidates, with the digest of the file that was fetched for them before, if one was."""
    if "preview_sha256" not in previews.column_names or not fresh.num_rows:
        return fresh
    at = pc.index_in(fresh["clip_id"], previews["clip_id"].combine_chunks())
    return fresh.append_column("preview_sha256", previews["preview_sha256"].take(at))


def context_rows(context: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """Previews to compare with, by prompt, as rows of the graph are compared."""
    names = columns.those_in(context.column_names)
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in context.select(["clip_id", "id", "candidate", "scorer_errors", "status", *names]).to_pylist():
        scores = [(columns.name_of(name), row.pop(name)) for name in names]
        by_prompt.setdefault(row["id"], []).append({**row, "scores": scores, "context": True})
    return by_prompt


def _without(table: pa.Table, clip_ids: pa.Array | pa.ChunkedArray) -> pa.Table:
    values = clip_ids.combine_chunks() if isinstance(clip_ids, pa.ChunkedArray) else clip_ids
    out = pc.is_in(table["clip_id"], values) if len(values) else None
    return table if out is None or not pc.any(out).as_py() else table.filter(pc.invert(out))


def as_rows(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with exactly the schema's columns; what it does not have is null."""
    nulls = {kind: pa.nulls(table.num_rows, kind) for kind in {*schema.types}}  # one for all columns of a type
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else nulls[field.type]
        for field in schema
    ]
    return pa.table(columns, schema=schema)
