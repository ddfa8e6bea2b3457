"""Candidates of a run as people and other programs ask for them: some of them, and prompts to be submitted again."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flashvideo_ray.errors import InputError
from flashvideo_ray.expressions.filters import Filter
from flashvideo_ray.graph import candidates, finish
from flashvideo_ray.ledger import run_file
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.prompts import CANDIDATE, OWN_COLUMNS

_BATCH = 10_000  # rows that are Python objects at a time


class ListingError(InputError):
    """What was asked for cannot be written. The message says what to do."""


def chosen(store: Store, where: str | None) -> tuple[pa.Table, int]:
    """The candidates that a filter holds for, or all; and how many there are.

    The filter reaches the columns of the ledger, scores (also by their plain names), `decision` and `decided_by`, and
    the columns of the prompts. Raises NoRunError, or RuleError for a filter that cannot be read.
    """
    condition = Filter.parse(where) if where is not None else None
    run = run_file.read_run(store)
    if run is None:
        raise run_file.NoRunError(f"{store.url}: no run here (no run.json); start one with render or preview")
    rows = candidates.with_open(store, candidates.read(store, finish.settings_of(store, run)))
    if condition is None:
        return rows, rows.num_rows
    return rows.filter(condition.over(candidates.named_as_in_rules(rows))), rows.num_rows


def write_prompts(rows: pa.Table, dest: str) -> None:
    """Write candidates to a Parquet file that `render` takes, and makes the same candidates of.

    It has a row for each: id, text, seed, number among the candidates of its prompt, and the carried columns. Raises
    ListingError if there are none, or if something is there already.
    """
    if not rows.num_rows:
        raise ListingError(f"{dest} is not written: no candidate is as you ask")
    folder, name = posixpath.split(dest)
    if not name:
        raise ListingError(f"{dest}: name a file, such as {posixpath.join(folder, 'again.parquet')}")
    store = Store(folder or ".")
    if store.exists(name):
        raise ListingError(f"{dest} is there already; choose another name, or remove it")
    sink = pa.BufferOutputStream()
    names = [*OWN_COLUMNS, CANDIDATE, *candidates.carried(rows)]
    pq.write_table(rows.select(names), sink, compression="zstd")
    store.put(name, sink.getvalue().to_pybytes())


def without_columns(rows: pa.Table) -> int:
    """Of how many candidates the ledger does not know the carried columns: their prompts have not begun."""
    names = candidates.carried(rows)
    blank = pc.equal(rows["status"], "open")
    for name in names:
        blank = pc.and_(blank, rows[name].is_null())
    return (pc.sum(blank).as_py() or 0) if names else 0


def json_lines(rows: pa.Table) -> Iterator[str]:
    """A JSON object for each candidate, with all its columns. NaN is null; times are as ISO 8601 writes them."""
    for index, field in enumerate(rows.schema):
        if pa.types.is_floating(field.type):
            column = rows[field.name].cast(pa.float64())
            finite = pc.if_else(pc.is_finite(column), column, pa.scalar(None, pa.float64()))
            rows = rows.set_column(index, field.name, finite)
    for batch in rows.to_batches(max_chunksize=_BATCH):
        for row in batch.to_pylist():
            yield json.dumps(row, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
