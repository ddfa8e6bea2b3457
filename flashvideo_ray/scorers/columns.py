"""What tables call scores: the number `motion` of a scorer is the column `score_motion` of the ledger."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

PREFIX = "score_"
TAKEN = frozenset({"seconds"})  # `score_seconds` is a time


def column(name: str) -> str:
    """The column of a score."""
    return PREFIX + name


def name_of(column: str) -> str:
    """The score in a column."""
    return column.removeprefix(PREFIX)


def is_score(column: str) -> bool:
    """Whether a column of the ledger holds a score."""
    return column.startswith(PREFIX) and name_of(column) not in TAKEN


def those_in(columns: Iterable[str]) -> list[str]:
    """The columns that hold scores, in their order."""
    return [name for name in columns if is_score(name)]


def fields(names: Iterable[str]) -> list[pa.Field]:
    """The columns of these scores, as the ledger has them; null where there is no number."""
    return [pa.field(column(name), pa.float64()) for name in names]
