"""What is going on in a run, in one place: which calls are open, how often each was tried, what each stage has done.

One `Tracker` lives in a Ray actor beside the driver; the stages talk to it through `tracker_client`. Each thing that it
remembers has a class of its own: open calls (`calls`), candidates that wait for one another (`groups`), nodes that fail
(`health`), who holds a card (`holdings`), whether the run has enough (`quota`), and the ledger of previews, because a
preview is worth keeping long before its clip is made.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from flashvideo_ray.graph.calls import Calls
from flashvideo_ray.graph.events import Attempt, Begin
from flashvideo_ray.graph.groups import Groups
from flashvideo_ray.graph.health import QUIET_SECONDS, Fault, Health, Worker
from flashvideo_ray.graph.holdings import Holdings
from flashvideo_ray.graph.metrics import Meter
from flashvideo_ray.graph.quota import Answer, Gate
from flashvideo_ray.graph.verdicts import goes_on
from flashvideo_ray.ledger.claim import ClaimLostError, clock
from flashvideo_ray.ledger.held_store import HeldStore
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.writer import Writer
from flashvideo_ray.settings import STAGES, LedgerSettings, Stage


@dataclass
class StageState:
    """One stage at one moment: its actors, the calls that are open, and those that ended, whatever came of them."""

    actors: int = 0
    open: int = 0
    done: int = 0
    failed: int = 0  # of those that are done
    busy_seconds: float = 0.0  # of devices, all actors together
    held_seconds: float = 0.0  # by actors, as `holdings` counts them
    first_begin: float | None = None
    last_end: float | None = None
    oldest_seconds: float = 0.0  # that the call has had its device which got it first
    first_joined: float | None = None  # when an actor had loaded
    judged: int = 0  # of stage 1: previews that were, and of them those that stage 2 gets
    kept: int = 0

    @property
    def rate(self) -> float:
        """Calls that ended a second, from the first begin to the last end; 0 before there is one."""
        if self.first_begin is None or self.last_end is None:
            return 0.0
        return self.done / max(self.last_end - self.first_begin, 1e-6)


_NOBODY = Worker()


class Tracker:
    """Counts and remembers; see the module's text. Not thread-safe, but for writing: it lives in an actor.

    `context` holds, by prompt id, previews of candidates that this job does not make, to be compared with those that
    it makes. Without a `gate` everything may begin.
    """

    def __init__(
        self,
        store: Store,
        previews: pa.Schema,
        settings: LedgerSettings,
        context: Mapping[str, list[dict[str, Any]]] | None = None,
        gate: Gate | None = None,
        health: Health | None = None,
    ):
        self._health = health or Health(sys.maxsize, {})
        self._meter = Meter(store.url)
        self._ended = 0
        self._groups = Groups(context)
        self._gate = gate
        self._calls = Calls()
        self._held_until, self._lost = 0.0, ""
        self._previews = Writer(HeldStore(store.url, 0.0, self, store.clock), "previews", previews, settings)
        self._holdings = Holdings() if gate is None else gate.holdings
        self._stages: dict[Stage, StageState] = defaultdict(StageState)
        self._under_way: dict[str, str] = {}  # previews that were let in and are not judged: the ids of their prompts
        self._closed = False
        self._moved = clock()  # when a call last began, ended or was let in
        self._goes_on: dict[str, bool] = {}  # of previews that the ledger gets in this round
        self._out: list[dict[str, Any]] = []  # those that ended when they were judged, from number `_told` on
        self._told = 0

    def permit(self, until: float, lost: str = "") -> None:
        """The job says until when (by `claim.clock`) the run is surely its own, and why it is lost if it is."""
        self._held_until, self._lost = until, lost

    def permitted(self) -> tuple[float, str]:
        """For how many seconds the run is surely held, by what the job said last; and why it is lost, or ''."""
        return self._held_until - clock(), self._lost

    def seconds(self) -> float:
        """See Permit: for the ledger, which is written from here."""
        if self._lost:
            raise ClaimLostError(self._lost)
        return self._held_until - clock()

    def starting(self, stage: Stage, worker: Worker = _NOBODY) -> float | None:
        """See StageEvents."""
        return self._health.starting(stage, worker)

    def not_loaded(self, stage: Stage, worker: Worker, cause: str) -> None:
        """See StageEvents."""
        self._health.not_loaded(stage, worker, cause)

    def dismissed(self, stage: Stage) -> bool:
        """See StageEvents."""
        return self._health.dismissed(stage)

    def faults(self) -> list[Fault]:
        """Where a stage does not run."""
        return self._health.faults

    def stopped(self) -> tuple[Fault, int] | None:
        """Once no call is open any more: why the job ends, and how many candidates ended in a call."""
        if self._health.stopped is None or any(self._calls.open(stage) for stage in STAGES):
            return None
        return self._health.stopped, self._ended

    def _stands_still(self) -> bool:
        """Whether no call is open whose end could change what the gate answers, and none is on its way to begin."""
        if any(self._calls.open(stage) for stage in STAGES if stage != "text") or self._health.loads:
            return False
        return self._holdings.actors("refine") > 0 and clock() - self._moved >= QUIET_SECONDS

    def joined(self, stage: Stage, worker: Worker = _NOBODY) -> None:
        """See StageEvents."""
        self._health.joined(stage, worker)
        self._holdings.joined(stage, worker)
        state = self._stages[stage]
        state.first_joined = state.first_joined or clock()

    def nodes(self, there: Collection[str]) -> None:
        """The job says which nodes there are. Calls on others are not open until they are begun again, elsewhere."""
        self._holdings.nodes(there)
        for stage, clip_id in self._health.nodes(there):
            self._calls.gone(stage, clip_id)
            self._under_way.pop(clip_id, None)
            if self._gate is not None:
                self._gate.gone(clip_id)

    def admit(self, stage: Stage, clip_id: str, prompt: str) -> Answer:
        """See StageEvents."""
        # Candidates of a prompt are judged together, so what was begun of it is brought to its end.
        if self._closed and (stage != "preview" or prompt not in self._under_way.values()):
            return "stop"
        answer: Answer = "go"
        if self._gate is not None:
            answer = self._gate.admit(stage, clip_id, prompt, anyway=self._stands_still())
        if answer == "go":
            self._moved = clock()
        if stage == "preview" and answer == "go":
            self._under_way[clip_id] = prompt
        return answer

    def begin(self, stage: Stage, clip_id: str, worker: Worker = _NOBODY) -> Begin:
        """See StageEvents."""
        if (order := self._health.began(stage, clip_id, worker)) != "go":
            return Begin(0, order)
        state = self._stages[stage]
        if state.first_begin is None:
            state.first_begin = clock()
        self._moved = clock()
        return Begin(self._calls.begin(stage, clip_id, worker.actor))

    def attempt(self, stage: Stage, clip_id: str, process: str) -> Attempt:
        """See StageEvents. `process` names that of the call."""
        return self._calls.attempt(stage, clip_id, process)

    def computing(self) -> set[str]:
        """Actors with a call that has begun and needs the device, now or soon: it has not given it back."""
        return self._calls.computing()

    def overdue(self, stage: Stage, clip_id: str) -> None:
        """See StageEvents."""
        self._calls.overdue(stage, clip_id)

    def survived(self, stage: Stage, clip_id: str) -> None:
        """See StageEvents."""
        busy = self._calls.survived(stage, clip_id)
        self._stages[stage].busy_seconds += busy
        self._meter.observe("flashvideo_call_seconds", busy, stage=stage)

    def end(
        self,
        stage: Stage,
        clip_id: str,
        status: str,
        error: tuple[str, str] | None = None,
        worker: Worker = _NOBODY,
    ) -> None:
        """See StageEvents."""
        self._health.ended(stage, clip_id, worker, error)
        self._moved = clock()
        self._ended += status == "failed" or (stage == "refine" and status != "skipped")
        if self._gate is not None and stage == "refine":
            self._gate.refined(clip_id, status == "rendered")
        elif self._gate is not None and status == "failed":
            self._gate.lost(clip_id)
        if status == "failed":
            self._under_way.pop(clip_id, None)
        state = self._stages[stage]
        self._calls.end(stage, clip_id)
        state.done += status != "skipped"
        state.failed += status == "failed"
        if error is not None:
            self._meter.add("flashvideo_failures_total", 1, stage=stage, error_class=error[0])
        state.last_end = clock()

    def gather(self, row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """See StageEvents."""
        return self._groups.gather(row)

    def forget(self, prompts: Sequence[str]) -> None:
        """The groups of these prompts have come out of the graph: nobody will ask about them again."""
        self._groups.forget(prompts)

    def previewed(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """See StageEvents. Of a call that Ray repeats, as its result was lost, the ledger has the first verdict."""
        for row in rows:
            clip_id = row["clip_id"]
            self._under_way.pop(clip_id, None)
            if clip_id not in self._goes_on:
                self._goes_on[clip_id] = goes_on(row)
                self._judged(row)
            elif self._gate is not None:
                self._gate.decided(clip_id)
        return [row["clip_id"] for row in rows if not self._goes_on[row["clip_id"]]]

    def _judged(self, row: Mapping[str, Any]) -> None:
        self._previews.append(row)
        preview = self._stages["preview"]
        preview.judged += 1
        if goes_on(row):
            preview.kept += 1
        else:
            self._out.append(dict(row))
        if self._gate is not None:
            self._gate.judged(row["clip_id"], row["status"] == "previewed")

    def out(self, number: int) -> list[dict[str, Any]]:
        """Candidates that ended when they were judged, from that number on. Those before it the job has."""
        del self._out[: number - self._told]
        self._told = number
        return self._out

    def close(self) -> None:
        """Let nothing more begin in stage 1 and 2: what is under way ends, and the next round does the rest."""
        self._closed = True

    def closed(self) -> int | None:
        """Once nothing is under way any more: how many candidates ended in a call. None before, or if it is open.

        Text that is encoded meanwhile is nobody's: no row of it goes on.
        """
        if not self._closed or self._under_way or any(self._calls.open(s) for s in STAGES if s != "text"):
            return None
        return self._ended

    def over(self) -> tuple[str, int] | None:
        """Once nothing that the job pays for is open any more: why it has enough, and how many candidates ended."""
        working = any(self._calls.open(stage) for stage in STAGES)
        if self._gate is None or working or (why := self._gate.over) is None:
            return None
        return why, self._ended

    def enough(self) -> str | None:
        """Why nothing more is to begin, whatever is still open; None while more is wanted."""
        return None if self._gate is None else self._gate.over

    def tick(self) -> dict[Stage, StageState]:
        """The state of all stages."""
        oldest, held = self._calls.oldest(), self._holdings.seconds()
        for stage in STAGES:
            state = self._stages[stage]
            state.actors, state.held_seconds = self._holdings.actors(stage), held[stage]
            state.open, state.oldest_seconds = self._calls.open(stage), oldest.get(stage, 0.0)
        return {stage: self._stages[stage] for stage in STAGES}

    def flush_if_due(self) -> None:
        """Make preview rows durable if that is due. As `flush`, it may run in a thread beside the other methods."""
        self._previews.flush_if_due()

    def flush(self) -> None:
        """Make all preview rows durable now."""
        self._previews.flush()
