"""Which candidates a page shows of a run that may have a million: the first of each kind, read whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.accounting.summary import Row, failed_alike, joined, merged, usable
from flashvideo_ray.prompts import visible
from flashvideo_ray.scorers import columns

CARDS = 120  # a section
PROMPTS = 40  # side by side
READ = 2_000  # candidates whose words are looked at
_MESSAGES = 5  # different ones for each class of failures
_KINDS = ("rendered", "waiting", "rejected", "failed", "skipped")
_DECIDED = ("status", "reason", "stage", "error_class", "error")
Whole = Callable[[pa.Array], tuple[pa.Table, pa.Table]]
"""Gives all columns of previews and clips for some clip_ids."""


class Some(Sequence[Any]):
    """A sequence of `count` things, of which the first are at hand."""

    def __init__(self, count: int, first: Sequence[Any]):
        self._count, self._first = count, first

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> Any: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Any]: ...

    def __getitem__(self, place: int | slice) -> Any:
        return self._first[place]


@dataclass(frozen=True)
class Sample:
    """What a page shows.

    `groups` are candidates by kind (their status; `waiting` is previewed or approved), `alone` those of prompts with
    one candidate. `contests` are prompts with several, `failures` candidates by stage and class of the error. `first`
    are some of all, and `table` all candidates with what the figures are made of.
    """

    groups: dict[str, Some]
    alone: dict[str, Some]
    contests: Some
    failures: list[dict[str, Any]]
    first: list[Row]
    table: pa.Table

    @classmethod
    def of(cls, previews: pa.Table, clips: pa.Table, scores: Iterable[str], whole: Whole | None = None) -> Sample:
        """Choose. `whole` is None where the tables have all columns."""
        table = _in_order(merged(previews, clips, ["id", "candidate", *_DECIDED, *map(columns.column, scores)]))
        ids = table["clip_id"]
        kinds = pc.if_else(pc.is_in(table["status"], pa.array(["previewed", "approved"])), "waiting", table["status"])
        prompts = pc.value_counts(table["id"])
        several = prompts.field("values").filter(pc.greater(prompts.field("counts"), 1))
        single = pc.invert(pc.is_in(table["id"], several))
        groups = {kind: ids.filter(pc.equal(kinds, kind)) for kind in _KINDS}
        alone = {kind: ids.filter(pc.and_(single, pc.equal(kinds, kind))) for kind in _KINDS}
        beside = ids.filter(pc.is_in(table["id"], several[:PROMPTS])).to_pylist()
        failures = [(*kind, alike.num_rows, _messages(alike)) for *kind, alike in failed_alike(table)]
        shown = [part.slice(0, CARDS).to_pylist() for part in (*groups.values(), *alone.values())]
        first = ids.slice(0, READ).to_pylist()
        chosen = pa.array(dict.fromkeys(chain(*shown, beside, first, *(found for *_, found in failures))), pa.string())
        both = whole(chosen) if whole is not None else (_of(previews, chosen), _of(clips, chosen))
        rows = _rows(chosen, table, *both)

        def at_hand(clip_ids: Iterable[str]) -> list[Row]:  # a job may have taken some back meanwhile
            return [rows[clip_id] for clip_id in clip_ids if clip_id in rows]

        def some(part: pa.ChunkedArray) -> Some:
            return Some(len(part), at_hand(part.slice(0, CARDS).to_pylist()))

        return cls(
            groups={kind: some(part) for kind, part in groups.items()},
            alone={kind: some(part) for kind, part in alone.items()},
            contests=Some(len(several), _contests(at_hand(beside))),
            failures=[
                {"stage": stage, "error_class": kind, "count": count, "examples": at_hand(found)}
                for stage, kind, count, found in sorted(failures, key=lambda failure: -failure[2])
            ],
            first=at_hand(first),
            table=table,
        )


def _in_order(table: pa.Table) -> pa.Table:
    """Candidates of one prompt side by side, prompts as they come."""
    prompts = table["id"].combine_chunks().dictionary_encode().indices.to_numpy()
    numbers = pc.fill_null(table["candidate"], 0).to_numpy()
    return table.take(pa.array(np.lexsort((numbers, prompts))))


def _messages(alike: pa.Table) -> list[str]:
    """Candidates that failed alike, with a few different messages."""
    found: dict[str | None, str] = {}
    for batch in alike.select(["clip_id", "error"]).to_batches():
        for clip_id, error in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            found.setdefault(error, clip_id)
            if len(found) == _MESSAGES:
                return [*found.values()]
    return [*found.values()]


def _of(table: pa.Table, clip_ids: pa.Array) -> pa.Table:
    return table.filter(pc.is_in(table["clip_id"], clip_ids))


def _rows(chosen: pa.Array, table: pa.Table, previews: pa.Table, clips: pa.Table) -> dict[str, Row]:
    """The chosen ones by clip_id, with what is said of them now; their text can be seen for what it is."""
    now = _of(table, chosen).select(["clip_id", *_DECIDED]).to_pylist()
    said = {row["clip_id"]: row for row in now}
    rows = (row | said[row["clip_id"]] for row in joined(previews, clips) if row["clip_id"] in said)
    return {row["clip_id"]: _visible(row) for row in rows}


def _visible(row: Row) -> Row:
    """A prompt may hold anything, and errors quote it."""
    return {name: visible(value) if isinstance(value, str) else value for name, value in row.items()}


def _contests(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Prompts, each with its candidates side by side, the best by rank first."""
    by_prompt: dict[str, list[Row]] = {}
    for row in rows:
        by_prompt.setdefault(row["id"], []).append(row)
    contests = []
    for group in by_prompt.values():
        ordered = sorted(group, key=lambda row: -row["rank"] if usable(row.get("rank")) else math.inf)
        contests.append({"prompt": group[0]["prompt"], "id": group[0]["id"], "rows": ordered})
    return contests
