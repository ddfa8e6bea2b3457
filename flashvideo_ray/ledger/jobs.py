"""The jobs of a run: what cannot be derived from what became of its candidates. One row a job, the newest one counts.

`ledger/jobs-*.parquet`, in the schema `tables.JOBS`. Each row also holds run.json as its job left it, so that a lost
one can be written anew. A job that was killed stays `running` in its row, which is a few minutes old then.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import time
import uuid
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from flashvideo_ray.errors import message_of
from flashvideo_ray.ledger import parquet_log
from flashvideo_ray.ledger.claim import ClaimLostError
from flashvideo_ray.ledger.holder import Identity
from flashvideo_ray.ledger.patience import PatientStore
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.tables import JOBS
from flashvideo_ray.settings import STAGES, Stage

PREFIX = "ledger/jobs-"
_KEY = "job_id"
_BEFORE = "before"  # the one row for all jobs of a run that was begun when there was no such table
_UPDATE_SECONDS = 300.0
_TIMES = ("held_seconds", "busy_seconds")
Used = Mapping[Stage, tuple[float, float]]
"""What the pools held and what they were at work, in seconds of actors, by stage."""


def read(store: Store, damaged: Callable[[str, Exception], None] | None = None) -> list[dict[str, Any]]:
    """The jobs, in the order in which they were started. A part that cannot be read raises, or is told to `damaged`."""
    found = [*parquet_log.read_all(store, PREFIX, damaged=damaged, key=_KEY).values()]
    rows = parquet_log.newest(found, key=_KEY).to_pylist() if found else []
    return sorted(rows, key=lambda row: row["started"])


def newest_settings(store: Store, run: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, prices among them, that the newest job was told; those in run.json where no job has a row."""
    rows = read(store)
    return dict(json.loads(rows[-1]["settings"]) if rows else run["settings"])


def usage(rows: list[dict[str, Any]]) -> tuple[float, dict[str, dict[str, float]]]:
    """Seconds in which a job was at work, and by stage `held_seconds` and `busy_seconds` of its pool."""
    pools = {
        stage: {name: round(sum(row[f"{stage}_{name}"] or 0.0 for row in rows), 3) for name in _TIMES}
        for stage in STAGES
    }
    return _wall(rows), {stage: use for stage, use in pools.items() if use["held_seconds"]}


def _wall(rows: list[dict[str, Any]]) -> float:
    """Jobs on shares of a run work at the same time, and that counts once."""
    seconds, until = 0.0, dt.datetime.min.replace(tzinfo=dt.UTC)
    for row in sorted(rows, key=lambda row: row["at"] - dt.timedelta(seconds=row["seconds"])):
        begun = max(until, row["at"] - dt.timedelta(seconds=row["seconds"]))
        until = max(until, row["at"])
        seconds += (until - begun).total_seconds()
    return seconds


def take_up(store: Store, run: Mapping[str, Any]) -> None:
    """Bring what summary.json knows of earlier jobs into the table, for a run that has none of them in it."""
    if read(store):
        return
    try:
        before = json.loads(store.get("summary.json"))
        seconds, pools = float(before["wall_seconds"]), dict(before.get("pools", {}))
        used = {stage: (float(use["held_seconds"]), float(use["busy_seconds"])) for stage, use in pools.items()}
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return
    if seconds:
        begun = dt.datetime.fromisoformat(run["created"])
        told = _told(store, run, run["settings"], used)
        unknown = dict.fromkeys(("command", "host", "user"))
        _write(
            store,
            {**told, **unknown, "job_id": _BEFORE, "status": "ended", "seconds": seconds, "started": begun},
        )


def note(store: Store, run: Mapping[str, Any], settings: Mapping[str, Any] | None = None, seconds: float = 0.0) -> None:
    """A row for what needed no pools and changed what a run is told. `settings`, if they are not those of `run`."""
    take_up(store, run)
    told = _told(store, run, settings or run["settings"], {})
    _write(store, {"job_id": uuid.uuid4().hex, "status": "ended", "seconds": seconds, **told})


def merge(store: Store) -> None:
    """Bring all parts into one; hold the claim."""
    parquet_log.merge(store, PREFIX, 250_000, key=_KEY)


def restored_run(rows: list[dict[str, Any]]) -> bytes:
    """run.json as the newest of these jobs left it."""
    return str(rows[-1]["run"]).encode()


class Record:
    """The row of a job that works: begun at once, brought up to date every few minutes, ended with the job.

    As a context: a job that raises is `failed`, or `stopped` by a signal. One that lost its claim writes nothing more.
    """

    def __init__(self, store: Store, run: Mapping[str, Any], started: float):
        """`started` is of `time.monotonic`."""
        self._store, self._started = store, started
        self._row = {"job_id": uuid.uuid4().hex, **_told(store, run, run["settings"], {})}
        self._before: dict[Stage, tuple[float, float]] = {}
        self._now: Used = {}
        self._due = time.monotonic() + _UPDATE_SECONDS
        self._trouble: str | None = None

    def __enter__(self) -> Self:
        take_up(self._store, json.loads(self._row["run"]))
        self._put("running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, ClaimLostError):
            return
        if error is None:
            self._put("ended", self._trouble)
            return
        if isinstance(self._store, PatientStore):
            self._store = self._store.hurried()
        with contextlib.suppress(Exception):  # the error that ends the job is the one to be told
            status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            self._put(status, f"{type(error).__name__}: {message_of(error)}")

    def used(self, states: Used) -> None:
        """What the pools of the graph that runs have held and used by now."""
        self._now = states

    def met(self, trouble: str) -> None:
        """What the job met and went on in spite of, or ended for."""
        self._trouble = "; ".join(filter(None, [self._trouble, trouble]))

    def flush_if_due(self) -> None:
        """Bring the row up to date if that was long ago. Raises what the store raises."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _UPDATE_SECONDS
            self._put("running")

    def round_over(self) -> None:
        """The graph has ended; another one counts from nothing."""
        self._before, self._now = self._sum(), {}

    def _sum(self) -> dict[Stage, tuple[float, float]]:
        nothing = (0.0, 0.0)
        pairs = {stage: (self._before.get(stage, nothing), self._now.get(stage, nothing)) for stage in STAGES}
        return {stage: (a[0] + b[0], a[1] + b[1]) for stage, (a, b) in pairs.items()}

    def _put(self, status: str, error: str | None = None) -> None:
        seconds = time.monotonic() - self._started
        _write(
            self._store, {**self._row, "status": status, "seconds": seconds, "error": error, **_columns(self._sum())}
        )


def _told(store: Store, run: Mapping[str, Any], settings: Mapping[str, Any], used: Used) -> dict[str, Any]:
    who = Identity.of_this_process()
    return {
        "started": store.clock.now(),
        "command": who.command,
        "host": who.host,
        "user": who.user,
        "settings": json.dumps(settings),
        "run": json.dumps(run, indent=2),
        **_columns(used),
    }


def _columns(used: Used) -> dict[str, float]:
    return {f"{stage}_{name}": value for stage, pair in used.items() for name, value in zip(_TIMES, pair, strict=True)}


def _write(store: Store, row: Mapping[str, Any]) -> None:
    moment = store.clock.now()
    whole = {**dict.fromkeys(JOBS.names), **row, "at": moment}
    parquet_log.write(store, f"{PREFIX}{moment:%Y%m%dT%H%M%S%f}", pa.Table.from_pylist([whole], schema=JOBS))
