"""Who has a call, how often it was tried, and of whose device it may have died: it survives the call's process."""

from __future__ import annotations

from collections import Counter, defaultdict

from flashvideo_ray.graph.events import Attempt
from flashvideo_ray.ledger.claim import clock
from flashvideo_ray.settings import Stage

_Call = tuple[Stage, str]  # the stage, and the candidate's clip_id


class Calls:
    """The calls that are open, and for each process those that wait for its device in their order.

    The first in a line has the device. If the process dies, it died of that call; the others are bystanders.
    """

    def __init__(self) -> None:
        self._open: defaultdict[Stage, dict[str, str]] = defaultdict(dict)  # by candidate: the actor
        self._publishing: set[_Call] = set()  # open calls that have given the device back
        self._begins: Counter[_Call] = Counter()
        self._lines: dict[str, list[_Call]] = {}
        self._since: dict[str, float] = {}  # by process: since when the first has the device
        self._process: dict[_Call, str] = {}  # in whose line a call is
        self._deaths: Counter[_Call] = Counter()
        self._overdue: set[_Call] = set()

    def begin(self, stage: Stage, clip_id: str, actor: str) -> int:
        """How many times the call was started without an end, this time included.

        A call whose process was killed never ends, so its count stays for the next begin.
        """
        self._open[stage][clip_id] = actor
        self._publishing.discard((stage, clip_id))
        self._begins[stage, clip_id] += 1
        return self._begins[stage, clip_id]

    def end(self, stage: Stage, clip_id: str) -> None:
        """The call ended."""
        self._closed(stage, clip_id)
        self._begins.pop((stage, clip_id), None)

    def gone(self, stage: Stage, clip_id: str) -> None:
        """The node of the call is gone: the call is not open until it is begun again, which counts as one time more."""
        self._closed(stage, clip_id)
        if (process := self._process.get((stage, clip_id))) is not None:
            self._died(process)

    def _closed(self, stage: Stage, clip_id: str) -> None:
        self._open[stage].pop(clip_id, None)
        self._publishing.discard((stage, clip_id))

    def open(self, stage: Stage) -> int:
        """How many calls of a stage have begun and not ended."""
        return len(self._open[stage])

    def computing(self) -> set[str]:
        """Actors with an open call that needs the device: has it, waits for it, or is about to."""
        return {
            actor
            for stage, calls in self._open.items()
            for clip_id, actor in calls.items()
            if (stage, clip_id) not in self._publishing
        }

    def attempt(self, stage: Stage, clip_id: str, process: str) -> Attempt:
        """See StageEvents. A call that is still in the line of a process comes again because that process died."""
        call = (stage, clip_id)
        self._publishing.discard(call)  # it may ask again, where memory ran out
        if call in self._process:
            self._died(self._process[call])
        line = self._lines.setdefault(process, [])
        if not line:
            self._since[process] = clock()
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
        """The call is over its time limit."""
        self._overdue.add((stage, clip_id))

    def oldest(self) -> dict[Stage, float]:
        """By stage: for how many seconds the call has had its device that got it first."""
        now, found = clock(), dict[Stage, float]()
        for process, since in self._since.items():
            stage = self._lines[process][0][0]
            found[stage] = max(found.get(stage, 0.0), now - since)
        return found

    def survived(self, stage: Stage, clip_id: str) -> float:
        """The call gave the device back. Returns for how many seconds it had it."""
        call, now = (stage, clip_id), clock()
        self._deaths.pop(call, None)
        self._overdue.discard(call)
        if clip_id in self._open[stage]:
            self._publishing.add(call)
        process = self._process.pop(call, None)
        if process is None:
            return 0.0
        line = self._lines[process]
        line.remove(call)
        busy = now - self._since.pop(process)
        if line:
            self._since[process] = now
        else:
            del self._lines[process]
        return busy
