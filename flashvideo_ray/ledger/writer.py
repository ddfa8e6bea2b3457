"""Rows on their way into the ledger: collected, written as parts, and small parts merged on the way.

A preview in fifteen seconds makes nearly every part one of a single row. So of `_FEW` parts of a writer one is made, of
as many of those one again, and so on; one of `_PART_ROWS` rows or more is left as it is, as those that are merged are
in memory together. So a hundred thousand parts leave some tens.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from flashvideo_ray.ledger import parquet_log
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.tables import Table, stem
from flashvideo_ray.settings import LedgerSettings

_FEW = 32
_PART_ROWS = 20_000


class Writer:
    """Collects rows and writes them as Parquet parts, when someone calls `flush_if_due` or `flush`.

    Safe to use from several threads. A part is written whole or not at all; rows that could not be written stay for the
    next flush, and the store's error is raised to its caller. So is that of a merge, which a later flush tries again:
    rows are durable before it, and readers see them once, whenever it is cut short.
    """

    def __init__(self, store: Store, table: Table, schema: pa.Schema, settings: LedgerSettings):
        self.store = store
        self.table = table
        self.schema = schema
        self.settings = settings
        self._rows: list[dict[str, Any]] = []
        self._oldest = 0.0
        self._lock = threading.Lock()
        self._levels: list[list[tuple[str, int]]] = []  # parts of this writer, with their rows, by how often merged
        self._flushing = threading.Lock()

    def append(self, row: Mapping[str, Any], at: dt.datetime | None = None) -> None:
        """Add one row, of now or of then, to those that the next flush writes.

        Columns that the schema does not have are left out.
        """
        with self._lock:
            if not self._rows:
                self._oldest = time.monotonic()
            own = {name: row.get(name) for name in self.schema.names}
            self._rows.append({**own, "at": at or self.store.clock.now()})

    def withdraw(self) -> list[dict[str, Any]]:
        """Give back the rows that no flush has written or is writing."""
        with self._lock:
            rows, self._rows = self._rows, []
        return rows

    def write(self, rows: pa.Table) -> None:
        """Write many rows as a part of their own, now; columns that the schema does not have are left out."""
        if rows.num_rows:
            at = pa.array([self.store.clock.now()] * rows.num_rows, self.schema.field("at").type)
            columns = [at if name == "at" else rows[name] for name in self.schema.names]
            parquet_log.write(self.store, stem(self.table), pa.table(columns, schema=self.schema))

    @property
    def due(self) -> bool:
        """Whether enough rows or enough time have come together for a part."""
        with self._lock:
            return bool(self._rows) and (
                len(self._rows) >= self.settings.flush_rows
                or time.monotonic() - self._oldest >= self.settings.flush_seconds
            )

    def flush_if_due(self) -> None:
        """Write a part if that is due."""
        if self.due:
            self.flush()

    def flush(self, after: Callable[[], None] = lambda: None) -> None:
        """Make all rows durable now, `after` something else if there are some. Nobody who appends waits for the store.

        What is appended meanwhile is not among them: it may follow what is not durable yet. Those that another thread
        is writing are: it is waited for.
        """
        with self._flushing:
            with self._lock:
                rows, self._rows = self._rows, []
            if not rows:
                return
            try:
                after()
                part = parquet_log.write(self.store, stem(self.table), pa.Table.from_pylist(rows, schema=self.schema))
            except BaseException:
                with self._lock:
                    self._rows = rows + self._rows
                raise
            self._add(part, len(rows))

    def _add(self, part: str, rows: int, level: int = 0) -> None:
        if rows >= _PART_ROWS:
            return
        if level == len(self._levels):
            self._levels.append([])
        parts = self._levels[level]
        parts.append((part, rows))
        if len(parts) >= _FEW:
            merged = parquet_log.merge_some(self.store, [key for key, _ in parts])
            count = sum(rows for _, rows in parts)
            parts.clear()
            if merged is not None:
                self._add(merged, count, level + 1)
