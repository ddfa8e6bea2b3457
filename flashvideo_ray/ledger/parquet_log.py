"""Tables in Parquet parts that are only added: written, read as one, and merged while others read and write.

Many small parts are merged by who writes them (`writer`), and all of them at the end of a job (`merge`).

A part is an object named `<prefix><stamp>-<random>.parquet`; its rows have a key (`clip_id` in all tables but that of
jobs), a `status` and `at`. The newest row of a key counts.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flashvideo_ray.errors import InputError, JobError, in_a_line
from flashvideo_ray.ledger.store import Store

KEY = "clip_id"
_CONNECTIONS = 16  # an object store answers slowly, but many questions at a time
_THREADS = 4  # for a local folder, where more only get in each other's way
_LISTINGS, _ENOUGH = 50, 4
_WHOLE = 2**22  # bytes; of a larger part in an object store only the columns that are asked for are fetched
_TAKE = 100_000  # rows
_GROUP = 65_536  # rows of a part that are read at once, where not all of it is wanted
Columns = Sequence[str] | Callable[[str], bool]
"""Names, or what says of a name whether it is one of them."""
log = logging.getLogger("flashvideo_ray")


class DamagedPartError(InputError):
    """A part of the ledger is no Parquet file, or a damaged one. The message names it and what mends it."""


class UnreadablePartError(JobError):
    """This machine, or its share, fails to read a part of the ledger, which may well be whole. The message names it."""


@dataclass(frozen=True)
class Compaction:
    """What was merged. `rows` are those that remain, `superseded` those that had a newer one."""

    parts_before: int
    parts_after: int
    rows: int
    superseded: int


def write(store: Store, stem: str, rows: pa.Table) -> str:
    """Write one part, and return its key; parts are read in the order of their stems."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", row_group_size=_GROUP)
    part = f"{stem}-{uuid.uuid4().hex[:8]}.parquet"
    store.put(part, sink.getvalue().to_pybytes())
    return part


def read_all(
    store: Store,
    prefix: str,
    columns: Columns | None = None,
    damaged: Callable[[str, Exception], None] | None = None,
    key: str = KEY,
    only: pa.Array | None = None,
    made: Callable[[pa.Table], pa.Table] | None = None,
) -> dict[str, pa.Table]:
    """All parts by key, in the order of their keys; of each the `columns`, and the rows whose key is one of `only`.

    Each is `made` into what is wanted of it as it is read, so that no more of all need be in memory.

    A listing is no snapshot: while parts are being merged it may name old ones that are gone by the time they are read,
    or miss both those and the new one. So it is repeated until one tells nothing new and nothing was gone before it.
    Rows of a part that is gone are in a newer one. Where others write all the time, `_ENOUGH` listings have told what
    was there when the first began, as merges are ever rarer. A part that is damaged raises DamagedPartError, or is left
    out and told to `damaged`. Raises UnreadablePartError.
    """
    found: dict[str, pa.Table | None] = {}
    gone = False
    with _pool(store) as pool:
        for number in range(_LISTINGS):
            new = [(name, size) for name, size in _list(store, prefix) if name not in found]
            if not gone and (not new or number >= _ENOUGH):
                break
            gone = False
            read = partial(_read, store, key, columns, only=only, made=made)
            for (name, _size), part in zip(new, pool.map(read, new), strict=True):
                if part is None:
                    gone = True
                elif not isinstance(part, DamagedPartError):
                    found[name] = part
                elif damaged is None:
                    raise part
                else:
                    damaged(name, part)
                    found[name] = None
        else:
            raise OSError(f"{store.url}: the parts of the ledger change faster than they can be read")
    pa.default_memory_pool().release_unused()  # what threads that are gone have read with
    return {name: part for name, part in sorted(found.items()) if part is not None}


def read_new(store: Store, prefix: str, known: set[str]) -> dict[str, pa.Table]:
    """The parts that are not `known`, by key, from one listing; for a reader that looks again and again.

    A part that was merged into another while it was to be read is left out: the next look finds the other.
    """
    new = [(key, size) for key, size in _list(store, prefix) if key not in known]
    if not new:
        return {}
    with _pool(store) as pool:
        found = dict(zip([key for key, _ in new], pool.map(partial(_read, store, KEY, None), new), strict=True))
    for part in found.values():
        if isinstance(part, DamagedPartError):
            raise part
    return {key: part for key, part in sorted(found.items()) if isinstance(part, pa.Table)}


def extent(store: Store, prefix: str) -> tuple[int, int]:
    """How many parts there are and how many bytes they have, from one listing."""
    sizes = [size for _, size in _list(store, prefix)]
    return len(sizes), sum(sizes)


def newest(parts: list[pa.Table], *, keep_open: bool = False, key: str = KEY) -> pa.Table:
    """One row each key, oldest first, without those whose status is `open` unless they are to be kept.

    Of rows with the same `at` the last one counts. Empties the list, so that no row need be in memory twice.
    """
    masks = _counting(parts, keep_open, key)
    for index, mask in enumerate(masks):
        if not mask.all():
            parts[index] = parts[index].filter(pa.array(mask))
    rows = _joined(parts)
    parts.clear()
    at = rows["at"].cast(pa.int64()).to_numpy()
    if (at[1:] >= at[:-1]).all():
        return rows
    order = np.argsort(at, kind="stable")
    # A slice at a time: text of more than 2 GiB does not fit into one Arrow string array.
    return pa.concat_tables(rows.take(pa.array(order[i : i + _TAKE])) for i in range(0, len(order), _TAKE))


def _counting(parts: Sequence[pa.Table], keep_open: bool, key: str) -> list[NDArray[np.bool_]]:
    """Of the rows of each part, whether they count: they are the newest of their key."""
    ids = pa.chunked_array([chunk for part in parts for chunk in part[key].chunks], pa.string())
    encoded = ids.dictionary_encode().chunks  # they share one dictionary
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in encoded] or [np.empty(0, np.int32)])
    at = np.concatenate([part["at"].cast(pa.int64()).to_numpy() for part in parts])
    order = np.argsort(at, kind="stable")
    last = np.zeros(codes.max(initial=-1) + 1, np.int64)
    last[codes[order]] = order  # of what is assigned to one place, the last stays
    keep = np.zeros(len(at), bool)
    keep[last] = True
    if not keep_open:
        keep &= np.concatenate([pc.not_equal(part["status"], "open").to_numpy() for part in parts])
    return np.split(keep, np.cumsum([part.num_rows for part in parts])[:-1])


def merge(store: Store, prefix: str, part_rows: int, key: str = KEY) -> Compaction:
    """Write the newest rows of all parts into new ones of `part_rows` rows, then delete those that were read.

    Parts are read twice, some rows at a time: first what tells which rows count (and whether all can be read), then
    the rows, so that no more than one new part is in memory.
    """
    found = read_all(store, prefix, key=key, made=lambda rows: rows.select([key, "status", "at"]))
    if not found:
        return Compaction(0, 0, 0, 0)
    keys = list(found)
    # What an open row takes back may be in a part that nobody merged.
    masks = _counting([*found.values()], keep_open=True, key=key)
    del found
    total, rows = sum(map(len, masks)), sum(int(mask.sum()) for mask in masks)
    count = -(-rows // part_rows)
    if len(keys) <= count and rows == total:
        return Compaction(len(keys), len(keys), total, 0)
    read: list[str] = []
    pieces = (piece for name, mask in zip(keys, masks, strict=True) for piece in _counted(store, name, mask, read))
    for part in _filled(pieces, part_rows):
        write(store, _stem_of(keys[-1]), part)
    _delete(store, read)
    return Compaction(len(keys), count, rows, total - rows)


def _counted(store: Store, name: str, mask: NDArray[np.bool_], read: list[str]) -> Iterator[pa.Table]:
    """The rows of a part that count, some at a time. It is added to those that were `read`, unless it is gone."""
    try:
        source = pa.OSFile(store.path(name)) if store.is_local else pa.BufferReader(store.get(name))
    except FileNotFoundError:
        return  # merged by somebody else, into a part that is none of these
    with source, pq.ParquetFile(source) as file:
        start = 0
        for piece in _batches(file):
            yield piece.filter(pa.array(mask[start : (start := start + piece.num_rows)]))
    read.append(name)


def _filled(pieces: Iterable[pa.Table], part_rows: int) -> Iterator[pa.Table]:
    """The rows of all pieces, as they come, in tables of `part_rows` rows and one of what is left."""
    held: list[pa.Table] = []
    for piece in pieces:
        held.append(piece)
        while sum(part.num_rows for part in held) >= part_rows:
            rows = _joined(held)
            held = [rows.slice(part_rows)]
            yield rows.slice(0, part_rows)
    if any(part.num_rows for part in held):
        yield _joined(held)


def _joined(parts: Sequence[pa.Table]) -> pa.Table:
    """Of a column that some parts lack their rows have nulls, so that it may have them, whatever the others say."""
    everywhere = set.intersection(*(set(part.column_names) for part in parts))

    def loosened(part: pa.Table) -> pa.Table:
        fields = [field if field.name in everywhere else field.with_nullable(True) for field in part.schema]
        return pa.table(part.columns, schema=pa.schema(fields))

    return pa.concat_tables(map(loosened, parts), promote_options="permissive")


def merge_some(store: Store, keys: Sequence[str]) -> str | None:
    """Write the newest rows of these parts, of one writer, into one, then delete them; its key.

    Parts that are gone were merged by somebody else; None if all are. Raises DamagedPartError, and changes nothing, if
    one of the others cannot be read.
    """
    with _pool(store) as pool:
        found = [part for part in pool.map(partial(_read, store, KEY, None), [(key, 0) for key in keys]) if part]
    for part in found:
        if isinstance(part, DamagedPartError):
            raise part
    if not found:
        return None
    merged = write(store, _stem_of(keys[-1]), newest(found, keep_open=True))
    _delete(store, keys)
    return merged


def _stem_of(key: str) -> str:
    """In the order of names what is merged stands where the last old part stood: before any that was added since."""
    return key.rpartition("-")[0]


def _delete(store: Store, keys: Sequence[str]) -> None:
    with _pool(store) as pool:
        list(pool.map(store.delete, keys))


def _pool(store: Store) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS if store.is_local else _CONNECTIONS)


def _list(store: Store, prefix: str) -> Iterator[tuple[str, int]]:
    for key, size in store.sizes(prefix.rpartition("/")[0]).items():
        if key.startswith(prefix) and key.endswith(".parquet"):
            yield key, size


def _read(
    store: Store,
    key: str,
    columns: Columns | None,
    listed: tuple[str, int],
    only: pa.Array | None = None,
    made: Callable[[pa.Table], pa.Table] | None = None,
) -> pa.Table | DamagedPartError | None:
    """One part, or None if it is gone, or what is wrong with it."""
    name, size = listed
    if not store.is_local and columns is not None and size > _WHOLE:
        try:
            file = pa.PythonFile(store.fs.open(store.path(name), cache_type="none"), mode="r")
            return _parse(store, file, key, columns, only, made)
        except FileNotFoundError:
            return None
        except MemoryError as error:
            raise _unreadable(store, name, error) from error
        except Exception as error:  # damaged, or the store went away: reading it whole is patient, and tells which
            log.warning("%s/%s: %s: %s; reading it whole", store.url, name, type(error).__name__, error)
    try:
        source = pa.OSFile(store.path(name)) if store.is_local else pa.BufferReader(store.get(name))
    except FileNotFoundError:
        return None
    try:
        return _parse(store, source, key, columns, only, made)
    except FileNotFoundError:
        return None
    except Exception as error:  # Arrow has no class of its own for a damaged file
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
            raise _unreadable(store, name, error) from error
        return DamagedPartError(
            f"{store.url}: {name} cannot be read ({type(error).__name__}: {error}); "
            f"`flashvideo-ray verify {store.url} --repair` sets it aside and mends what it can"
        )


def _unreadable(store: Store, name: str, error: Exception) -> UnreadablePartError:
    return UnreadablePartError(
        f"{store.url}: this machine fails to read {name} ({in_a_line(error)}), which may well be whole: look after its "
        "disk, share or memory"
    )


def _parse(
    store: Store,
    source: pa.NativeFile,
    key: str,
    columns: Columns | None,
    only: pa.Array | None,
    made: Callable[[pa.Table], pa.Table] | None,
) -> pa.Table:
    with source, pq.ParquetFile(source) as file:
        names = file.schema_arrow.names
        missing = [name for name in (key, "status", "at") if name not in names]
        if missing:
            raise ValueError(f"no column {', '.join(missing)}")
        if callable(columns):
            columns = [name for name in names if columns(name)]
        wanted = names if columns is None else [name for name in columns if name in names]
        if only is None and made is None:
            part = file.read(wanted, use_threads=False)  # parts are read side by side already
        else:
            empty = file.schema_arrow.empty_table().select(wanted)
            pieces = _batches(file, wanted) if only is None else _chosen(file, wanted, key, only)
            part = pa.concat_tables(piece if made is None else made(piece) for piece in chain([empty], pieces))
    newest = pc.max(part["at"]).as_py()
    if newest is not None:
        store.clock.see(newest)
    return part


def _batches(file: pq.ParquetFile, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a part, some at a time."""
    for batch in file.iter_batches(_GROUP, columns=columns, use_threads=False):
        yield pa.Table.from_batches([batch])


def _chosen(file: pq.ParquetFile, columns: Sequence[str], key: str, only: pa.Array) -> Iterator[pa.Table]:
    """The rows of a part whose key is one of `only`: a column at a time, as they are few."""
    for group in range(file.num_row_groups) if len(only) else ():
        rows = np.flatnonzero(pc.is_in(file.read_row_group(group, [key])[key], only).to_numpy())
        if len(rows):
            taken = pa.array(rows)
            found = {name: file.read_row_group(group, [name], use_threads=False)[name].take(taken) for name in columns}
            yield pa.table(found, schema=pa.schema([file.schema_arrow.field(name) for name in columns]))
