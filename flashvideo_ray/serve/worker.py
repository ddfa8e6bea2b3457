"""One stage of the pipeline as a Serve deployment: the same class that a batch job runs, with one row a call."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa
from ray import serve

from flashvideo_ray.graph import fetching, scoring, stages
from flashvideo_ray.graph.events import Attempt, Begin
from flashvideo_ray.graph.quota import Answer
from flashvideo_ray.graph.stage_base import StageBase, row_schema
from flashvideo_ray.ledger.held_store import AskedPermit, HeldStore
from flashvideo_ray.settings import Settings, Stage

SCHEDULER = "scheduler"  # the deployment that holds the run
_ANSWER_SECONDS = 30.0
Told = tuple[str, Any]
"""What a worker tells: `begin`, `step` with (done, total), `previewed` with ledger rows, and at the end `row`."""


class Worker:
    """One replica of one stage. It does one call at a time, so that a call whose process died died of itself.

    It writes while the scheduler holds the run, as the stages of a batch job do while their job holds it.
    """

    def __init__(self, stage: Stage, settings: Settings, output: str, fps: float, provenance: Mapping[str, str]):
        self.events = _LocalEvents()
        store = HeldStore(output, settings.store_patience_seconds, AskedPermit(_permitted))
        publishing: dict[str, Any] = {"store": store, "fps": fps, "provenance": provenance}
        fingerprints = json.loads(provenance["model_fingerprints"])
        made: dict[Stage, Callable[[], StageBase]] = {
            "text": lambda: stages.EncodeText(settings, self.events, fingerprints),
            "preview": lambda: fetching.stage_1(settings)(settings, self.events, store, fingerprints),
            "score": lambda: scoring.Score(settings, self.events, **publishing),
            "rate": lambda: scoring.Rate(settings, self.events, **publishing),
            "refine": lambda: stages.Refine(settings, self.events, **publishing),
        }
        self.stage = made[stage]()
        self._turn = threading.Lock()

    async def run(self, row: dict[str, Any], attempt: int) -> AsyncIterator[Told]:
        """Do the stage's part for one row of `row_schema`. `attempt` counts from 1."""
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[Told | None] = asyncio.Queue()

        def tell(what: Told | None) -> None:
            loop.call_soon_threadsafe(told.put_nowait, what)

        def work() -> list[dict[str, Any]]:
            with self._turn:  # a call that nobody waits for any more may still be at its work
                self.events.start(attempt, tell)
                try:
                    return self.stage(pa.Table.from_pylist([row], schema=row_schema())).to_pylist()
                finally:
                    tell(None)

        yield "begin", None
        working = asyncio.create_task(asyncio.to_thread(work))
        while (what := await told.get()) is not None:
            yield what
        [done] = await working
        yield "row", done


def _permitted() -> tuple[float, str]:
    """What the scheduler of this service says; see `AskedPermit`."""
    scheduler = serve.get_deployment_handle(SCHEDULER)  # of the application that this replica belongs to
    answer: tuple[float, str] = scheduler.permitted.remote().result(timeout_s=_ANSWER_SECONDS)
    return answer


class _LocalEvents:
    """A stage's `StageEvents`: how often a call was tried is known to its caller, who also hears of each step."""

    def __init__(self) -> None:
        self._attempt = 1
        self._tell: Callable[[Told], None] = lambda what: None

    def start(self, attempt: int, tell: Callable[[Told], None]) -> None:
        """The next call."""
        self._attempt, self._tell = attempt, tell

    def step(self, stage: Stage, clip_id: str, done: int, total: int) -> None:
        """See StageEvents."""
        self._tell(("step", (done, total)))

    def previewed(self, rows: Sequence[Mapping[str, Any]]) -> Collection[str]:
        """See StageEvents. The caller gets all rows back, whatever became of them."""
        self._tell(("previewed", [dict(row) for row in rows]))
        return ()

    def attempt(self, stage: Stage, clip_id: str) -> Attempt:
        """See StageEvents."""
        return Attempt(self._attempt, overdue=False)

    def begin(self, stage: Stage, clip_id: str) -> Begin:
        """See StageEvents."""
        return Begin(self._attempt)

    def starting(self, stage: Stage) -> float:
        """See StageEvents. Serve sees to replicas that do not come up."""
        return 0.0

    def not_loaded(self, stage: Stage, cause: str) -> None:
        """See StageEvents."""

    def dismissed(self, stage: Stage) -> bool:
        """See StageEvents."""
        return True

    def admit(self, stage: Stage, clip_id: str, prompt: str) -> Answer:
        """See StageEvents. What is not to begin is never sent."""
        return "go"

    def gather(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """See StageEvents. Each candidate is judged by itself; comparing them is left to `state`."""
        return [dict(row)]

    def joined(self, stage: Stage) -> None:
        """See StageEvents."""

    def overdue(self, stage: Stage, clip_id: str) -> None:
        """See StageEvents."""

    def survived(self, stage: Stage, clip_id: str) -> None:
        """See StageEvents."""

    def end(self, stage: Stage, clip_id: str, status: str, error: tuple[str, str] | None = None) -> None:
        """See StageEvents."""
