"""DEST, and what it remembers: its recipe, which shards are whole and what is in them, what is being written now.

    DEST/export.json                the recipe, the columns of its rows, the run it is of
    DEST/data/train-00000.tar       a shard
    DEST/index/train-00000.parquet  what is in it, with checksums; written after it: a shard without one is not whole
    DEST/media/ab/<clip_id>.mp4     videos, where the shards name them and do not hold them
    DEST/pending.parquet            which rows go into which shards, while an export is being made
    DEST/withdrawn.parquet          rows of shards that belong in the dataset no more
    DEST/README.md, columns.json    the card, and what the columns mean

A shard is never written again once it is in the index.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import os
import posixpath
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flashvideo_ray.export.options import ExportError
from flashvideo_ray.ledger import run_file
from flashvideo_ray.ledger.store import Store

_CONNECTIONS = 16  # an object store answers slowly, but many questions at a time
FILE, PENDING, WITHDRAWN = "export.json", "pending.parquet", "withdrawn.parquet"
_PENDING = pa.schema([pa.field("shard", pa.string(), nullable=False), pa.field("key", pa.string())])


class Destination:
    """A dataset at an fsspec URL. Whoever writes to it holds the claim on it."""

    def __init__(self, store: Store, key: str):
        self.store = store
        self.key = key
        """The column that names a row: `clip_id`, or `pair_id`."""

    def recipe(self) -> dict[str, Any] | None:
        """The recipe that is there, or None where nothing is. Raises ExportError if something else is."""
        try:
            return dict(self._about()["recipe"])
        except FileNotFoundError:
            if self.store.keys("data") or self.store.exists("run.json"):
                raise ExportError(f"{self.store.url} holds something else already; name an empty place") from None
            return None
        except (ValueError, KeyError, TypeError):
            raise ExportError(f"{self.store.url}: its {FILE} is damaged; export to another place") from None

    def check(self, recipe: Mapping[str, Any]) -> None:
        """Raise RecipeError if a dataset of another recipe is there, with the differences."""
        there = self.recipe()
        if there is not None:
            hint = "Name another DEST, or give the options of that one."
            run_file.refuse_differences(f"{self.store.url} holds a dataset of another recipe", there, recipe, hint)

    def open(self, recipe: Mapping[str, Any], schema: pa.Schema) -> pa.Schema:
        """Begin a dataset, or take up the one that is there. Returns the columns of its rows."""
        if self.recipe() is None:
            about = {"recipe": dict(recipe), "schema": base64.b64encode(schema.serialize()).decode()}
            self.store.put(FILE, json.dumps(about, indent=2).encode())
        self._sweep()
        return self.schema()

    def schema(self) -> pa.Schema:
        """The columns of its rows, without videos: those of the run when the dataset was begun."""
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(self._about()["schema"])))

    def _about(self) -> dict[str, Any]:
        return dict(json.loads(self.store.get(FILE)))

    def _sweep(self) -> None:
        """Remove what a killed process left half-written in a local folder."""
        if self.store.is_local:
            for folder, _, names in os.walk(self.store.path()):
                for name in names:
                    if name.startswith(".") and name.endswith(".partial"):
                        os.remove(os.path.join(folder, name))

    def pending(self) -> dict[str, list[str]] | None:
        """Keys of rows by shard, of an export that has begun and not ended."""
        try:
            rows = pq.read_table(pa.BufferReader(self.store.get(PENDING))).to_pylist()
        except FileNotFoundError:
            return None
        shards: dict[str, list[str]] = {}
        for row in rows:
            shards.setdefault(row["shard"], []).append(row["key"])
        return shards

    def begin(self, shards: Mapping[str, list[str]]) -> None:
        """Fix which rows go into which shards, so that whoever goes on after a kill writes the same ones."""
        rows = [{"shard": shard, "key": key} for shard, keys in shards.items() for key in keys]
        self.store.put(PENDING, parquet(pa.Table.from_pylist(rows, schema=_PENDING)))

    def end(self) -> None:
        """All shards that were begun are whole."""
        self.store.delete(PENDING)

    def whole(self) -> set[str]:
        """The shards that are whole."""
        suffix = ".parquet"
        names = {posixpath.basename(key).removesuffix(suffix) for key in self.store.keys("index", suffix)}
        return {key for key in self.store.keys("data") if stem(key) in names}

    def index(self) -> pa.Table:
        """What is in the shards that are whole, in their order."""
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            found = pool.map(self.store.get, self.store.keys("index", ".parquet"))
            parts = [pq.read_table(pa.BufferReader(data)) for data in found]
        nothing = pa.schema([pa.field(name, pa.string()) for name in (self.key, "split", "shard")])
        return pa.concat_tables([nothing.empty_table(), *parts], promote_options="permissive")

    def withdraw(self, gone: pa.Table, why: Mapping[str, str], otherwise: str) -> pa.Table:
        """Write which rows of the shards belong in the dataset no more, with when that was seen first. Returns them."""
        schema = pa.schema(
            [
                pa.field(self.key, pa.string(), nullable=False),
                pa.field("shard", pa.string(), nullable=False),
                pa.field("why", pa.string(), nullable=False),
                pa.field("at", pa.timestamp("ms", tz="UTC"), nullable=False),
            ]
        )
        try:
            before = pq.read_table(pa.BufferReader(self.store.get(WITHDRAWN))).to_pylist()
        except FileNotFoundError:
            before = []
        since = {row[self.key]: row["at"] for row in before}
        now = dt.datetime.now(dt.UTC)
        rows = [
            {
                self.key: row[self.key],
                "shard": row["shard"],
                "why": why.get(row[self.key], otherwise),
                "at": since.get(row[self.key], now),
            }
            for row in gone.select([self.key, "shard"]).to_pylist()
        ]
        withdrawn = pa.Table.from_pylist(rows, schema=schema)
        self.store.put(WITHDRAWN, parquet(withdrawn))
        return withdrawn


def stem(shard: str) -> str:
    """The name of a shard without folder and ending."""
    return posixpath.basename(shard).rpartition(".")[0]


def index_key(shard: str) -> str:
    """Where the index of a shard is."""
    return f"index/{stem(shard)}.parquet"


def parquet(rows: pa.Table) -> bytes:
    """A small table as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    return sink.getvalue().to_pybytes()
