"""What a file of prompts may be, and one table of each: Parquet, JSON, CSV, plain text, compressed or not."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Collection, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

DATA = (".parquet", ".jsonl", ".csv", ".tsv")
NAMED = (".json", ".txt")  # in a folder they are often about the data: read where they are named
_COMPRESSED = {"": None, ".gz": "gzip", ".zst": "zstd"}
FORMATS = {  # by how a name ends: the format, and its compression
    form + end: (form, codec)
    for form in (*DATA, *NAMED)
    for end, codec in _COMPRESSED.items()
    if form != ".parquet" or not end
}
IN_FOLDERS = tuple(end for end, (form, _) in FORMATS.items() if form in DATA)
SHOWN = f"{', '.join([*DATA, *NAMED])} (but .parquet also with .gz or .zst)"
_ROWS = 65_536  # of a Parquet file that are read together
_JSON_BLOCK = 64 * 2**20  # bytes; a row must fit into one
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_NOTHING = "\x01"  # parts columns of plain text, which has one


def read(path: str, opened: Callable[[], IO[bytes]], texts: Collection[str]) -> pa.Table:
    """The rows of one file, whose format its name tells. Columns in `texts` are read as text: an id `007` stays one.

    Raises ArrowInvalid, ArrowTypeError, OSError or ValueError if it is something else.
    """
    form, codec = next(known for end, known in FORMATS.items() if path.endswith(end))

    def bytes_of() -> Any:
        file = opened()
        if codec is not None:
            return pa.CompressedInputStream(pa.PythonFile(file, "r"), codec)
        if file.read(2) in _UTF_16:
            raise ValueError("it is UTF-16; save it as UTF-8")
        file.seek(0)
        return file

    if form == ".parquet":
        with opened() as file:
            # Some rows at a time: read at once, a million prompts take three times what they are in memory.
            rows = pa.parquet.ParquetFile(file)
            batches = rows.iter_batches(_ROWS, use_threads=False)
            return pa.Table.from_batches(batches, schema=rows.schema_arrow)
    if form == ".json":
        with bytes_of() as file:
            return _read_array(file.read(), texts)
    if form == ".jsonl":
        return _read_lines(bytes_of, texts)
    with bytes_of() as file:
        if form == ".txt":
            return _read_text(file)
        return _read_csv(file, "\t" if form == ".tsv" else ",", texts)


def _read_csv(file: Any, delimiter: str, texts: Collection[str]) -> pa.Table:
    """A table, in which text may not be UTF-8: Arrow does not say which row of a CSV file that is."""
    return _as_text(
        pa.csv.read_csv(
            file,
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),  # so do prompts
            convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.binary())),
        )
    )


def _read_text(file: Any) -> pa.Table:
    """A prompt a line, as it stands there."""
    return _as_text(
        pa.csv.read_csv(
            file,
            read_options=pa.csv.ReadOptions(column_names=["prompt"]),
            parse_options=pa.csv.ParseOptions(delimiter=_NOTHING, quote_char=False, ignore_empty_lines=False),
            convert_options=pa.csv.ConvertOptions(column_types={"prompt": pa.binary()}),
        )
    )


def _as_text(table: pa.Table) -> pa.Table:
    for index, field in enumerate(table.schema):
        if pa.types.is_binary(field.type):
            table = table.set_column(index, field.name, table.column(index).cast(pa.string(), safe=False))
    return table


def _read_lines(opened: Callable[[], Any], texts: Collection[str]) -> pa.Table:
    def parse(names: Collection[str]) -> pa.Table:
        with opened() as file:
            return pa.json.read_json(
                file,
                read_options=pa.json.ReadOptions(block_size=_JSON_BLOCK),
                parse_options=pa.json.ParseOptions(explicit_schema=pa.schema([(name, pa.string()) for name in names])),
            )

    table: pa.Table | None = None
    numbers: set[str] = set()
    while table is None:
        try:
            table = parse([name for name in texts if name not in numbers])
        except pa.ArrowInvalid as error:
            message = str(error)
            twice = re.search(r"Column\(/(.+)\) was specified twice in row (\d+)", message)
            if twice is not None:
                raise pa.ArrowInvalid(f"row {int(twice[2]) + 1}: {twice[1]!r} stands there twice") from None
            # Whole numbers are ids, too; what else they are is told by their type.
            changed = re.search(r"Column\(/(.+)\) changed from string to number", message)
            if changed is None or changed[1] in numbers or changed[1] not in texts:
                raise
            numbers.add(changed[1])
    given = [name for name in table.column_names if name not in texts or table[name].null_count < table.num_rows]
    return table.select(given) if table.num_rows else table


def _read_array(content: bytes, texts: Collection[str]) -> pa.Table:
    """Objects, or texts; through the lines that they could be, so that both forms are read alike."""
    items = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_Object)
    if not isinstance(items, list):
        what = "an object" if isinstance(items, dict) else f"a {type(items).__name__}"
        raise ValueError(f"it holds {what}, and not an array [ … ] of objects or of texts")
    if items and all(isinstance(item, str) for item in items):
        return pa.table({"prompt": pa.array(items, pa.string())})
    lines = io.BytesIO()
    for row, item in enumerate(items, start=1):
        if not isinstance(item, _Object):
            raise ValueError(f"row {row}: it is a {type(item).__name__}; all must be objects, or all texts")
        if item.twice is not None:
            raise ValueError(f"row {row}: {item.twice!r} stands there twice")
        lines.write(json.dumps(item).encode() + b"\n")
    del items
    return _read_lines(lambda: io.BytesIO(lines.getbuffer()), texts) if lines.tell() else pa.table({"prompt": []})


class _Object(dict[str, Any]):
    """A JSON object, and a key that stands in it twice, if one does."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]):
        super().__init__(pairs)
        keys = [key for key, _ in pairs]
        self.twice = next((key for key in keys if keys.count(key) > 1), None) if len(self) < len(keys) else None
