"""One shard in its format: rows and their videos to bytes, the same ones each time."""

from __future__ import annotations

import datetime as dt
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flashvideo_ray.export.options import EMBEDS, ExportError, Format

EXTRA = "pip install 'flashvideo-ray[export]'"
_TAR_BLOCK = 512
_TAR_END = 10_240  # a tar file is filled up to a multiple of it
_PARQUET_BASE = 65_536  # for the footer with the schema
_GROUP_BYTES = 64_000_000  # of videos in a row group: what a reader holds at least
Video = Mapping[str, bytes]  # by its column in the dataset


def base_bytes(kind: Format) -> int:
    """What a shard without a row takes, at most."""
    return {"webdataset": _TAR_END, "jsonl": 0}.get(kind, _PARQUET_BASE)


def row_bytes(kind: Format, row: Mapping[str, Any], media: Sequence[int]) -> int:
    """What a row takes in a shard, exactly or at most; `media` are the sizes of its videos."""
    text = len(json_line(row))
    if kind == "webdataset":
        sizes = [text, len(str(row["caption"]).encode()), *media]
        return sum(_TAR_BLOCK + math.ceil(size / _TAR_BLOCK) * _TAR_BLOCK for size in sizes)
    return text + 1 + sum(media)


def check_libraries(kind: Format) -> None:
    """Raise ExportError where the library of a format is not installed."""
    for needed in {"webdataset": ("webdataset", "datasets"), "hf": ("datasets",), "preference": ("datasets",)}.get(
        kind, ()
    ):
        try:
            __import__(needed)
        except ImportError as error:
            raise ExportError(f"--format {kind} needs the library {needed} ({error}); {EXTRA}") from None


def check_columns(kind: Format, schema: pa.Schema) -> None:
    """Raise ExportError for a column that `datasets`, which reads the formats with videos in them, has no type for."""
    if kind not in EMBEDS:
        return
    from datasets import Features

    for field in schema:
        try:
            Features.from_arrow_schema(pa.schema([field.remove_metadata()]))
        except ValueError as error:
            raise ExportError(
                f"the column {field.name} is {field.type}, and `datasets` has no type for it; leave it out of the "
                f"prompts, or export --format parquet ({error})"
            ) from None


def encode(kind: Format, rows: pa.Table, columns: Sequence[str], videos: Sequence[Video]) -> bytes:
    """A shard. `columns` are those of videos, in the formats that hold them, and `videos` those of each row."""
    if kind == "webdataset":
        return _tar(rows, videos)
    if kind == "jsonl":
        return b"".join(json_line(row) + b"\n" for row in rows.to_pylist())
    return _parquet(rows, columns, videos)


def with_media(schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    """The schema of Parquet shards that hold videos, with what `datasets` reads from it: they are of its type Video."""
    from datasets import Features, Video

    features = Features.from_arrow_schema(schema.remove_metadata())
    # Not decoded by itself: that takes torchcodec, and not everybody has it.
    return Features({**features, **dict.fromkeys(columns, Video(decode=False))}).arrow_schema


def tar_features(schema: pa.Schema) -> list[dict[str, Any]]:
    """What `datasets` finds in tar shards, as it stands in a card: it would take the types from the first few rows."""
    from datasets import Features, Video

    fields = [pa.field(field.name, _in_json(field.type)) for field in schema]
    texts = pa.schema([pa.field(name, pa.string()) for name in ("txt", "__key__", "__url__")])
    found = Features.from_arrow_schema(pa.schema([pa.field("json", pa.struct(fields)), *texts]))
    listed: list[dict[str, Any]] = Features({**found, "mp4": Video(decode=False)})._to_yaml_list()
    return listed


def _in_json(kind: pa.DataType) -> pa.DataType:
    """The type that a value has when it comes back from JSON."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_own = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return kind if is_own or pa.types.is_nested(kind) else pa.string()


def json_line(row: Mapping[str, Any]) -> bytes:
    """A row as JSON in one line; numbers without a value are null, times are in ISO 8601."""
    return json.dumps(_plain(row), ensure_ascii=False, allow_nan=False).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def _tar(rows: pa.Table, videos: Sequence[Video]) -> bytes:
    """Samples of three files: `<clip_id>.json`, `<clip_id>.mp4`, `<clip_id>.txt`."""
    from webdataset.writer import TarWriter

    sink = io.BytesIO()
    # What would differ from one machine or minute to the next is fixed.
    with TarWriter(sink, user="", group="", mode=0o644, mtime=0, encoder=False) as tar:
        for row, video in zip(rows.to_pylist(), videos, strict=True):
            tar.write(
                {
                    "__key__": row["clip_id"],
                    "json": json_line(row),
                    "mp4": video["video"],
                    "txt": row["caption"].encode(),
                }
            )
    return sink.getvalue()


def _parquet(rows: pa.Table, columns: Sequence[str], videos: Sequence[Video]) -> bytes:
    sink = pa.BufferOutputStream()
    schema = with_media(rows.schema, columns) if columns else rows.schema
    packed = {f"{column}.bytes" for column in columns}
    compression = {path: "NONE" if path in packed else "ZSTD" for path in _leaves(schema)}
    with pq.ParquetWriter(sink, schema, compression=compression) as writer:
        names = rows[rows.column_names[0]].to_pylist()
        for begin, end in _groups(videos):
            group = rows.slice(begin, end - begin)
            for column in columns:
                cells = [
                    {"bytes": video[column], "path": f"{name}.mp4" if column == "video" else f"{name}-{column}.mp4"}
                    for name, video in zip(names[begin:end], videos[begin:end], strict=True)
                ]
                group = group.append_column(schema.field(column), pa.array(cells, schema.field(column).type))
            writer.write_table(group.cast(schema))
    return sink.getvalue().to_pybytes()


def _leaves(schema: pa.Schema) -> list[str]:
    """Paths of the columns as Parquet knows them."""
    file = io.BytesIO()
    pq.write_table(schema.empty_table(), file)
    found = pq.ParquetFile(file).schema
    return [found.column(number).path for number in range(len(found))]


def _groups(videos: Sequence[Video]) -> list[tuple[int, int]]:
    """Ranges of rows whose videos are held at once."""
    groups, begin, size = [], 0, 0
    for number, video in enumerate(videos):
        more = sum(len(data) for data in video.values())
        if size and size + more > _GROUP_BYTES:
            groups.append((begin, number))
            begin, size = number, 0
        size += more
    return [*groups, (begin, len(videos))]
