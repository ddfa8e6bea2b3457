"""The ledger's tables of candidates (of jobs: `jobs`): schemas, their state at one moment, and newer versions of rows.

Parts are added, and merged into new ones (`writer`, `compact`); no row is changed. The newest of a candidate counts,
and one with status `open` takes back what was before it. Media come first and their row after, so whatever a row names
exists.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.ledger import parquet_log
from flashvideo_ray.ledger.parquet_log import Columns, Compaction
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.scorers import columns
from flashvideo_ray.settings import STAGES

Table = Literal["candidates", "previews", "clips"]
_WANTED = [
    pa.field("clip_id", pa.string(), nullable=False),
    pa.field("id", pa.string(), nullable=False),
    pa.field("prompt", pa.string(), nullable=False),
    pa.field("negative_prompt", pa.string()),
    pa.field("seed", pa.int64(), nullable=False),
    pa.field("candidate", pa.int32(), nullable=False),
    pa.field("status", pa.string(), nullable=False),
]
_CANDIDATE = [*_WANTED, pa.field("reason", pa.string())]
PREVIEW_SECONDS = tuple(f"{stage}_seconds" for stage in STAGES if stage != "refine")
_SECONDS = [pa.field(name, pa.float64()) for name in PREVIEW_SECONDS]
_AT = pa.field("at", pa.timestamp("ms", tz="UTC"), nullable=False)
CANDIDATES = pa.schema([*_WANTED, _AT])  # what jobs were started for; the status is `wanted`
PREVIEWS = pa.schema(
    [
        *_CANDIDATE,
        pa.field("latents", pa.string()),  # what stage 2 takes: latents, or frames without loss
        pa.field("preview", pa.string()),
        pa.field("preview_sha256", pa.string()),  # of the file at `preview_url`, where the preview existed already
        pa.field("poster", pa.string()),
        *_SECONDS,
        pa.field("rank", pa.float64()),
        pa.field("scorer_errors", pa.string()),
        pa.field("memory_note", pa.string()),
        pa.field("device", pa.string()),
        pa.field("host", pa.string()),
        _AT,
    ]
)
CLIPS = pa.schema(
    [
        *_CANDIDATE,
        pa.field("stage", pa.string()),
        pa.field("error_class", pa.string()),
        pa.field("error", pa.string()),
        pa.field("attempts", pa.int32()),
        pa.field("clip", pa.string()),
        pa.field("poster", pa.string()),
        pa.field("frames", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("fps", pa.float64()),
        pa.field("bytes", pa.int64()),
        pa.field("sha256", pa.string()),  # of the file
        pa.field("stream_sha256", pa.string()),  # of its video stream; null in rows from before there was it
        # Of calls that failed, too. The four before stage 2 count where no row of previews has them.
        *_SECONDS,
        pa.field("refine_seconds", pa.float64()),
        pa.field("publish_seconds", pa.float64()),
        pa.field("audit", pa.bool_()),  # rejected, and refined all the same
        pa.field("memory_note", pa.string()),  # what a stage did otherwise than asked, for want of memory
        pa.field("device", pa.string()),
        pa.field("host", pa.string()),
        _AT,
    ]
)
JOBS = pa.schema(
    [
        pa.field("job_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # running, ended, stopped or failed
        pa.field("started", pa.timestamp("ms", tz="UTC"), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),  # of wall time
        pa.field("error", pa.string()),  # why it failed, or what it met: nodes that were left out, a stage that stopped
        pa.field("command", pa.string()),
        pa.field("host", pa.string()),
        pa.field("user", pa.string()),
        # Of actors: from an actor's first work to the job's end, and at work.
        *(pa.field(f"{stage}_{name}_seconds", pa.float64()) for stage in STAGES for name in ("held", "busy")),
        pa.field("settings", pa.string(), nullable=False),  # JSON, with the prices
        pa.field("run", pa.string(), nullable=False),  # run.json as the job left it
        _AT,
    ]
)
MISSING_SCORE = "MissingScoreError"  # the error class of a candidate that failed for want of a score
SCHEMAS: dict[Table, pa.Schema] = {"candidates": CANDIDATES, "previews": PREVIEWS, "clips": CLIPS}


def read(
    store: Store,
    table: Table,
    columns: Columns | None = None,
    *,
    damaged: Callable[[str, Exception], None] | None = None,
    only: pa.Array | None = None,
    made: Callable[[pa.Table], pa.Table] | None = None,
) -> pa.Table:
    """The state of one ledger table: the newest row of each clip_id, oldest first, without those taken back.

    Of rows with the same `at`, the one in the later part counts, and in one part the later one. Parts may be added and
    compacted meanwhile. With `columns`, only those (and `clip_id` and `at`) are read; an absent one is left out. With
    `only`, candidates with these clip_ids. Parts are `made` smaller, if that is asked for, as they are read; `columns`
    must have `clip_id`, `status` and `at` then. A part that cannot be read raises DamagedPartError, or is left out and
    told to `damaged`.
    """
    wanted = None
    if columns is not None and not callable(columns):
        wanted = list(dict.fromkeys([*columns, "clip_id", "at"]))
        columns = list(dict.fromkeys([*wanted, "status"]))
    found = [*parquet_log.read_all(store, f"ledger/{table}-", columns, damaged, only=only, made=made).values()]
    if not found:
        empty = SCHEMAS[table].empty_table()
        found = [empty if made is None else made(empty)]
    rows = parquet_log.newest(found)
    if wanted is None or made is not None:
        return rows
    return rows.select([name for name in wanted if name in rows.column_names])


def of_prompts(
    store: Store,
    table: Table,
    ids: pa.Array,
    columns: Sequence[str],
    damaged: Callable[[str, Exception], None] | None = None,
) -> pa.Table:
    """The newest row of each candidate of the prompts with these ids, also of those taken back. Otherwise as `read`."""
    prefix, own = f"ledger/{table}-", ["clip_id", "id", "status", "at"]
    # Versions of rows that have another id since, too.
    versions = parquet_log.read_all(store, prefix, own, damaged, "id", ids).values()
    mine = pa.chunked_array([chunk for part in versions for chunk in part["clip_id"].chunks], pa.string()).unique()
    asked = [*dict.fromkeys([*own, *columns])]
    found = [*parquet_log.read_all(store, prefix, asked, damaged, only=mine).values()]
    rows = parquet_log.newest(found or [SCHEMAS[table].empty_table()], keep_open=True)
    return rows.filter(pc.is_in(rows["id"], ids))


def parts(store: Store) -> frozenset[str]:
    """The names of all that decides what is left to do: parts of the ledger, and what people decided."""
    return frozenset([*store.keys("ledger"), *store.keys("decisions")])


def supersede(store: Store, table: Table, rows: pa.Table) -> None:
    """Write other versions of rows that `read` gave; each is newer than the one it was by a millisecond."""
    if rows.num_rows:
        at = pc.add(rows["at"].cast(pa.int64()), 1)
        parquet_log.write(store, stem(table), with_column(rows, "at", at))


def is_newer_version(row: Mapping[str, Any], of: Mapping[str, Any]) -> bool:
    """Whether a row is one that `supersede` wrote of another: their candidate ended once."""
    return row["status"] == of["status"] and row["at"] - of["at"] == dt.timedelta(milliseconds=1)


def reopen(store: Store, table: Table, rows: pa.Table) -> None:
    """Take back rows that `read` gave, as if their candidates had never got that far; the next job does them again."""
    supersede(store, table, with_column(rows, "status", "open"))


def compact(store: Store, part_rows: int = 250_000) -> dict[Table, Compaction]:
    """Merge all parts of each table into as few as `part_rows` allows, with the newest row of each clip_id.

    Readers, writers and other compactions may go on meanwhile, and it may be killed at any moment: the old parts are
    deleted when the new ones are complete, and until then `read` sees the same rows twice and counts them once. What
    a kill leaves behind is merged by the next compaction. Raises DamagedPartError, and changes nothing in that table,
    if a part cannot be read.
    """
    return {table: parquet_log.merge(store, f"ledger/{table}-", part_rows) for table in SCHEMAS}


def extended(schema: pa.Schema, extra: Iterable[pa.Field]) -> pa.Schema:
    """A ledger schema with a prompt file's own columns at its end."""
    for field in extra:
        schema = schema.append(field)
    return schema


def previews_schema(scores: Iterable[str], extra: Iterable[pa.Field] = ()) -> pa.Schema:
    """The schema of previews in a run with these scores, and these columns of its prompts."""
    return extended(PREVIEWS, [*extra, *columns.fields(scores)])


def with_column(rows: pa.Table, name: str, values: Any) -> pa.Table:
    """Rows with another column of that name, of the type that it had, or with one more. One value is that of all."""
    index = rows.schema.get_field_index(name)
    if index < 0:
        return rows.append_column(name, values)
    field = rows.schema.field(index)
    if values is None or isinstance(values, str):
        values = pa.repeat(pa.scalar(values, field.type), rows.num_rows)
    return rows.set_column(index, field, values.cast(field.type))


def stem(table: Table) -> str:
    """The beginning of the next part's name."""
    return f"ledger/{table}-{now():%Y%m%dT%H%M%S%f}"


def now() -> dt.datetime:
    """The time that a row written now gets."""
    return dt.datetime.now(dt.UTC)
