"""Which text each prompt id stands for now.

A prompt is (id, prompt, negative prompt), and its candidates compete with one another alone. When the text is edited
under the same id, rows of the earlier text stay as they are and have no part in what is decided, counted and shown. The
present text of an id is that of its newest row in any table of the ledger: before a job begins it writes which
candidates it is about, so that it need not have made anything of a new text, or of an old one that has come back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.store import Store

COLUMNS = ("clip_id", "id", "prompt", "negative_prompt")
_TEXT = ["id", "prompt", "negative_prompt"]
_FIRST, _LAST = -(2**62), 2**62  # as `at`, in milliseconds


@dataclass(frozen=True)
class Texts:
    """The present text (prompt, and negative prompt or nothing) of each id that has had several."""

    changed: Mapping[str, tuple[str, str]]

    @classmethod
    def of(cls, *ledger: pa.Table, newest: pa.Table | None = None, oldest: pa.Table | None = None) -> Self:
        """From tables of the ledger, with COLUMNS and `at`; from rows that count as newer than all, or as older."""
        parts = [_texts(oldest, _FIRST), *(_texts(table) for table in ledger), _texts(newest, _LAST)]
        found = pa.concat_tables(part for part in parts if part is not None).group_by(_TEXT).aggregate([("at", "max")])
        counts = pc.value_counts(found["id"])
        several = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        rows = found.filter(pc.is_in(found["id"], several)).sort_by("at_max").to_pylist()
        return cls({row["id"]: (row["prompt"], row["negative_prompt"]) for row in rows})

    @classmethod
    def read(cls, store: Store) -> Self:
        """Those of a run."""
        return cls.of(*(tables.read(store, table, COLUMNS) for table in tables.SCHEMAS))

    def holds(self, table: pa.Table) -> pa.Array:
        """Of each row, whether its text is the present one of its id."""
        mask = np.ones(table.num_rows, bool)
        if self.changed:
            asked = pc.is_in(table["id"], pa.array(list(self.changed), pa.string()))
            places = np.flatnonzero(asked.to_numpy(zero_copy_only=False))
            for place, row in zip(places, _plain(table).take(pa.array(places)).to_pylist(), strict=True):
                mask[place] = self.changed[row["id"]] == (row["prompt"], row["negative_prompt"])
        return pa.array(mask)

    def present(self, table: pa.Table) -> pa.Table:
        """The rows of present texts."""
        return table.filter(self.holds(table)) if self.changed else table

    def earlier(self, table: pa.Table) -> pa.Table:
        """The rows of texts that prompts had before."""
        return table.filter(pc.invert(self.holds(table))) if self.changed else table.slice(0, 0)


def unrecorded(job: pa.Table, *ledger: pa.Table) -> pa.Table:
    """The candidates of a job that its run's table `candidates` has to be told of, as rows of it.

    `ledger` is all that the run has: the tables `candidates`, `previews` and `clips`. Where a prompt is new, or has
    another text or other seeds than before, all its candidates are told, and are newer than all that is there.
    """
    recorded = ledger[0]
    known = set(zip(recorded["clip_id"].to_pylist(), recorded["id"].to_pylist(), strict=True))
    present = Texts.of(*ledger, oldest=job).holds(job).to_pylist()
    rows = zip(job["clip_id"].to_pylist(), job["id"].to_pylist(), present, strict=True)
    new = {prompt for clip_id, prompt, is_present in rows if not is_present or (clip_id, prompt) not in known}
    told = job.filter(pc.is_in(job["id"], pa.array(sorted(new), pa.string())))
    newest = max((pc.max(table["at"].cast(pa.int64())).as_py() or 0 for table in ledger), default=0)
    at = max(int(tables.now().timestamp() * 1000), newest + 1)
    columns = {
        **{name: told[name] for name in tables.CANDIDATES.names if name in told.column_names},
        "status": pa.array(["wanted"] * told.num_rows, pa.string()),
        "at": pa.array([at] * told.num_rows, pa.int64()).cast(tables.CANDIDATES.field("at").type),
    }
    return pa.table([columns[name] for name in tables.CANDIDATES.names], schema=tables.CANDIDATES)


def still_open(candidates: pa.Table, known: Collection[str]) -> int:
    """How many of the candidates that jobs were last started for are not `known` by their clip_ids."""
    newest = candidates.group_by("id").aggregate([("at", "max")])
    last = dict(zip(newest["id"].to_pylist(), newest["at_max"].to_pylist(), strict=True))
    return sum(
        row["at"] == last[row["id"]] and row["clip_id"] not in known
        for row in candidates.select(["clip_id", "id", "at"]).to_pylist()
    )


def _plain(table: pa.Table) -> pa.Table:
    """The text of each row; no negative prompt is an empty one."""
    negative = table["negative_prompt"] if "negative_prompt" in table.column_names else pa.nulls(table.num_rows)
    columns = [table["id"], table["prompt"], pc.fill_null(negative.cast(pa.string()), "")]
    return pa.table(columns, names=_TEXT)


def _texts(table: pa.Table | None, at: int | None = None) -> pa.Table | None:
    if table is None:
        return None
    times = table["at"].cast(pa.int64()) if at is None else pa.array([at] * table.num_rows, pa.int64())
    return _plain(table).append_column("at", times)
