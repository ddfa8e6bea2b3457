"""What a disturbed run cost: nothing lost, nothing twice, nothing redone but what was in flight."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise

from rich.table import Table

from .faults import OUTSIDE, Injection
from .model import Call
from .runs import CALLS, Run


@dataclass
class Line:
    """One kind of fault. What is of whole runs is counted for each kind that was injected into them."""

    fault: str
    injected: int = 0
    candidates: int = 0
    lost: int = 0
    duplicated: int = 0
    unforced: int = 0  # ends of a job after which it had to be started again, though nothing forced it to end
    said: int = 0  # how often the job named what it waited for
    silent: int = 0  # how often it did not
    unreadable: int = 0
    redone: int = 0
    beyond: int = 0  # redone although they were not in flight at any fault
    seconds: float = 0.0


@dataclass
class Account:
    """The sums over all runs, and what was wrong in words."""

    lines: dict[str, Line] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    redone: list[dict[str, object]] = field(default_factory=list)

    def line(self, kind: str) -> Line:
        return self.lines.setdefault(kind, Line(kind))

    @property
    def injected(self) -> int:
        return sum(line.injected for line in self.lines.values())

    def add(self, run: Run, injections: Sequence[Injection], unreadable: int) -> None:
        """Settle a run that has ended."""
        counts: dict[str, int] = defaultdict(int)
        for injection in injections:
            counts[injection.kind] += 1
            self.line(injection.kind).said += injection.said is True
            if injection.said is False:
                self.line(injection.kind).silent += 1
                self.wrong.append(f"{run.output}: the job did not say what it waited for: {injection.kind}")
        for kind in run.kinds.values():
            counts[kind] += 1
        lost, duplicated = self._lost(run), run.duplicated()
        if duplicated:
            self.wrong.append(f"{run.output}: {duplicated} rows too many")
        for kind, count in counts.items():
            line = self.line(kind)
            line.injected += count
            line.candidates += len(run.model.prompts)
            line.lost += lost
            line.duplicated += duplicated
            line.unreadable += unreadable
        for stage in ("preview", "refine"):
            self._redone(run, stage, injections)

    def ended(self, run: Run, injections: Sequence[Injection], returncode: int) -> None:
        """A job had to be started again. Whether anything that struck it may end a job is in `faults.OUTSIDE`."""
        if any(OUTSIDE[injection.kind].ends for injection in injections):
            return
        kind = injections[-1].kind if injections else "(nothing)"
        self.line(kind).unforced += 1
        self.wrong.append(
            f"{run.output}: job {run.jobs} ended with {returncode} after {kind}, which is no reason: "
            f"{run.log.read_text()[-1500:]}"
        )

    def _lost(self, run: Run) -> int:
        """Candidates that did not end, or not as they would have undisturbed."""
        clips, before = run.rows("clips"), len(self.wrong)
        for prompt in run.model.prompts:
            row, expected = clips.get(prompt), run.model.expected(prompt)
            if row is None or row["status"] != expected:
                self.wrong.append(f"{run.output}: {prompt!r} is to be {expected}, its row: {row}")
            elif expected == "failed":
                told = [row[name] for name in ("stage", "error_class", "error", "attempts", "reason", "host")]
                if not all(told) or row["stage"] != run.model.faults[prompt][0]:
                    self.wrong.append(f"{run.output}: {prompt!r} does not say how it failed: {row}")
        return len(self.wrong) - before

    def _redone(self, run: Run, stage: str, injections: Sequence[Injection]) -> None:
        """Each call that was made again must have been in flight in a process that a fault ended."""
        calls: dict[str, list[Call]] = defaultdict(list)
        ends = {pid: injection for injection in injections for pid in injection.pids}
        for call in run.model.calls(stage):
            calls[call.prompt].append(call)
            if run.model.faults.get(call.prompt) in ((stage, "kill"), (stage, "hang")):
                ends[call.pid] = Injection(run.kinds[call.prompt], call.begun, call.begun)
        redone: dict[int, int] = defaultdict(int)
        for prompt, (call, again) in [(prompt, pair) for prompt, own in calls.items() for pair in pairwise(own)]:
            end = ends.get(call.pid)
            redone[call.pid] += 1
            in_flight = end is not None and prompt not in end.stored and redone[call.pid] <= CALLS
            line = self.line(end.kind if end else "(nothing)")
            until = min(call.ended or again.begun, end.at if end else again.begun)
            line.seconds += max(0.0, until - call.begun)
            self.redone.append({"run": run.output, "fault": line.fault, **asdict(call), "again": again.begun})
            if stage == "preview":
                line.redone += 1
                line.beyond += not in_flight
                if not in_flight:
                    self.wrong.append(f"{run.output}: stage 1 was paid twice for {prompt!r}: {call}, {again}")

    def table(self) -> Table:
        table = Table(
            "fault", "the job", "times", "lost", "doubled", "ended unforced", "waited and said so", "unreadable",
            "stage-1 calls redone", "of them not in flight", "seconds of work redone",
        )  # fmt: skip
        for line in self.lines.values():
            expected = OUTSIDE[line.fault].expected if line.fault in OUTSIDE else "goes on"
            said = f"{line.said} of {line.said + line.silent}" if line.said + line.silent else ""
            counts = (line.injected, line.lost, line.duplicated, line.unforced, said, line.unreadable, line.redone)
            numbers = (expected, *counts)
            table.add_row(line.fault, *map(str, numbers), str(line.beyond), f"{line.seconds:.1f}")
        beyond, redone = (sum(getattr(line, n) for line in self.lines.values()) for n in ("beyond", "redone"))
        seconds = sum(line.seconds for line in self.lines.values())
        unforced = sum(line.unforced for line in self.lines.values())
        sums = (self.injected, "", "", unforced, "", "", redone, beyond, f"{seconds:.1f}")
        table.add_row("all", "", *map(str, sums))
        return table

    def tree(self) -> dict[str, object]:
        return {"lines": [asdict(line) for line in self.lines.values()], "wrong": self.wrong, "redone": self.redone}
