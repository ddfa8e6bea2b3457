"""The run directory: where things are, what the ledger records, and how rows become durable.

    OUTPUT/run.json                          what the run is: settings, fingerprints, versions
    OUTPUT/ledger/previews-*.parquet         one row a finished preview, with its scores and the decision
    OUTPUT/ledger/clips-*.parquet            one row a candidate that ended: rendered, rejected or failed
    OUTPUT/previews/ab/<clip_id>.mp4, .jpg   preview and its poster
    OUTPUT/latents/ab/<clip_id>.safetensors  stage-1 latents
    OUTPUT/clips/ab/<clip_id>.mp4, .jpg      clip and its poster

Parts of the ledger are added, never rewritten. Media come first and their row after, so whatever a row names exists.
"""

from __future__ import annotations

import datetime as dt
import json
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from flashvideo_ray.errors import InputError
from flashvideo_ray.settings import LedgerSettings
from flashvideo_ray.storage import Store

Table = Literal["previews", "clips"]

_CANDIDATE = [
    pa.field("clip_id", pa.string(), nullable=False),
    pa.field("id", pa.string(), nullable=False),
    pa.field("prompt", pa.string(), nullable=False),
    pa.field("negative_prompt", pa.string()),
    pa.field("seed", pa.int64(), nullable=False),
    pa.field("candidate", pa.int32(), nullable=False),
    pa.field("status", pa.string(), nullable=False),
    pa.field("reason", pa.string()),
]
PREVIEWS = pa.schema(
    [
        *_CANDIDATE,
        pa.field("latents", pa.string()),
        pa.field("preview", pa.string()),
        pa.field("poster", pa.string()),
        pa.field("text_seconds", pa.float64()),
        pa.field("preview_seconds", pa.float64()),
        pa.field("score_seconds", pa.float64()),
        pa.field("device", pa.string()),
        pa.field("host", pa.string()),
        pa.field("at", pa.timestamp("ms", tz="UTC"), nullable=False),
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
        pa.field("sha256", pa.string()),
        pa.field("refine_seconds", pa.float64()),
        pa.field("publish_seconds", pa.float64()),
        pa.field("device", pa.string()),
        pa.field("host", pa.string()),
        pa.field("at", pa.timestamp("ms", tz="UTC"), nullable=False),
    ]
)
SCHEMAS: dict[Table, pa.Schema] = {"previews": PREVIEWS, "clips": CLIPS}
RESERVED = frozenset(PREVIEWS.names) | frozenset(CLIPS.names)


class RecipeError(InputError):
    """OUTPUT holds a run with another recipe. The message shows the differences."""


class NoRunError(InputError):
    """There is no run at OUTPUT."""


def preview_key(clip_id: str) -> str:
    """Where a candidate's preview MP4 is, relative to OUTPUT."""
    return f"previews/{clip_id[:2]}/{clip_id}.mp4"


def latents_key(clip_id: str) -> str:
    """Where a candidate's stage-1 latents are, relative to OUTPUT."""
    return f"latents/{clip_id[:2]}/{clip_id}.safetensors"


def clip_key(clip_id: str) -> str:
    """Where a candidate's clip is, relative to OUTPUT."""
    return f"clips/{clip_id[:2]}/{clip_id}.mp4"


def poster_key(video_key: str) -> str:
    """Where the poster of a preview or clip is, relative to OUTPUT."""
    return video_key.removesuffix(".mp4") + ".jpg"


def read_run(store: Store) -> dict[str, Any] | None:
    """The content of run.json, or None where there is no run. Raises NoRunError if the place cannot be read."""
    try:
        return json.loads(store.get("run.json"))
    except FileNotFoundError:
        return None
    except Exception as error:  # each file system has its own: no credentials, no such bucket, unknown protocol, …
        raise NoRunError(f"{store.url}: cannot be read: {type(error).__name__}: {error}") from error


def check_recipe(store: Store, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """The run that is there, or None. Raises RecipeError if it has another recipe."""
    run = read_run(store)
    differences = list(_differences(run["recipe"], dict(recipe))) if run is not None else []
    if differences:
        raise RecipeError(
            f"{store.url} holds a run with another recipe:\n"
            + "\n".join(f"  {key}: {old!r} there, {new!r} now" for key, old, new in differences)
            + "\nUse another OUTPUT, or the settings of that run."
        )
    return run


def open_run(store: Store, recipe: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Start a run or take up the one that is there.

    `recipe` is what must stay the same, `about` what is only recorded by the job that starts the run. Raises
    RecipeError if the run that is there has another recipe.
    """
    run = check_recipe(store, recipe)
    if run is None:
        run = {"recipe": dict(recipe), **about, "created": _now().isoformat()}
        store.put("run.json", json.dumps(run, indent=2).encode())
    return run


def read(store: Store, table: Table, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of one ledger table, the newest one of each clip_id, oldest first.

    With `columns`, only those are read (an absent one is left out).
    """
    wanted = None if columns is None else list(dict.fromkeys([*columns, "clip_id", "at"]))
    parts = [_read_part(store, key, wanted) for key in store.keys("ledger", ".parquet") if f"/{table}-" in f"/{key}"]
    if not parts:
        schema = SCHEMAS[table]
        return (
            schema.empty_table()
            if wanted is None
            else schema.empty_table().select([c for c in wanted if c in schema.names])
        )
    rows = pa.concat_tables(parts, promote_options="permissive").sort_by("at")
    ids = rows["clip_id"].to_pylist()
    newest = {clip_id: index for index, clip_id in enumerate(ids)}
    return rows if len(newest) == len(ids) else rows.take(pa.array(sorted(newest.values())))


def extended(schema: pa.Schema, extra: Iterable[pa.Field]) -> pa.Schema:
    """A ledger schema with a prompt file's own columns and score columns at its end."""
    for field in extra:
        schema = schema.append(field)
    return schema


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
            self._rows.append({**{name: row.get(name) for name in self.schema.names}, "at": _now()})

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
        """Make all rows durable now."""
        with self._lock:
            if not self._rows:
                return
            part = pa.Table.from_pylist(self._rows, schema=self.schema)
            sink = pa.BufferOutputStream()
            pq.write_table(part, sink, compression="zstd")
            stamp = _now().strftime("%Y%m%dT%H%M%S")
            self.store.put(f"ledger/{self.table}-{stamp}-{uuid.uuid4().hex[:8]}.parquet", sink.getvalue().to_pybytes())
            self._rows.clear()


def _read_part(store: Store, key: str, columns: list[str] | None) -> pa.Table:
    source = pa.BufferReader(store.get(key))
    if columns is None:
        return pq.read_table(source)
    file = pq.ParquetFile(source)
    return file.read(columns=[name for name in columns if name in file.schema_arrow.names])


def _differences(old: Any, new: Any, key: str = "") -> Iterable[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield key, old, new


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
