"""Files of prompts at any fsspec URL, made into one table."""

from __future__ import annotations

import difflib
import logging
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from urllib.parse import unquote

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from flashvideo_ray.errors import no_file_system
from flashvideo_ray.prompts import formats
from flashvideo_ray.prompts.formats import FORMATS, IN_FOLDERS
from flashvideo_ray.prompts.rows import PromptError, Rows

_TEXTS = ("id", "prompt", "negative_prompt", "preview_url")  # an id such as 007 or 2024-01-02 must stay text
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # what Hive and Spark call a folder whose key is null
log = logging.getLogger("flashvideo_ray")


def read(url: str, columns: Mapping[str, str] | None = None) -> tuple[pa.Table, Rows]:
    """All rows of the files, in the order of their names, and how to name them.

    `columns` says which column of the files is the `prompt`, `id`, `seed` or `negative_prompt`, where it is called
    otherwise. Raises PromptError.
    """
    columns = columns or {}
    files = [(path, _read_file(fs, path, columns)) for fs, path in _files(url)]
    names = dict.fromkeys(name for _, table in files for name in table.column_names)
    for field, asked in columns.items():
        if asked not in names:
            near = difflib.get_close_matches(asked, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise PromptError(f"{url}: no column {asked!r} for {field} (columns: {', '.join(names) or 'none'}){hint}")
    if "prompt" not in {*names, *columns}:
        near = [name for name in names if name.lower().strip() in ("prompt", "prompts", "text", "caption")]
        hint = f"; if it is {near[0]!r}, say so: --column 'prompt={near[0]}'" if near else ""
        raise PromptError(f"{url}: no column 'prompt' (columns: {', '.join(names) or 'none'}){hint}")
    left_out = [name for name in names if name in columns and columns[name] != name and name not in columns.values()]
    if left_out:
        log.warning("%s: column %s is left out: another one is to be that", url, ", ".join(left_out))
    tables = _without_idle_types([_renamed(table, columns) for _, table in files])
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise PromptError(f"{url}: the files do not agree on the type of a column: {error}") from None
    if table.num_rows == 0:
        raise PromptError(f"{url}: no rows")
    return table, Rows([(name, table.num_rows) for name, (_, table) in zip(_short([*dict(files)]), files, strict=True)])


def _renamed(table: pa.Table, columns: Mapping[str, str]) -> pa.Table:
    """The table, in which a field is called what it is for."""
    own = {field: table[asked] for field, asked in columns.items() if asked in table.column_names}
    others = [name for name in table.column_names if name not in own and name not in columns.values()]
    return pa.table({**own, **{name: table[name] for name in others}}) if columns else table


def _short(paths: Sequence[str]) -> list[str]:
    """The files' names, with as many of their folders as are needed to tell them apart."""
    names = [posixpath.basename(path) for path in paths]
    if len({*names}) == len(paths):
        return names
    return [posixpath.relpath(path, posixpath.commonpath(paths)) for path in paths]


def _files(url: str) -> list[tuple[fsspec.AbstractFileSystem, str]]:
    try:
        return _listed(url)
    except PromptError:
        raise
    except ImportError as error:
        raise PromptError(no_file_system(url, error)) from None
    except Exception as error:  # each file system has its own: no credentials, no such bucket, unknown protocol, …
        raise PromptError(f"{url}: cannot be listed: {type(error).__name__}: {error}") from error


def _listed(url: str) -> list[tuple[fsspec.AbstractFileSystem, str]]:
    fs, path = url_to_fs(url)
    every = tuple(FORMATS)
    if fs.isfile(path):
        if not path.endswith(every):
            raise PromptError(f"{url}: expected a file that ends with {formats.SHOWN}")
        found = [path]
    elif any(mark in path for mark in "*?["):
        found = [p for p in sorted(fs.glob(path)) if p.endswith(every)]
    else:
        # List rather than ask whether the folder exists: object stores disagree on what a folder is.
        below = [p for p in sorted(fs.find(path)) if not _is_hidden(p.removeprefix(path))]
        found = [p for p in below if p.endswith(IN_FOLDERS)]
        named = next((end for end in every if any(p.endswith(end) for p in below)), None)
        if not found and named is not None:
            raise PromptError(
                f"{url}: of such files none is taken from a folder unless asked for: {url.rstrip('/')}/*{named}"
            )
    if not found:
        raise PromptError(f"{url}: no such file, and no files below it that end with {formats.SHOWN}")
    return [(fs, p) for p in found]


def _is_hidden(path: str) -> bool:
    """Whether it is something that writers of data sets leave beside the data: `_SUCCESS`, `_delta_log/…`, `.tmp`."""
    return any(part.startswith(("_", ".")) and "=" not in part for part in path.split("/"))


def _read_file(fs: fsspec.AbstractFileSystem, path: str, columns: Mapping[str, str]) -> pa.Table:
    texts = dict.fromkeys(columns.get(name, name) for name in _TEXTS)
    try:
        table = formats.read(path, partial(fs.open, path, "rb"), texts)
    except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError, OSError, EOFError) as error:
        raise PromptError(f"{path}: cannot be read: {error}") from None
    twice = [name for name, count in Counter(table.column_names).items() if count > 1]
    if twice:
        raise PromptError(f"{path}: there are several columns named {', '.join(twice)}; rename or drop all but one")
    table = _plain(table)
    _check_text(table, path)
    return _with_partitions(table, path)


def _is_idle(table: pa.Table, name: str) -> bool:
    return name in table.column_names and table[name].null_count == table.num_rows


def _without_idle_types(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """A column that holds nothing but null in one file has the type that it has in the others."""
    used: dict[str, pa.DataType] = {}
    for table in tables:
        for field in table.schema:
            if not _is_idle(table, field.name):
                used.setdefault(field.name, field.type)
    return [filled(table, used) for table in tables]


def filled(table: pa.Table, types: Mapping[str, pa.DataType]) -> pa.Table:
    """The table, whose columns that hold nothing but null have the type that `types` says, if it says one."""
    for index, field in enumerate(table.schema):
        if _is_idle(table, field.name) and types.get(field.name, field.type) != field.type:
            table = table.set_column(index, field.name, pa.nulls(table.num_rows, types[field.name]))
    return table


def _plain(table: pa.Table) -> pa.Table:
    """The table with dictionaries decoded, text as `string`, and types as the ledger's Parquet keeps them.

    So files agree however they were written, and with what the ledger gives back of them: of times in whole seconds, as
    CSV and JSON have them, Parquet makes milliseconds.
    """
    for index, field in enumerate(table.schema):
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        kind = pa.string() if pa.types.is_string_view(kind) or pa.types.is_large_string(kind) else kind
        kind = _in_parquet(kind)
        if kind != field.type:
            table = table.set_column(index, field.name, table[field.name].cast(kind))
    return table


def _in_parquet(kind: pa.DataType) -> pa.DataType:
    sink = pa.BufferOutputStream()
    try:
        pq.write_table(pa.schema([pa.field("column", kind)]).empty_table(), sink)
    except pa.ArrowException:
        return kind  # is refused later, by the column's name
    return pq.read_schema(pa.BufferReader(sink.getvalue())).field("column").type


def _check_text(table: pa.Table, path: str) -> None:
    """Raise PromptError for text that is not UTF-8: Arrow reads it all the same."""
    for name in table.column_names:
        column = table[name]
        if _is_valid(column):
            continue
        rows = [row for row in range(table.num_rows) if not _is_valid(column.take(pa.array([row])))]
        where = Rows([(path, table.num_rows)]).list(rows)
        raise PromptError(f"{path}: {where}: column {name!r} cannot be read: its text must be UTF-8")


def _is_valid(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _with_partitions(table: pa.Table, path: str) -> pa.Table:
    """The table with the keys of the folders that the file lies in (`date=2026-11-25/part.parquet`) as columns."""
    for key, value in _partitions(path):
        if key not in table.column_names:
            table = table.append_column(key, pa.array([value] * table.num_rows, pa.string()))
        elif not _holds_only(table[key], value):
            raise PromptError(f"{path}: column {key!r} and the folder {key}={value} do not agree; rename or drop one")
    return table


def _partitions(path: str) -> Iterator[tuple[str, str | None]]:
    for folder in posixpath.dirname(path).split("/"):
        key, mark, value = folder.partition("=")
        if key and mark:
            yield unquote(key), None if value == _NO_VALUE else unquote(value)


def _holds_only(column: pa.ChunkedArray, value: str | None) -> bool:
    try:
        texts = column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    return (
        texts.null_count == len(texts)
        if value is None
        else bool(pc.all(pc.fill_null(pc.equal(texts, value), False)).as_py())
    )
