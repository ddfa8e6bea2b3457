"""The names and sizes of a run's objects, in Arrow: where there are a million candidates they are millions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.ledger.store import Store

_LISTINGS = 8  # at a time
_SCHEMA = pa.schema([("key", pa.binary()), ("size", pa.int64())])  # bytes: a file's name need not be text


class Objects:
    """All objects below some folders of a run, hidden ones too, as they were when this was made."""

    def __init__(self, store: Store, folders: Iterable[str]):
        parts = [part for folder in folders for part in _listed(store, folder)]
        found = pa.concat_tables([_SCHEMA.empty_table(), *parts])
        self._keys = found["key"].combine_chunks()
        self._sizes = found["size"].combine_chunks()

    def __len__(self) -> int:
        return len(self._keys)

    def sizes(self, keys: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
        """Bytes of the objects with these keys; null where there is none."""
        return self._sizes.take(pc.index_in(keys.cast(pa.binary()), self._keys))

    def without(self, named: Iterable[pa.ChunkedArray]) -> Iterator[tuple[str, int]]:
        """Those that none of these columns of keys names, with their sizes."""
        strange = np.ones(len(self), bool)
        for keys in named:
            known = keys.cast(pa.binary()).combine_chunks()
            strange &= ~pc.is_in(self._keys, known).to_numpy(zero_copy_only=False)
        mask = pa.array(strange)
        for key, size in zip(self._keys.filter(mask), self._sizes.filter(mask), strict=True):
            yield as_text(key.as_py()), size.as_py()


def as_bytes(key: str) -> bytes:
    """A name as `Objects` holds it."""
    return key.encode(errors="surrogateescape")


def as_text(key: bytes) -> str:
    """The name that `as_bytes` took."""
    return key.decode(errors="surrogateescape")


def _listed(store: Store, folder: str) -> Iterator[pa.Table]:
    """What lies in the folder itself, then what is below each folder in it: no listing is of all there is."""
    path = store.path(folder)
    try:
        entries = store.fs.ls(path, detail=True)
    except FileNotFoundError:
        return
    folders = [entry["name"] for entry in entries if entry["type"] == "directory" and entry["name"].rstrip("/") != path]
    yield _table(store, [entry for entry in entries if entry["type"] != "directory"])
    with ThreadPoolExecutor(_LISTINGS) as pool:
        yield from pool.map(partial(_below, store), folders)


def _below(store: Store, path: str) -> pa.Table:
    found = store.fs.find(path, detail=True).values()
    return _table(store, [info for info in found if info["name"] != path])  # s3fs: a folder without any is found itself


def _table(store: Store, found: Iterable[Mapping[str, Any]]) -> pa.Table:
    root = store.path()
    keys, sizes = [], []
    for info in found:
        keys.append(as_bytes(info["name"].removeprefix(root).lstrip("/")))
        sizes.append(info["size"])
    return pa.table([keys, sizes], schema=_SCHEMA)
