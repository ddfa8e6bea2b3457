"""The run directory: where things are, what the ledger records, and how rows become durable.

    OUTPUT/run.json                          what the run is: settings, fingerprints, versions
    OUTPUT/ledger/previews-*.parquet         one row a finished preview, with its scores and the decision
    OUTPUT/ledger/clips-*.parquet            one row a candidate that ended: rendered, rejected, failed or skipped
    OUTPUT/decisions/*.parquet               what people decided (`decisions`)
    OUTPUT/requests/*.parquet                what people asked the service for (`serve.requests`)
    OUTPUT/previews/ab/<clip_id>.mp4, .jpg   preview and its poster
    OUTPUT/latents/ab/<clip_id>.safetensors  stage-1 latents
    OUTPUT/clips/ab/<clip_id>.mp4, .jpg      clip and its poster

Parts of the ledger are added, never rewritten; `compact` merges them into new ones. The newest row of a candidate
counts, and one with status `open` takes back what was before it. Media come first and their row after, so whatever a
row names exists.
"""

from __future__ import annotations

import datetime as dt
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray import parts
from flashvideo_ray.errors import InputError
from flashvideo_ray.parts import Compaction
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
        pa.field("rate_seconds", pa.float64()),
        pa.field("rank", pa.float64()),
        pa.field("scorer_errors", pa.string()),
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
        pa.field("audit", pa.bool_()),  # rejected, and refined all the same
        pa.field("device", pa.string()),
        pa.field("host", pa.string()),
        pa.field("at", pa.timestamp("ms", tz="UTC"), nullable=False),
    ]
)
SCHEMAS: dict[Table, pa.Schema] = {"previews": PREVIEWS, "clips": CLIPS}


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
        run = json.loads(store.get("run.json"))
    except FileNotFoundError:
        return None
    except Exception as error:  # each file system has its own: no credentials, no such bucket, unknown protocol, …
        raise NoRunError(f"{store.url}: cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(run, dict) or not {"recipe", "settings", "candidates"} <= set(run):
        raise NoRunError(f"{store.url}: its run.json is not one of this program; use another OUTPUT")
    return run


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

    `recipe` is what must stay the same; `about` is recorded anew by each job. Raises RecipeError if the run that is
    there has another recipe.
    """
    run = check_recipe(store, recipe) or {"recipe": dict(recipe), "created": _now().isoformat()}
    run |= about
    store.put("run.json", json.dumps(run, indent=2).encode())
    return run


def read(
    store: Store,
    table: Table,
    columns: Sequence[str] | None = None,
    *,
    damaged: Callable[[str, Exception], None] | None = None,
) -> pa.Table:
    """The state of one ledger table: the newest row of each clip_id, oldest first, without those taken back.

    Of rows with the same `at`, the one in the later part counts, and in one part the later one. Parts may be added and
    compacted meanwhile. With `columns`, only those (and `clip_id` and `at`) are read; an absent one is left out. A part
    that cannot be read raises DamagedPartError, or is left out and told to `damaged`.
    """
    wanted = None if columns is None else list(dict.fromkeys([*columns, "clip_id", "at"]))
    needed = None if wanted is None else list(dict.fromkeys([*wanted, "status"]))
    found = [*parts.read_all(store, f"ledger/{table}-", needed, damaged).values()]
    rows = parts.newest(found) if found else SCHEMAS[table].empty_table()
    return rows if wanted is None else rows.select([name for name in wanted if name in rows.column_names])


def supersede(store: Store, table: Table, rows: pa.Table) -> None:
    """Write other versions of rows that `read` gave; each is newer than the one it was by a millisecond."""
    if rows.num_rows:
        at = rows["at"].cast(pa.int64())
        at = pc.add(at, 1).cast(rows.schema.field("at").type)
        rows = rows.set_column(rows.schema.get_field_index("at"), rows.schema.field("at"), at)
        parts.write(store, _stem(table), rows)


def reopen(store: Store, table: Table, rows: pa.Table) -> None:
    """Take back rows that `read` gave, as if their candidates had never got that far; the next job does them again."""
    status = pa.array(["open"] * rows.num_rows, pa.string())
    index = rows.schema.get_field_index("status")
    supersede(store, table, rows.set_column(index, rows.schema.field("status"), status))


def compact(store: Store, part_rows: int = 250_000) -> dict[Table, Compaction]:
    """Merge all parts of each table into as few as `part_rows` allows, with the newest row of each clip_id.

    Readers, writers and other compactions may go on meanwhile, and it may be killed at any moment: the old parts are
    deleted when the new ones are complete, and until then `read` sees the same rows twice and counts them once. What
    a kill leaves behind is merged by the next compaction. Raises DamagedPartError, and changes nothing in that table,
    if a part cannot be read.
    """
    return {table: parts.merge(store, f"ledger/{table}-", part_rows) for table in SCHEMAS}


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

    def write(self, rows: pa.Table) -> None:
        """Write many rows as a part of their own, now; columns that the schema does not have are left out."""
        if rows.num_rows:
            at = pa.array([_now()] * rows.num_rows, self.schema.field("at").type)
            columns = [at if name == "at" else rows[name] for name in self.schema.names]
            parts.write(self.store, _stem(self.table), pa.table(columns, schema=self.schema))

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
            parts.write(self.store, _stem(self.table), pa.Table.from_pylist(rows, schema=self.schema))
        except BaseException:
            with self._lock:
                self._rows = rows + self._rows
            raise


def _stem(table: Table) -> str:
    return f"ledger/{table}-{_now():%Y%m%dT%H%M%S%f}"


def _differences(old: Any, new: Any, key: str = "") -> Iterable[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield key, old, new


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
