"""Prompts: read from any fsspec URL, checked as a whole before a GPU is touched, and turned into candidates."""

from __future__ import annotations

import hashlib
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from fsspec.core import url_to_fs

from flashvideo_ray.errors import InputError

FORMATS = (".parquet", ".jsonl", ".csv")
OWN_COLUMNS = ("id", "prompt", "negative_prompt", "seed")
_JSON_BLOCK = 64 * 2**20  # bytes; a row must fit into one
SHOWN = 5  # rows named in a message before it says how many more there are

PROMPTS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("negative_prompt", pa.string()),
        pa.field("seed", pa.int64(), nullable=False),
    ]
)


class PromptError(InputError):
    """The prompts cannot be used. The message names columns and rows (counted from 1) and says what to do."""


def read_prompts(url: str, *, base_seed: int = 0, reserved: Iterable[str] = ()) -> pa.Table:
    """Read and check prompts.

    `url` is a Parquet file, a folder or a glob of them (also `.jsonl` and `.csv`), at any fsspec URL. Column `prompt`
    is required; `id` (text or whole number, unique), `seed` (whole number from 0 to 2^63 - 1) and `negative_prompt`
    are optional; all others are carried along. A missing id is derived from the text, a missing seed from `base_seed`
    and the id, so that neither depends on the order of rows.

    Returns a table with the columns of PROMPTS and the carried ones. Raises PromptError with every kind of problem
    found.
    """
    files = [(path, _read_file(fs, path)) for fs, path in _files(url)]
    names = dict.fromkeys(name for _, table in files for name in table.column_names)
    if "prompt" not in names:
        near = next((name for name in names if name.lower().strip() in ("prompt", "prompts", "text", "caption")), None)
        hint = f"; rename {near!r} to 'prompt'" if near else ""
        raise PromptError(f"{url}: no column 'prompt' (columns: {', '.join(names) or 'none'}){hint}")
    taken = set(reserved) - set(OWN_COLUMNS)
    clashes = sorted(name for name in names if name in taken or name.startswith("score_"))
    if clashes:
        raise PromptError(f"{url}: column {', '.join(clashes)} has a name that the ledger uses; rename or drop it")
    try:
        table = pa.concat_tables([file for _, file in files], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise PromptError(f"{url}: the files do not agree on the type of a column: {error}") from None
    if table.num_rows == 0:
        raise PromptError(f"{url}: no rows")
    rows = _Rows([(posixpath.basename(path), file.num_rows) for path, file in files])
    return _checked(table, rows, base_seed, url)


def checked(rows: Sequence[Mapping[str, Any]], *, base_seed: int = 0) -> pa.Table:
    """Prompts that are at hand: mappings with `prompt` and, if wished, the other columns of PROMPTS.

    They are checked, named and seeded as `read_prompts` does. Raises PromptError.
    """
    kinds = {field.name: field.type for field in PROMPTS}
    given = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in kinds.items()}
    table = pa.table({name: column for name, column in given.items() if column.null_count < len(rows)})
    return _checked(table, _Rows([("", len(rows))]), base_seed, "prompts")


def digest(*parts: str) -> str:
    """20 hex characters that name the parts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


class _Rows:
    """Names rows for messages: `row 3`, or `b.parquet row 3` where there are several files."""

    def __init__(self, files: list[tuple[str, int]]):
        self.files = files

    def name(self, index: int) -> str:
        for path, count in self.files:
            if index < count:
                return f"row {index + 1}" if len(self.files) == 1 else f"{path} row {index + 1}"
            index -= count
        raise IndexError(index)

    def list(self, indices: Sequence[int]) -> str:
        shown = ", ".join(self.name(index) for index in indices[:SHOWN])
        return shown if len(indices) <= SHOWN else f"{shown} and {len(indices) - SHOWN} more"


def _files(url: str) -> list[tuple[fsspec.AbstractFileSystem, str]]:
    try:
        return _listed(url)
    except PromptError:
        raise
    except Exception as error:  # each file system has its own: no credentials, no such bucket, unknown protocol, …
        raise PromptError(f"{url}: cannot be listed: {type(error).__name__}: {error}") from error


def _listed(url: str) -> list[tuple[fsspec.AbstractFileSystem, str]]:
    fs, path = url_to_fs(url)
    if fs.isfile(path):
        if not path.endswith(FORMATS):
            raise PromptError(f"{url}: expected a file that ends with {', '.join(FORMATS)}")
        found = [path]
    elif any(mark in path for mark in "*?["):
        found = [p for p in sorted(fs.glob(path)) if p.endswith(FORMATS)]
    else:
        # List rather than ask whether the folder exists: object stores disagree on what a folder is.
        found = [
            p for p in sorted(fs.find(path)) if p.endswith(FORMATS) and not posixpath.basename(p).startswith(("_", "."))
        ]
    if not found:
        raise PromptError(f"{url}: no such file, and no {', '.join(FORMATS)} files below it")
    return [(fs, p) for p in found]


def _read_file(fs: fsspec.AbstractFileSystem, path: str) -> pa.Table:
    try:
        with fs.open(path, "rb") as file:
            if path.endswith(".parquet"):
                return _plain(pa.parquet.read_table(file))
            # An id such as 007 or 2024-01-02 must stay text, and prompts may hold line breaks.
            texts = {name: pa.string() for name in ("id", "prompt", "negative_prompt")}
            if path.endswith(".csv"):
                return pa.csv.read_csv(
                    file,
                    parse_options=pa.csv.ParseOptions(newlines_in_values=True),
                    convert_options=pa.csv.ConvertOptions(column_types=texts),
                )
            return _read_json(file.read(), texts)
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeDecodeError, OSError) as error:
        raise PromptError(f"{path}: cannot be read: {error}") from None


def _read_json(content: bytes, texts: Mapping[str, pa.DataType]) -> pa.Table:
    def parse(columns: Mapping[str, pa.DataType]) -> pa.Table:
        return pa.json.read_json(
            pa.BufferReader(content),
            read_options=pa.json.ReadOptions(block_size=_JSON_BLOCK),
            parse_options=pa.json.ParseOptions(explicit_schema=pa.schema(list(columns.items()))),
        )

    try:
        table = parse(texts)
    except pa.ArrowInvalid as error:
        if "(/id)" not in str(error):
            raise
        table = parse({name: kind for name, kind in texts.items() if name != "id"})  # whole numbers
    table.validate(full=True)
    return table.drop_columns([name for name in ("id", "negative_prompt") if _is_absent(table, name)])


def _is_absent(table: pa.Table, name: str) -> bool:
    return name in table.column_names and table[name].null_count == table.num_rows


def _plain(table: pa.Table) -> pa.Table:
    """The table with dictionaries decoded and text as `string`, so that files agree however they were written."""
    for index, field in enumerate(table.schema):
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        kind = pa.string() if pa.types.is_string_view(kind) or pa.types.is_large_string(kind) else kind
        if kind != field.type:
            table = table.set_column(index, field.name, table[field.name].cast(kind))
    return table


def _checked(table: pa.Table, rows: _Rows, base_seed: int, url: str) -> pa.Table:
    problems: dict[str, list[int]] = defaultdict(list)
    prompts = _texts(table, "prompt", problems, required=True)
    negatives = _texts(table, "negative_prompt", problems)
    given = _ids(table, problems)
    seeds = _seeds(table, problems)

    seen: dict[str, int] = {}
    for index, name in enumerate(given):
        if name is not None and name in seen:
            problems[f"the id {name!r} was used before ({rows.name(seen[name])}); ids must be unique"].append(index)
        elif name is not None:
            seen[name] = index
    if problems:
        lines = [f"{rows.list(indices)}: {problem}" for problem, indices in list(problems.items())[:SHOWN]]
        if len(problems) > SHOWN:
            lines.append(f"and {len(problems) - SHOWN} more kinds of problem")
        raise PromptError(f"{url}: " + "\n".join(lines))

    # Of two rows with the same text, only those with their own seed are different candidates.
    ids = [
        name if name is not None else digest(prompt or "", negative or "", str(seed if seed is not None else ""))[:12]
        for name, prompt, negative, seed in zip(given, prompts, negatives, seeds, strict=True)
    ]
    final_seeds = [
        seed if seed is not None else int(digest(str(base_seed), name)[:8], 16)
        for name, seed in zip(ids, seeds, strict=True)
    ]
    first: dict[str, int] = {}
    twice = [(first[name], index) for index, name in enumerate(ids) if first.setdefault(name, index) != index]
    if twice:
        shown = ", ".join(f"{rows.name(a)} and {rows.name(b)}" for a, b in twice[:SHOWN])
        more = f" and {len(twice) - SHOWN} more pairs" if len(twice) > SHOWN else ""
        raise PromptError(
            f"{url}: {shown}{more} are the same prompt with the same seed; "
            "drop one of each, or give each an id of its own or a seed"
        )
    own = pa.table([ids, prompts, negatives, final_seeds], schema=PROMPTS)
    for name in table.column_names:
        if name not in OWN_COLUMNS:
            own = own.append_column(table.schema.field(name), _carried(table[name], name))
    return own


def _carried(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """The column, if its values survive the way through Python objects that rows take."""
    try:
        if pa.chunked_array([pa.array(column.to_pylist(), column.type)], column.type).equals(column):
            return column
    except (ValueError, OverflowError, TypeError, pa.ArrowException):
        pass
    raise PromptError(
        f"column {name!r} holds {column.type}, which cannot be carried along unchanged; turn it into text or drop it"
    )


def _texts(table: pa.Table, name: str, problems: dict[str, list[int]], required: bool = False) -> list[str | None]:
    if name not in table.column_names:
        return [None] * table.num_rows
    column = table[name]
    if not (pa.types.is_string(column.type) or pa.types.is_null(column.type)):
        raise PromptError(f"column {name!r} holds {column.type}, expected text (string)")
    values = column.to_pylist()
    if required:
        for index, value in enumerate(values):
            if value is None:
                problems[f"{name} is null"].append(index)
            elif not value.strip():
                problems[f"{name} is empty"].append(index)
    return values


def _ids(table: pa.Table, problems: dict[str, list[int]]) -> list[str | None]:
    if "id" not in table.column_names:
        return [None] * table.num_rows
    kind = table["id"].type
    if not (pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise PromptError(f"column 'id' holds {kind}, expected text or whole numbers")
    values = [None if value is None else str(value) for value in table["id"].to_pylist()]
    if pa.types.is_null(kind):
        return values
    for index, value in enumerate(values):
        if value is None:
            problems["id is null; fill it, or drop the column to have ids derived from the text"].append(index)
        elif not value.strip():
            problems["id is empty"].append(index)
    return values


def _seeds(table: pa.Table, problems: dict[str, list[int]]) -> list[int | None]:
    if "seed" not in table.column_names:
        return [None] * table.num_rows
    kind = table["seed"].type
    if not (pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise PromptError(f"column 'seed' holds {kind}, expected whole numbers (int64)")
    values = table["seed"].to_pylist()
    for index, value in enumerate(values):
        if value is not None and not 0 <= value < 2**63:
            problems["seed is outside 0 to 2^63 - 1"].append(index)
    return values
