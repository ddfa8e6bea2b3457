"""Rows that belong together, as one row: Ray Data then hands them to one actor, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

_ROWS = "rows"
_AT_ONCE = 1000  # bundles in one table


def bundled(rows: pa.Table, key: str) -> Iterator[pa.Table]:
    """One row for each value of a column, in the order in which the values come first, with all rows that have it.

    In tables of some of them, which copy nothing of rows that are in order.
    """
    chunks = rows[key].dictionary_encode().chunks  # of one dictionary, numbered as they come first
    codes = np.concatenate([np.empty(0, np.int32), *(chunk.indices.to_numpy() for chunk in chunks)])
    del chunks
    offsets = np.concatenate([[0], np.cumsum(np.bincount(codes))])
    if not (codes[1:] >= codes[:-1]).all():
        rows = rows.take(pa.array(np.argsort(codes, kind="stable")))
    del codes
    for first in range(0, len(offsets) - 1, _AT_ONCE):
        own = offsets[first : first + _AT_ONCE + 1]
        structs = rows.slice(own[0], own[-1] - own[0]).combine_chunks().to_struct_array().combine_chunks()
        yield pa.table({_ROWS: pa.LargeListArray.from_arrays(own - own[0], structs)})


def unbundled(bundles: pa.Table) -> Iterator[pa.Table]:
    """The rows of a table that `bundled` made, each in a table of its own."""
    for chunk in bundles[_ROWS].chunks:
        rows = pa.Table.from_struct_array(chunk.flatten())
        for index in range(rows.num_rows):
            yield rows.slice(index, 1)
