"""Which text each prompt id stands for now.

A prompt is (id, prompt, negative prompt), and its candidates compete with one another alone. When the text is edited
under the same id, rows of the earlier text stay as they are and have no part in what is decided, counted and shown. The
present text of an id is that of its newest row in any table of the ledger: before a job begins it writes which
candidates it is about, so that it need not have made anything of a new text, or of an old one that has come back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.store import Store

COLUMNS = ("clip_id", "id", "prompt", "negative_prompt")
_TEXT = ("prompt", "negative_prompt")
DIGEST = "text digest"  # a column in the place of both texts: 64 bits are enough to tell those of one id apart
_AT_ONCE = 10_000  # rows whose texts are Python's
_FIRST, _LAST = -(2**62), 2**62  # as `at`, in milliseconds


@dataclass(frozen=True)
class Texts:
    """The digest of the present text (prompt, and negative prompt or nothing) of each id that has had several."""

    changed: Mapping[str, int]

    @classmethod
    def of(cls, *ledger: pa.Table, newest: pa.Table | None = None, oldest: pa.Table | None = None) -> Self:
        """From tables of the ledger, with COLUMNS and `at`; from rows that count as newer than all, or as older."""
        parts = [_texts(oldest, _FIRST), *(_texts(table) for table in ledger), _texts(newest, _LAST)]
        rows = pa.concat_tables(part for part in parts if part is not None)
        found = rows.group_by("id").aggregate([(DIGEST, "min"), (DIGEST, "max")])
        several = found["id"].filter(pc.not_equal(found[f"{DIGEST}_min"], found[f"{DIGEST}_max"]))
        if not len(several):
            return cls({})
        rows = rows.filter(pc.is_in(rows["id"], several.combine_chunks()))
        last = rows.group_by(["id", DIGEST]).aggregate([("at", "max")]).sort_by("at_max").to_pylist()
        return cls({row["id"]: row[DIGEST] for row in last})

    @classmethod
    def read(cls, store: Store) -> Self:
        """Those of a run."""
        columns = [*COLUMNS, "status", "at"]
        return cls.of(*(tables.read(store, table, columns, made=digested) for table in tables.SCHEMAS))

    def holds(self, table: pa.Table) -> pa.Array:
        """Of each row, whether its text is the present one of its id."""
        mask = np.ones(table.num_rows, bool)
        if self.changed:
            asked = pc.is_in(table["id"], pa.array(list(self.changed), pa.string()))
            places = np.flatnonzero(asked.to_numpy(zero_copy_only=False))
            for place, row in zip(places, plain(table.take(pa.array(places))).to_pylist(), strict=True):
                mask[place] = self.changed[row["id"]] == row[DIGEST]
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
    place = pc.index_in(job["clip_id"], recorded["clip_id"].combine_chunks())
    is_known = pc.fill_null(pc.equal(recorded["id"].take(place), job["id"]), False)
    present = Texts.of(*ledger, oldest=job).holds(job)
    new = job["id"].filter(pc.invert(pc.and_(is_known, present)))
    told = job if len(new) == len(job) else job.filter(pc.is_in(job["id"], pc.unique(new)))
    newest = max((pc.max(table["at"].cast(pa.int64())).as_py() or 0 for table in ledger), default=0)
    at = max(int(tables.now().timestamp() * 1000), newest + 1)
    columns = {
        **{name: told[name] for name in tables.CANDIDATES.names if name in told.column_names},
        "status": pa.array(["wanted"] * told.num_rows, pa.string()),
        "at": pa.array([at] * told.num_rows, pa.int64()).cast(tables.CANDIDATES.field("at").type),
    }
    return pa.table([columns[name] for name in tables.CANDIDATES.names], schema=tables.CANDIDATES)


def still_open(candidates: pa.Table, known: pa.ChunkedArray) -> int:
    """How many of the candidates that jobs were last started for are not `known` by their clip_ids."""
    newest = candidates.group_by("id").aggregate([("at", "max")])
    last = newest["at_max"].take(pc.index_in(candidates["id"], newest["id"].combine_chunks()))
    is_last, is_known = pc.equal(candidates["at"], last), pc.is_in(candidates["clip_id"], known.combine_chunks())
    return pc.sum(pc.and_(is_last, pc.invert(is_known))).as_py() or 0


def digested(table: pa.Table) -> pa.Table:
    """The table with a digest in the place of both texts, which `Texts` takes as well."""
    if DIGEST in table.column_names:
        return table
    kept = [name for name in table.column_names if name not in _TEXT]
    return table.select(kept).append_column(DIGEST, _digests(table))


def _digests(table: pa.Table) -> pa.ChunkedArray:
    """64 bits of each row's text; no negative prompt is an empty one."""
    found = []
    for batch in table.select([name for name in _TEXT if name in table.column_names]).to_batches(_AT_ONCE):
        negatives = batch["negative_prompt"].to_pylist() if batch.num_columns == len(_TEXT) else [None] * len(batch)
        made = [_digest(*texts) for texts in zip(batch["prompt"].to_pylist(), negatives, strict=True)]
        found.append(pa.array(made, pa.int64()))
    return pa.chunked_array(found, pa.int64())


def _digest(prompt: str, negative: str | None) -> int:
    text = "\0".join([prompt, negative or ""]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), signed=True)


def plain(table: pa.Table) -> pa.Table:
    """The id and the digest of each row."""
    digests = table[DIGEST] if DIGEST in table.column_names else _digests(table)
    return pa.table([table["id"], digests], names=["id", DIGEST])


def _texts(table: pa.Table | None, at: int | None = None) -> pa.Table | None:
    if table is None:
        return None
    times = table["at"].cast(pa.int64()) if at is None else pa.array([at] * table.num_rows, pa.int64())
    return plain(table).append_column("at", times)
