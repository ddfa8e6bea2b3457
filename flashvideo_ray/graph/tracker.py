"""What is going on in a run, in one place: which calls are open, how often each was tried, what each stage has done.

One `Tracker` lives in a Ray actor beside the driver; the stages talk to it through `TrackerClient`. It also holds the
ledger of previews, because a preview is worth keeping long before its clip is made, and the candidates of a prompt that
wait for one another to be judged together. This module knows no Ray: a handle is anything whose methods have `.remote`.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from flashvideo_ray.graph.health import Fault, Health, Order, Worker
from flashvideo_ray.graph.quota import Answer, Gate
from flashvideo_ray.ledger.claim import ClaimLostError, clock
from flashvideo_ray.ledger.held import HeldStore
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
    held_seconds: float = 0.0  # by actors, from when each took work first
    first_begin: float | None = None
    last_end: float | None = None

    @property
    def rate(self) -> float:
        """Calls that ended a second, from the first begin to the last end; 0 before there is one."""
        if self.first_begin is None or self.last_end is None:
            return 0.0
        return self.done / max(self.last_end - self.first_begin, 1e-6)


@dataclass(frozen=True)
class Attempt:
    """How many times a call had the device, this time included, and whether it ever ran over its time limit.

    The times before ended with the death of the process.
    """

    count: int
    overdue: bool


@dataclass(frozen=True)
class Begin:
    """How many times a call was started without an end, this time included, and what it is to do."""

    count: int
    order: Order = "go"


class StageEvents(Protocol):
    """What a stage tells about its work, and what it asks."""

    def starting(self, stage: Stage) -> float | None:
        """A process of the stage is about to load. Returns seconds to pause before, or None: it is not to load here."""

    def not_loaded(self, stage: Stage, cause: str) -> None:
        """The process tried to load, more than once, and could not."""

    def dismissed(self, stage: Stage) -> bool:
        """Whether a process that is not to load, or could not, may end, and the round of the job with it."""

    def admit(self, stage: Stage, clip_id: str, prompt: str) -> Answer:
        """Whether a call may begin, or the run has enough. `prompt` is the prompt's id."""

    def joined(self, stage: Stage) -> None:
        """An actor of the stage has loaded its model and takes work."""

    def begin(self, stage: Stage, clip_id: str) -> Begin:
        """A call starts."""

    def attempt(self, stage: Stage, clip_id: str) -> Attempt:
        """A call is next to get the device. The calls of a process get it in the order in which they tell this."""

    def step(self, stage: Stage, clip_id: str, done: int, total: int) -> None:
        """A call that has the device has made so many of its steps."""

    def overdue(self, stage: Stage, clip_id: str) -> None:
        """A call that has the device is over its time limit: its process is about to end itself."""

    def survived(self, stage: Stage, clip_id: str) -> None:
        """A call gave the device back: its process did not die of it."""

    def end(self, stage: Stage, clip_id: str, status: str, error: tuple[str, str] | None = None) -> None:
        """A call ended; the row's status now, and where it failed the class of the error and its message."""

    def gather(self, row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """A candidate is there to be judged with the `group` of its prompt.

        Returns all of the group to the one that makes it complete, and None to the others. The same row asked about
        again, by a call that is repeated, gets the same answer.
        """

    def previewed(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Previews are in the store and judged; their ledger rows."""


@dataclass
class _Group:
    """Candidates of one prompt: those judged before, those that came, and the one that came last."""

    context: list[dict[str, Any]]
    rows: dict[str, dict[str, Any]]
    last: str | None = None


_PERMIT_SECONDS = 5.0
_NOBODY = Worker()
_Call = tuple[Stage, str]  # the stage, and the candidate's clip_id


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
        self._ended = 0
        self._context = context or {}
        self._groups: dict[str, _Group] = {}
        self._gate = gate
        # By process: the calls that wait for its device in their order, the first of which has it, and since when.
        self._lines: dict[str, list[_Call]] = {}
        self._since: dict[str, float] = {}
        self._process: dict[_Call, str] = {}  # in whose line a call is
        self._deaths: Counter[_Call] = Counter()
        self._held_until, self._lost = 0.0, ""
        self._previews = Writer(HeldStore(store.url, 0.0, self, store.clock), "previews", previews, settings)
        self._begins: Counter[_Call] = Counter()
        self._overdue: set[_Call] = set()
        self._joined: dict[Stage, list[float]] = defaultdict(list)
        self._stages: dict[Stage, StageState] = defaultdict(StageState)

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
        """Once no call is open any more: why the job ends, and how many candidates it rendered or lost."""
        if self._health.stopped is None or any(self._stages[stage].open for stage in STAGES):
            return None
        return self._health.stopped, self._ended

    def joined(self, stage: Stage, worker: Worker = _NOBODY) -> None:
        """See StageEvents."""
        self._health.joined(stage, worker)
        self._stages[stage].actors += 1
        self._joined[stage].append(time.time())
        if self._gate is not None:
            self._gate.joined(stage)

    def admit(self, stage: Stage, clip_id: str, prompt: str) -> Answer:
        """See StageEvents."""
        return "go" if self._gate is None else self._gate.admit(stage, clip_id, prompt)

    def begin(self, stage: Stage, clip_id: str, worker: Worker = _NOBODY) -> Begin:
        """See StageEvents. A call whose process was killed never ends, so its count stays for the next begin."""
        if (order := self._health.began(stage, clip_id, worker)) != "go":
            return Begin(0, order)
        state = self._stages[stage]
        if state.first_begin is None:
            state.first_begin = time.time()
        self._begins[stage, clip_id] += 1
        if self._begins[stage, clip_id] == 1:
            state.open += 1
        return Begin(self._begins[stage, clip_id])

    def attempt(self, stage: Stage, clip_id: str, process: str) -> Attempt:
        """See StageEvents. A call that is still in the line of a process comes again because that process died."""
        call = (stage, clip_id)
        if call in self._process:
            self._died(self._process[call])
        line = self._lines.setdefault(process, [])
        if not line:
            self._since[process] = time.time()
        line.append(call)
        self._process[call] = process
        return Attempt(self._deaths[call] + 1, call in self._overdue)

    def _died(self, process: str) -> None:
        """It died of the call that had its device; those that waited for it are bystanders."""
        del self._since[process]
        line = self._lines.pop(process)
        self._deaths[line[0]] += 1
        for call in line:
            del self._process[call]

    def overdue(self, stage: Stage, clip_id: str) -> None:
        """See StageEvents."""
        self._overdue.add((stage, clip_id))

    def survived(self, stage: Stage, clip_id: str) -> None:
        """See StageEvents."""
        call, now = (stage, clip_id), time.time()
        self._deaths.pop(call, None)
        self._overdue.discard(call)
        process = self._process.pop(call, None)
        if process is None:
            return
        line = self._lines[process]
        line.remove(call)
        self._stages[stage].busy_seconds += now - self._since.pop(process)
        if line:
            self._since[process] = now
        else:
            del self._lines[process]

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
        self._ended += status in ("rendered", "failed")
        if self._gate is not None and stage == "refine":
            self._gate.refined(clip_id, status == "rendered")
        elif self._gate is not None and status == "failed":
            self._gate.lost(clip_id)
        state = self._stages[stage]
        if self._begins.pop((stage, clip_id), 0):
            state.open -= 1
        state.done += 1
        state.failed += status == "failed"
        state.last_end = time.time()

    def gather(self, row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """See StageEvents."""
        group = self._groups.get(row["id"])
        if group is None:
            group = self._groups[row["id"]] = _Group(self._context.get(row["id"], []), {})
        group.rows[row["clip_id"]] = dict(row)
        if group.last is None and len(group.rows) + len(group.context) >= row["group"]:
            group.last = row["clip_id"]
        return [*group.context, *group.rows.values()] if group.last == row["clip_id"] else None

    def forget(self, prompts: Sequence[str]) -> None:
        """The groups of these prompts have come out of the graph: nobody will ask about them again."""
        for prompt in prompts:
            self._groups.pop(prompt, None)

    def previewed(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """See StageEvents."""
        for row in rows:
            self._previews.append(row)
            if self._gate is not None:
                self._gate.judged(row["clip_id"], row["status"] == "previewed")

    def over(self) -> tuple[str, int] | None:
        """Once nothing that the job pays for is open any more: why it has enough, and how many clips it rendered."""
        working = sum(self._stages[stage].open for stage in STAGES)
        if self._gate is None or working or (why := self._gate.over) is None:
            return None
        return why, self._gate.rendered

    def tick(self) -> dict[Stage, StageState]:
        """The state of all stages."""
        now = time.time()
        for stage, since in self._joined.items():
            self._stages[stage].held_seconds = sum(now - at for at in since)
        return {stage: self._stages[stage] for stage in STAGES}

    def flush_if_due(self) -> None:
        """Make preview rows durable if that is due. As `flush`, it may run in a thread beside the other methods."""
        self._previews.flush_if_due()

    def flush(self) -> None:
        """Make all preview rows durable now."""
        self._previews.flush()


class TrackerClient:
    """A stage's end of the line to the tracker's actor.

    `get` waits for a remote result (`ray.get`), `here` tells which actor this is and where. Where the tracker has no
    gate (`gated`), it is not asked about it.
    """

    def __init__(self, handle: Any, get: Callable[[Any], Any], gated: bool, here: Callable[[], Worker] = Worker):
        self._handle = handle
        self._get = get
        self._here = here
        self._worker = Worker()
        self._gated = gated
        self._process = uuid.uuid4().hex  # of each copy its own, and a process has one
        self._permitted_until = 0.0

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
        """See Permit. Asks again when an answer is `_PERMIT_SECONDS` old: by then the job knows who took its run."""
        asked = clock()
        if asked >= self._permitted_until:
            seconds, lost = self._get(self._handle.permitted.remote())
            if lost:
                raise ClaimLostError(lost)
            self._permitted_until = asked + min(seconds, _PERMIT_SECONDS)  # by this machine's clock, before it asked
        return self._permitted_until - clock()

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

    def previewed(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """See StageEvents. Waits: rows handed over survive the death of this process."""
        self._get(self._handle.previewed.remote([dict(row) for row in rows]))
