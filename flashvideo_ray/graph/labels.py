"""What a job is asked for, against what its run was asked for before: types of carried columns, labels, texts.

The labels of a prompt are its id and its carried columns: all that a clip is not made of.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.ledger import parquet_log, tables, texts
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.prompts import PREVIEW_URL, SHOWN, PromptError, filled, same_values
from flashvideo_ray.scorers import columns

_OWN = {*tables.PREVIEWS.names, *tables.CLIPS.names, texts.DIGEST}
LABELLED: tuple[tables.Table, ...] = ("previews", "clips")
_PROMPTS_KEPT = 1_000  # a carried column may be a vector
_Prompt = tuple[str, int]  # its id, and the digest of its text
log = logging.getLogger("flashvideo_ray")


@dataclass(frozen=True)
class News:
    """What the ledger is told before the work of a job begins.

    `candidates` are rows of that table; `labels` are rows of prompts, with the `clip_id` that is to have their labels.
    """

    candidates: pa.Table | None = None
    labels: pa.Table | None = None

    def __bool__(self) -> bool:
        return self.candidates is not None or self.labels is not None

    def write(self, store: Store) -> None:
        """Tell it. Hold the claim of the run. May be repeated."""
        if self.candidates is not None:
            parquet_log.write(store, tables.stem("candidates"), self.candidates)
        if self.labels is None:
            return
        for which in LABELLED:
            rows = tables.read(store, which, only=self.labels["clip_id"].combine_chunks())
            tables.supersede(store, which, labelled(rows, self.labels))
            log.warning("%d rows of %s have their new labels", rows.num_rows, which)


def agreed(store: Store, table: pa.Table) -> pa.Table:
    """The job's candidates, whose columns without any value have the type that the ledger has.

    Raises PromptError if a carried column has another type in the ledger, which could not be read then.
    """
    carried = [name for name in table.column_names if name not in _OWN]
    for which in LABELLED:
        there = tables.read(store, which, carried, only=pa.array([], pa.string())).schema
        types = {field.name: field.type for field in there if field.type != pa.null()}
        table = filled(table, types)
        for name in carried:
            now, before = table.schema.field(name).type, types.get(name)
            if before is not None and before != now:
                raise PromptError(
                    f"column {name!r} holds {now}, and held {before} in the prompts that this run was started with; "
                    "make them the same, or use another OUTPUT"
                )
    return table


def fields(store: Store, damaged: Callable[[str, Exception], None] | None = None) -> list[pa.Field]:
    """The carried columns that a run has. Each may be null: what a service makes of prompts of its own has none."""

    def wanted(name: str) -> bool:
        return name in ("clip_id", "status", "at") or (name not in _OWN and not columns.is_score(name))

    nothing = pa.array([], pa.string())
    found: dict[str, pa.Field] = {}
    for which in LABELLED:
        for field in tables.read(store, which, wanted, only=nothing, damaged=damaged).schema:
            known = found.get(field.name)
            if field.name not in _OWN and (known is None or known.type == pa.null()):
                found[field.name] = field.with_nullable(True)
    return [*found.values()]


class Brought:
    """What prompts of a batch run brought along, for rows that a service adds beside it.

    Read once for each prompt: nobody else may give the run other labels meanwhile.
    """

    def __init__(self, store: Store, damaged: Callable[[str, Exception], None]):
        """A part of the ledger that is damaged is told to `damaged`, and what stands in it is not known."""
        self.store = store
        self.damaged = damaged
        self.fields = fields(store, damaged)
        self._known: set[str] = set()
        self._candidates: dict[str, dict[str, Any]] = {}
        self._prompts: dict[_Prompt, dict[str, Any]] = {}

    def labelled(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows with the carried columns of their candidate, or, of one that is new, with those of its prompt."""
        if len(self._known) > _PROMPTS_KEPT:
            for kept in (self._known, self._candidates, self._prompts):
                kept.clear()
        ids = {row["id"] for row in rows} - self._known
        if ids and self.fields:
            self._learn(ids)
        asked = pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in texts.COLUMNS})
        return [
            {**row, **(self._candidates.get(row["clip_id"]) or self._prompts.get(prompt, {}))}
            for row, prompt in zip(rows, _prompts(asked), strict=True)
        ]

    def _learn(self, ids: set[str]) -> None:
        names = [field.name for field in self.fields]
        asked = [*texts.COLUMNS, *names]
        of_prompts: dict[_Prompt, dict[str, dict[str, Any]]] = {}
        for which in reversed(LABELLED):  # of a candidate that has both, the preview's row counts
            rows = tables.of_prompts(self.store, which, pa.array(ids, pa.string()), asked, self.damaged)
            fits = {field.name for field in rows.schema if field.with_nullable(True) in self.fields}
            for row, prompt in zip(rows.to_pylist(), _prompts(rows), strict=True):
                brought = {name: row[name] if name in fits else None for name in names}
                has_some = any(value is not None for value in brought.values())
                if has_some or which == "previews":
                    self._candidates[row["clip_id"]] = brought
                if has_some:  # an earlier version's service wrote none
                    of_prompts.setdefault(prompt, {})[row["clip_id"]] = brought
        for prompt, candidates in of_prompts.items():
            self._prompts[prompt] = _common([*candidates.values()])
        self._known |= ids


def _common(candidates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all candidates of a prompt have in common. Where the preview of one came from says nothing of another's."""
    first, *others = candidates
    return {
        name: value
        for name, value in first.items()
        if name != PREVIEW_URL and all(repr(other[name]) == repr(value) for other in others)
    }


def relabelled(job: pa.Table, *ledger: pa.Table) -> pa.Table | None:
    """Rows of the job's prompts for candidates that have other labels in the tables of the ledger; None if none has.

    Further candidates of the same prompts, which the job does not name (they were drawn), go with the others.
    """
    found: dict[str, int] = {}
    moved: dict[_Prompt, int] = {}  # what a prompt was, and where the job has it
    ids = job["clip_id"].combine_chunks()
    for rows in ledger:
        where = pc.index_in(rows["clip_id"], ids)
        mine, where = rows.filter(where.is_valid()), where.drop_null()
        kept = [name for name in _labels(mine, job) if name in job.column_names]
        places = pa.array(_differing(mine, job.select(kept).take(where)), pa.int64())
        mine, where = mine.take(places), where.take(places)
        found.update(zip(mine["clip_id"].to_pylist(), where.to_pylist(), strict=True))
        moved.update(zip(_prompts(mine), where.to_pylist(), strict=True))
    for rows in ledger if moved else ():
        others = rows.filter(pc.invert(pc.is_in(rows["clip_id"], ids)))
        for clip_id, prompt in zip(others["clip_id"].to_pylist(), _prompts(others), strict=True):
            if prompt in moved:
                found[clip_id] = moved[prompt]
    if not found:
        return None
    rows = job.take(pa.array(list(found.values()), pa.int64()))
    return tables.with_column(rows, "clip_id", pa.array(list(found), pa.string()))


def _prompts(rows: pa.Table) -> list[_Prompt]:
    """The prompt of each row."""
    plain = texts.plain(rows)
    return [*zip(plain["id"].to_pylist(), plain[texts.DIGEST].to_pylist(), strict=True)]


def labelled(rows: pa.Table, labels: pa.Table) -> pa.Table:
    """Rows of a ledger table, of which those that `labels` names have its labels."""
    if not rows.num_rows:
        return rows
    at = pc.index_in(rows["clip_id"], labels["clip_id"].combine_chunks())
    for name in _labels(rows, labels):
        kind = labels.schema.field(name).type if name in labels.column_names else rows.schema.field(name).type
        new = labels[name].take(at) if name in labels.column_names else pa.nulls(rows.num_rows, kind)
        old = rows[name].cast(kind) if name in rows.column_names else pa.nulls(rows.num_rows, kind)
        both = zip(old.to_pylist(), new.to_pylist(), at.is_valid().to_pylist(), strict=True)
        column = pa.array([now if is_new else before for before, now, is_new in both], kind)
        index = rows.schema.get_field_index(name)
        field = pa.field(name, kind, nullable=name != "id")
        rows = rows.append_column(field, column) if index < 0 else rows.set_column(index, field, column)
    return rows


def refusal(labels: pa.Table, *ledger: pa.Table) -> str:
    """Why a job with other labels than its run has is not begun, and what to do."""
    lines: dict[str, None] = {}
    for rows in ledger:
        mine = rows.filter(pc.is_in(rows["clip_id"], labels["clip_id"].combine_chunks()))
        now = labelled(mine, labels)
        for name in _labels(mine, labels) if mine.num_rows else ():
            before = mine[name].to_pylist() if name in mine.column_names else [None] * mine.num_rows
            for there, here in zip(before, now[name].to_pylist(), strict=True):
                if repr(there) != repr(here):
                    lines[f"  {name}: {there!r} there, {here!r} now"] = None
    shown = [*lines][:SHOWN] + ([f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])
    return "\n".join(
        [
            f"{labels.num_rows} candidates of these prompts are in the run with other labels:",
            *shown,
            "Give them those that are there, or use another OUTPUT; --relabel writes the new ones into the run.",
        ]
    )


def _labels(rows: pa.Table, job: pa.Table) -> list[str]:
    names = dict.fromkeys([*job.column_names, *rows.column_names])
    return ["id", *(name for name in names if name not in _OWN and not columns.is_score(name))]


def _differing(rows: pa.Table, job: pa.Table) -> list[int]:
    """The places at which the labels differ. NaN is the same as NaN."""
    places: set[int] = set()
    for name in _labels(rows, job):
        a, b = (table[name] if name in table.column_names else pa.nulls(rows.num_rows) for table in (rows, job))
        if a.type == b.type and same_values(pa.chunked_array(a).combine_chunks(), pa.chunked_array(b).combine_chunks()):
            continue
        values = enumerate(zip(a.to_pylist(), b.to_pylist(), strict=True))
        places.update(place for place, (there, now) in values if repr(there) != repr(now))
    return sorted(places)
