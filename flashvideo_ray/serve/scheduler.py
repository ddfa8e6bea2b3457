"""The one that works: it queues what is asked for, calls the stages and writes the ledger.

It has a single replica. All that it must not forget is in the run directory: when it is started again, the open work is
what was requested and is not in the ledger. It holds the claim on the run only while models work, so that a batch job
can have the run while people merely look and decide.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from ray.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from flashvideo_ray.errors import Teller
from flashvideo_ray.graph.stage_base import failed, given_up, row_schema
from flashvideo_ray.ledger import requests
from flashvideo_ray.ledger.claim import ClaimLostError, ClaimUnsureError
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.tables import MISSING_SCORE
from flashvideo_ray.serve.queue import Reply, Submission, accepted, queue, row_of
from flashvideo_ray.serve.run_writer import RETRY_SECONDS, RunWriter
from flashvideo_ray.serve.snapshot import Candidate, Snapshot
from flashvideo_ray.serve.state import RunState
from flashvideo_ray.settings import STAGES, Settings, Stage

Kind = Literal["preview", "refine"]
IDLE_SECONDS = 3.0  # without work, after which the claim is released
_DIED = (RayActorError, WorkerCrashedError, ObjectLostError)
_NOT_HELD = frozenset({ClaimLostError.__name__, ClaimUnsureError.__name__})  # what a worker may not write fails of
log = logging.getLogger("ray.serve")


@dataclass
class _Call:
    """A candidate that is being worked on."""

    kind: Kind
    began: float = field(default_factory=time.monotonic)
    stage: Stage = "text"
    stage_began: float = field(default_factory=time.monotonic)
    done: int = 0
    total: int = 0
    task: asyncio.Task[None] | None = None

    def seconds_left(self, mean: float | None) -> float | None:
        """By the steps made, else by the mean of those before it."""
        now = time.monotonic()
        if self.done:
            return (now - self.stage_began) / self.done * (self.total - self.done)
        return None if mean is None else max(0.0, mean - (now - self.began))


class Scheduler:
    """See the module's text. `handles` are those of the stages' deployments."""

    def __init__(
        self,
        output: str,
        settings: Settings,
        recipe: Mapping[str, Any],
        handles: Mapping[Stage, DeploymentHandle],
        queue_limit: int,
        refine_approved: bool,
    ):
        self.store = Store(output)
        self.settings = settings
        self.recipe = recipe
        self.handles = handles
        self.queue_limit = queue_limit
        self.refine_approved = refine_approved
        self.state = RunState(self.store, settings)
        self.writer = RunWriter(self.store, settings)
        self._version = 0  # of what this process has seen of the run
        self._calls: dict[str, _Call] = {}
        self._queues: dict[Kind, list[str]] = {"preview": [], "refine": []}
        self._queued = self.state.snapshot  # the snapshot that they were made from
        self._cancelling: set[str] = set()
        self._busy_at = time.monotonic()
        self._writing = asyncio.Lock()  # requests, one after the other, so that the queue's limit is one
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop().create_task(self._run())

    # What the API asks ------------------------------------------------------------------------------------------

    async def submit(self, submission: Submission) -> Reply:
        """Queue candidates. They are durable when this returns."""
        async with self._writing:
            snapshot = await self._refresh()
            room = self.queue_limit - sum(len(waiting) for waiting in self._lines(snapshot).values())
            reply, rows = accepted(
                submission, snapshot, self.settings, self.recipe, room, self.queue_limit, self._retry_after(snapshot)
            )
            await asyncio.to_thread(requests.write, self.store, rows)
            await self._refresh()
        self._wake.set()
        return reply

    async def cancel(self, clip_id: str, by: str) -> Reply:
        """Take back what is wanted of a candidate, unless it is being worked on or nothing is open."""
        async with self._writing:
            snapshot = await self._refresh()
            candidate = snapshot.candidates.get(clip_id)
            waiting = {waits for line in self._lines(snapshot).values() for waits in line}
            if candidate is None:
                return Reply(404, "There is no such candidate.")
            if clip_id in self._calls or clip_id not in waiting:
                return Reply(409, f"It is {self._status(candidate)}: only what waits can be cancelled.")
            if candidate.wish != "refine" and candidate.has_preview:
                return Reply(409, "It is refined because it was approved: take that back instead.")
            self._cancelling.add(clip_id)
            try:
                row = row_of(candidate, "preview" if candidate.has_preview else "cancelled", by)
                await asyncio.to_thread(requests.write, self.store, [row])
                await self._refresh()
            finally:
                self._cancelling.discard(clip_id)
        return Reply(202, "", [clip_id])

    async def work(self) -> dict[str, Any]:
        """What is being worked on and what waits, by clip_id; who else holds the run; and whether the run changed."""
        snapshot = self.state.snapshot
        found: dict[str, dict[str, Any]] = {}
        for clip_id, call in self._calls.items():
            found[clip_id] = {
                "kind": call.kind,
                "stage": call.stage,
                "done": call.done,
                "total": call.total,
                "seconds_left": _rounded(call.seconds_left(snapshot.mean(call.kind))),
                "queue_position": 0,
            }
        for kind, line in self._queues.items():
            mean = snapshot.mean(kind)
            size = getattr(self.settings.pools, kind).actors
            waiting = [clip_id for clip_id in line if clip_id not in self._calls]
            for position, clip_id in enumerate(waiting, start=1):
                left = None if mean is None else mean * (1 + (position - 1) // size + (len(self._calls) > 0))
                found[clip_id] = {
                    "kind": None, "stage": kind, "done": 0, "total": 0,
                    "seconds_left": _rounded(left), "queue_position": position,
                }  # fmt: skip
        return {"calls": found, "held": self.writer.blocked, "version": self._version}

    async def permitted(self) -> tuple[float, str]:
        """What the workers ask before they write: see `RunWriter.permitted`."""
        return self.writer.permitted()

    async def close(self) -> None:
        """Stop, with the ledger written and the claim released. What was in flight is done again some day."""
        self._loop.cancel()
        await self._drop_calls()
        await self.writer.give_back()

    async def __del__(self) -> None:
        """Serve calls it when it stops the replica."""
        with suppress(Exception):
            await self.close()

    # The loop ---------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        trouble = Teller(lambda line: log.warning("scheduler: %s; trying again", line))
        while True:
            try:
                await self._turn()
                trouble.well()
            except Exception as error:  # a store that is away, say: the next turn tries again
                trouble.tell(error)
            self._wake.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self.state.look_seconds)

    async def _turn(self) -> None:
        if self.writer.lost():
            await self._drop_calls()
        snapshot = await self._refresh()
        if snapshot is not self._queued:
            self._queues, self._queued = self._lines(snapshot), snapshot
        if any(self._queues.values()) and await self.writer.take():
            self._queues = self._lines(await self._refresh())  # somebody else may just have done it
        if self.writer.held:
            self._start()
        if self._calls or any(self._queues.values()):
            self._busy_at = time.monotonic()
            return
        self.writer.blocked = None
        if self.writer.held and time.monotonic() - self._busy_at > IDLE_SECONDS:
            await self.writer.give_back()

    def _start(self) -> None:
        """Send what waits, as far as there is room: one candidate more than a pool has actors."""
        for kind, line in self._queues.items():
            room = getattr(self.settings.pools, kind).actors + 1
            room -= sum(call.kind == kind for call in self._calls.values())
            waiting = [clip_id for clip_id in line if clip_id not in self._calls and clip_id not in self._cancelling]
            for clip_id in waiting[: max(0, room)]:
                call = self._calls[clip_id] = _Call(kind)
                call.task = asyncio.get_running_loop().create_task(self._work(clip_id, call))

    async def _work(self, clip_id: str, call: _Call) -> None:
        try:
            row = self._row(self.state.snapshot.candidates[clip_id], call.kind)
            passed = ("preview", "score", "rate") if call.kind == "refine" else ("refine",)
            for stage in (each for each in STAGES if each in self.handles and each not in passed):
                row = await self._through(stage, row, call)
                if row["error_class"] in _NOT_HELD:
                    return  # it is still open, for whoever has the run now
                if row["status"] == "failed":
                    break
            # A preview that lacks a score has its row in the ledger, which selection finds it failed by.
            if call.kind == "refine" or (row["status"] == "failed" and row["error_class"] != MISSING_SCORE):
                self.writer.ended(row)
            await self.writer.durably()
            await self._refresh()
        except Exception:
            log.exception("scheduler: %s of %s", call.kind, clip_id)
            await asyncio.sleep(RETRY_SECONDS)  # it is still open: do not spin
        finally:
            self._calls.pop(clip_id, None)
            self._wake.set()

    async def _through(self, stage: Stage, row: dict[str, Any], call: _Call) -> dict[str, Any]:
        """One stage of one row. A replica that dies is replaced by Serve, and the row tried again."""
        limit = getattr(self.settings.pools, stage).time_limit_seconds
        overdue = False
        for attempt in range(1, self.settings.max_attempts + 1):
            call.stage, call.done, call.total, call.stage_began = stage, 0, 0, time.monotonic()
            try:
                return await self._told(self._ask(stage, row, attempt), call)
            except _DIED:
                overdue = overdue or time.monotonic() - call.stage_began >= limit
                log.warning("scheduler: a replica of %s died on %s (attempt %d)", stage, row["clip_id"], attempt)
            except RayTaskError as error:
                return {**failed(row, stage, error.cause or error), "attempts": attempt}
        return {**failed(row, stage, given_up(attempt, limit if overdue else None)), "attempts": attempt}

    async def _ask(self, stage: Stage, row: dict[str, Any], attempt: int) -> AsyncIterator[tuple[str, Any]]:
        while True:
            answers: Any = self.handles[stage].options(stream=True).run.remote(row, attempt)
            try:
                async for told in answers:
                    yield told
                return
            except (DeploymentUnavailableError, GetTimeoutError):
                await asyncio.sleep(RETRY_SECONDS)
            except asyncio.CancelledError:
                answers.cancel()
                raise

    async def _told(self, answers: AsyncIterator[tuple[str, Any]], call: _Call) -> dict[str, Any]:
        async for what, content in answers:
            if what == "begin":
                call.stage_began = time.monotonic()
            elif what == "step":
                call.done, call.total = content
            elif what == "previewed":
                for preview in content:
                    self.writer.preview(preview)
            elif what == "row":
                return dict(content)
        raise WorkerCrashedError()

    def _row(self, candidate: Candidate, kind: Kind) -> dict[str, Any]:
        """A row of the graph, as a batch job would begin it."""
        names = ("clip_id", "prompt", "negative_prompt", "seed", "candidate", "latents", "rank")
        own = {name: getattr(candidate, name) for name in names}
        state = {"status": "open", "group": 1} if kind == "preview" else {"status": candidate.status, "group": 0}
        return {**dict.fromkeys(row_schema().names), **own, "id": candidate.prompt_id, **state}

    # The run directory ------------------------------------------------------------------------------------------

    def _lines(self, snapshot: Snapshot) -> dict[Kind, list[str]]:
        return queue(snapshot, self.settings.select, self.refine_approved)

    async def _refresh(self) -> Snapshot:
        before = self.state.snapshot
        await asyncio.to_thread(self.state.refresh)
        # The newest one, not the one that this refresh made: with that, what ended meanwhile would be begun again.
        self._version += self.state.snapshot is not before
        return self.state.snapshot

    async def _drop_calls(self) -> None:
        tasks = [call.task for call in self._calls.values() if call.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _status(self, candidate: Candidate) -> str:
        call = self._calls.get(candidate.clip_id)
        return candidate.status if call is None else "previewing" if call.kind == "preview" else "refining"

    def _retry_after(self, snapshot: Snapshot) -> int:
        """Seconds after which there should be room again."""
        return max(1, min(600, round(snapshot.mean("preview") or 10.0)))


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
