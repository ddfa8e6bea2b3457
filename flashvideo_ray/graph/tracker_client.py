"""A stage's end of the line to the tracker. Knows no Ray: a handle is anything whose methods have `.remote`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from flashvideo_ray.graph.events import Attempt, Begin
from flashvideo_ray.graph.health import Worker
from flashvideo_ray.graph.quota import Answer
from flashvideo_ray.ledger.held_store import AskedPermit
from flashvideo_ray.settings import Stage


class TrackerClient:
    """A stage's end of the line to the tracker's actor.

    `get` waits for a remote result (`tracker_actor.answer`), `here` tells which actor this is and where. Where the
    tracker has no gate (`gated`), it is not asked about it.
    """

    def __init__(self, handle: Any, get: Callable[[Any], Any], gated: bool, here: Callable[[], Worker] = Worker):
        self._handle = handle
        self._get = get
        self._here = here
        self._worker = Worker()
        self._gated = gated
        self._process = uuid.uuid4().hex  # of each copy its own, and a process has one
        self._permit = AskedPermit(lambda: get(handle.permitted.remote()))

    def __reduce__(self) -> tuple[type[TrackerClient], tuple[Any, ...]]:
        return TrackerClient, (self._handle, self._get, self._gated, self._here)

    def starting(self, stage: Stage) -> float | None:
        """See StageEvents. Waits, so that the mark is there before loading can kill the process."""
        self._worker = self._here()
        return self._get(self._handle.starting.remote(stage, self._worker))

    def not_loaded(self, stage: Stage, cause: str) -> None:
        """See StageEvents."""
        self._handle.not_loaded.remote(stage, self._worker, cause)

    def dismissed(self, stage: Stage) -> bool:
        """See StageEvents."""
        return self._get(self._handle.dismissed.remote(stage))

    def seconds(self) -> float:
        """See Permit: the tracker knows it from the job."""
        return self._permit.seconds()

    def joined(self, stage: Stage) -> None:
        """See StageEvents."""
        self._handle.joined.remote(stage, self._worker)

    def begin(self, stage: Stage, clip_id: str) -> Begin:
        """See StageEvents. Waits for the answer, so that the mark is there before the call can kill its process."""
        return self._get(self._handle.begin.remote(stage, clip_id, self._worker))

    def attempt(self, stage: Stage, clip_id: str) -> Attempt:
        """See StageEvents. Waits, as `begin` does."""
        return self._get(self._handle.attempt.remote(stage, clip_id, self._process))

    def step(self, stage: Stage, clip_id: str, done: int, total: int) -> None:
        """See StageEvents. Nobody watches the single steps of a batch job."""

    def overdue(self, stage: Stage, clip_id: str) -> None:
        """See StageEvents. Waits: the process ends right after."""
        self._get(self._handle.overdue.remote(stage, clip_id))

    def survived(self, stage: Stage, clip_id: str) -> None:
        """See StageEvents."""
        self._handle.survived.remote(stage, clip_id)

    def end(self, stage: Stage, clip_id: str, status: str, error: tuple[str, str] | None = None) -> None:
        """See StageEvents."""
        self._handle.end.remote(stage, clip_id, status, error, self._worker)

    def admit(self, stage: Stage, clip_id: str, prompt: str) -> Answer:
        """See StageEvents."""
        return self._get(self._handle.admit.remote(stage, clip_id, prompt)) if self._gated else "go"

    def gather(self, row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """See StageEvents."""
        return self._get(self._handle.gather.remote(dict(row)))

    def previewed(self, rows: Sequence[Mapping[str, Any]]) -> Collection[str]:
        """See StageEvents. Waits: rows handed over survive the death of this process."""
        return self._get(self._handle.previewed.remote([dict(row) for row in rows]))
