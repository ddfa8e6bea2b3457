"""Rows on their way into the ledger: collected, and written as parts."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from flashvideo_ray.ledger import parquet_log
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.tables import Table, stem
from flashvideo_ray.settings import LedgerSettings


class Writer:
    """Collects rows and writes them as Parquet parts, when someone calls `flush_if_due` or `flush`.

    Safe to use from several threads. A part is written whole or not at all; rows that could not be written stay for the
    next flush, and the store's error is raised to its caller.
    """

    def __init__(self, store: Store, table: Table, schema: pa.Schema, settings: LedgerSettings):
        self.store = store
        self.table = table
        self.schema = schema
        self.settings = settings
        self._rows: list[dict[str, Any]] = []
        self._oldest = 0.0
        self._lock = threading.Lock()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row to those that the next flush writes; columns that the schema does not have are left out."""
        with self._lock:
            if not self._rows:
                self._oldest = time.monotonic()
            self._rows.append({**{name: row.get(name) for name in self.schema.names}, "at": self.store.clock.now()})

    def write(self, rows: pa.Table) -> None:
        """Write many rows as a part of their own, now; columns that the schema does not have are left out."""
        if rows.num_rows:
            at = pa.array([self.store.clock.now()] * rows.num_rows, self.schema.field("at").type)
            columns = [at if name == "at" else rows[name] for name in self.schema.names]
            parquet_log.write(self.store, stem(self.table), pa.table(columns, schema=self.schema))

    def flush_if_due(self) -> None:
        """Write a part if enough rows or enough time have come together."""
        with self._lock:
            due = self._rows and (
                len(self._rows) >= self.settings.flush_rows
                or time.monotonic() - self._oldest >= self.settings.flush_seconds
            )
        if due:
            self.flush()

    def flush(self) -> None:
        """Make all rows durable now. Nobody who appends waits for the store."""
        with self._lock:
            rows, self._rows = self._rows, []
        if not rows:
            return
        try:
            parquet_log.write(self.store, stem(self.table), pa.Table.from_pylist(rows, schema=self.schema))
        except BaseException:
            with self._lock:
                self._rows = rows + self._rows
            raise
