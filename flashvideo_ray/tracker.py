"""What is going on in a run, in one place: which calls are open, how often each was tried, what each stage has done.

One `Tracker` lives in a Ray actor beside the driver; the stages talk to it through `TrackerClient`. It also holds the
ledger of previews, because a preview is worth keeping long before its clip is made. This module knows no Ray: a handle
is anything whose methods have `.remote`.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from flashvideo_ray.ledger import Writer
from flashvideo_ray.settings import STAGES, LedgerSettings, Stage
from flashvideo_ray.storage import Store


@dataclass
class StageState:
    """One stage at one moment: its actors, the calls that are open, and those that ended, whatever came of them."""

    actors: int = 0
    open: int = 0
    done: int = 0
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
    """How many times a call got the device and did not give it back, and whether it ever ran over its time limit."""

    count: int
    overdue: bool


class StageEvents(Protocol):
    """What a stage tells about its work."""

    def joined(self, stage: Stage) -> None:
        """An actor of the stage has loaded its model and takes work."""

    def begin(self, stage: Stage, clip_id: str) -> int:
        """A call starts. Returns how many times it was started without an end, this time included."""

    def attempt(self, stage: Stage, clip_id: str) -> Attempt:
        """A call gets the device."""

    def overdue(self, stage: Stage, clip_id: str) -> None:
        """A call that has the device is over its time limit: its process is about to end itself."""

    def survived(self, stage: Stage, clip_id: str) -> None:
        """A call gave the device back: its process did not die of it."""

    def end(self, stage: Stage, clip_id: str) -> None:
        """A call ended, well or not."""

    def previewed(self, row: Mapping[str, Any]) -> None:
        """A preview is in the store; its ledger row."""


class Tracker:
    """Counts and remembers; see the module's text. Not thread-safe: it lives in an actor."""

    def __init__(self, store: Store, previews: pa.Schema, settings: LedgerSettings):
        self._previews = Writer(store, "previews", previews, settings)
        self._begins: Counter[tuple[Stage, str]] = Counter()
        self._attempts: Counter[tuple[Stage, str]] = Counter()
        self._overdue: set[tuple[Stage, str]] = set()
        self._stages: dict[Stage, StageState] = defaultdict(StageState)

    def joined(self, stage: Stage) -> None:
        """See StageEvents."""
        self._stages[stage].actors += 1

    def begin(self, stage: Stage, clip_id: str) -> int:
        """See StageEvents. A call whose process was killed never ends, so its count stays for the next begin."""
        state = self._stages[stage]
        if state.first_begin is None:
            state.first_begin = time.time()
        self._begins[stage, clip_id] += 1
        if self._begins[stage, clip_id] == 1:
            state.open += 1
        return self._begins[stage, clip_id]

    def attempt(self, stage: Stage, clip_id: str) -> Attempt:
        """See StageEvents."""
        self._attempts[stage, clip_id] += 1
        return Attempt(self._attempts[stage, clip_id], (stage, clip_id) in self._overdue)

    def overdue(self, stage: Stage, clip_id: str) -> None:
        """See StageEvents."""
        self._overdue.add((stage, clip_id))

    def survived(self, stage: Stage, clip_id: str) -> None:
        """See StageEvents."""
        self._attempts.pop((stage, clip_id), None)
        self._overdue.discard((stage, clip_id))

    def end(self, stage: Stage, clip_id: str) -> None:
        """See StageEvents."""
        state = self._stages[stage]
        if self._begins.pop((stage, clip_id), 0):
            state.open -= 1
        state.done += 1
        state.last_end = time.time()

    def previewed(self, row: Mapping[str, Any]) -> None:
        """See StageEvents."""
        self._previews.append(row)

    def tick(self) -> dict[Stage, StageState]:
        """Make preview rows durable if that is due; return the state of all stages."""
        self._previews.flush_if_due()
        return {stage: self._stages[stage] for stage in STAGES}

    def flush(self) -> None:
        """Make all preview rows durable now."""
        self._previews.flush()


class TrackerClient:
    """A stage's end of the line to the tracker's actor. `get` waits for a remote result (`ray.get`)."""

    def __init__(self, handle: Any, get: Callable[[Any], Any]):
        self._handle = handle
        self._get = get

    def joined(self, stage: Stage) -> None:
        """See StageEvents."""
        self._handle.joined.remote(stage)

    def begin(self, stage: Stage, clip_id: str) -> int:
        """See StageEvents. Waits for the answer, so that the mark is there before the call can kill its process."""
        return self._get(self._handle.begin.remote(stage, clip_id))

    def attempt(self, stage: Stage, clip_id: str) -> Attempt:
        """See StageEvents. Waits, as `begin` does."""
        return self._get(self._handle.attempt.remote(stage, clip_id))

    def overdue(self, stage: Stage, clip_id: str) -> None:
        """See StageEvents. Waits: the process ends right after."""
        self._get(self._handle.overdue.remote(stage, clip_id))

    def survived(self, stage: Stage, clip_id: str) -> None:
        """See StageEvents."""
        self._handle.survived.remote(stage, clip_id)

    def end(self, stage: Stage, clip_id: str) -> None:
        """See StageEvents."""
        self._handle.end.remote(stage, clip_id)

    def previewed(self, row: Mapping[str, Any]) -> None:
        """See StageEvents. Waits: a row handed over survives the death of this process."""
        self._get(self._handle.previewed.remote(dict(row)))
