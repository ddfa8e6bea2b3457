"""The kinds of faults, a seeded schedule of them, and how each is injected."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from support import S3

from flashvideo_ray.settings import Stage

from .nodes import Nodes, wait_until_gone
from .runs import Run


@dataclass(frozen=True)
class Kind:
    """A fault that strikes from outside: how often in a schedule of 35, and what is expected of the job."""

    times: int
    expected: str = "goes on"
    ends: bool = False  # the job may end of it: somebody killed it, or it has a reason
    says: str = ""  # what a line of the job's log names meanwhile, where it has to wait


# What costs most time comes least often.
OUTSIDE = {
    "preview worker killed": Kind(3),
    "refine worker killed": Kind(3),
    "score worker killed": Kind(1),
    "text worker killed": Kind(1),
    "node killed": Kind(1),
    "driver killed": Kind(2, "is taken up by the next one", ends=True),
    "second job started": Kind(1, "goes on; the second is refused"),
    "S3 server killed": Kind(2, "waits"),
    "S3 server stopped": Kind(1, "waits"),
    "disk full": Kind(2, "waits"),
    "store away longer than the lease": Kind(1, "waits, claims again, goes on", says="s3://"),
    "disk full longer than the lease": Kind(1, "waits, claims again, goes on", says="s3://"),
    "access denied": Kind(1, "waits", says="s3://"),
    "temporary folder full": Kind(1),
    "loading dies five times": Kind(1),
    "loading dies on a node": Kind(1, "goes on without the node"),
    "loading raises on restart": Kind(1),
    "label joins later": Kind(1, "waits, says for what, goes on when it joins", says="waiting for 1 min"),
    "all clips fail alike": Kind(1, "ends with status 3; what waits stays open", ends=True),
    "one bad node": Kind(1, "goes on without the node"),
    "clock ahead": Kind(1, "is taken up by the next one", ends=True),
    "clock behind": Kind(1, "is taken up by the next one", ends=True),
}
# Faults of a candidate: the stage, and what the stand-in does there (see `faulty_network` and `model`).
INSIDE = {
    "prompt kills its worker": [("preview", "kill"), ("refine", "kill")],
    "call hangs": [("refine", "hang"), ("preview", "hang")],
    "NaN": [("preview", "nan"), ("refine", "nan")],
    "exception": [("refine", "raise"), ("preview", "raise")],
    "out of memory once": [("refine", "memory")],
    "out of memory": [("refine", "memory always")],
}
KINDS = (*OUTSIDE, *INSIDE)
LABEL = {"late": "yes"}  # of the nodes that join later
_WAIT_SECONDS = 60.0
_DENIED_SHARE = 1 / 3  # of a lease; 20 s at the default
_FULL_SECONDS = 20.0
_FILE_BYTES = 256  # that a file may have in a full temporary folder
_BAD_SECONDS = 120.0  # for which a node is bad
_CLOCK_SECONDS = 120
_SAYING_SECONDS = 300.0  # each minute, as busy as the machine may be


@dataclass(frozen=True)
class Fault:
    """What is to happen: at which share of a run's samplings, and how many seconds after that."""

    kind: str
    moment: float
    delay: float
    number: int  # which one of several, and how long


@dataclass(frozen=True)
class Injection:
    """What did happen, from when to when; which processes it ended, and whose latents were in the store then.

    `said`: whether the job named what it waited for; None where it need not wait.
    """

    kind: str
    at: float
    over: float
    stored: frozenset[str] = frozenset()
    pids: tuple[int, ...] = ()
    said: bool | None = None


def schedule(count: int, kinds: Iterable[str], rng: random.Random) -> tuple[list[Fault], list[tuple[str, str, str]]]:
    """That many faults: those from outside in the order of their moments, and those of candidates (kind, stage, what).

    Every kind comes before any comes more often than its share.
    """
    bag = [
        (k / times, kind)
        for kind in kinds
        for times in [OUTSIDE[kind].times if kind in OUTSIDE else 1]
        for k in range(times)
    ]
    order = [kind for _, kind in sorted(bag, key=lambda item: item[0])]
    chosen = [order[number % len(order)] for number in range(count)]
    outside = [kind for kind in chosen if kind in OUTSIDE]
    rng.shuffle(outside)
    # Spread over the run, but each wherever it likes in its part of it.
    moments = [0.97 * (number + rng.random()) / len(outside) for number in range(len(outside))]
    if "label joins later" in outside:  # a run without a place for a pool waits from the start
        outside.sort(key=lambda kind: kind != "label joins later")
        moments[0] = 0.0
    faults = [Fault(kind, m, rng.random(), rng.randrange(100)) for kind, m in zip(outside, moments, strict=True)]
    inside = [kind for kind in chosen if kind in INSIDE]
    rng.shuffle(inside)
    return faults, [(kind, *INSIDE[kind][number % len(INSIDE[kind])]) for number, kind in enumerate(inside)]


def inject(fault: Fault, run: Run, nodes: Nodes, s3: S3, stop_seconds: float, lease_seconds: float) -> Injection | None:
    """Do it; None if the job ended before there was anything to do it to."""
    assert run.process is not None
    time.sleep(fault.delay)
    stored, at, pids = run.stored(), time.time(), []
    # A late label is waited for from the start.
    log_bytes = 0 if fault.kind.startswith("label") else run.log.stat().st_size
    away = 1.3 * lease_seconds
    match fault.kind.split():
        case [stage, "worker", "killed"]:
            pid = _worker(stage, run, nodes, fault.number)  # type: ignore[arg-type]
            if pid is None:
                return None
            pids, stored, at = [pid], run.stored(), time.time()
            os.kill(pid, signal.SIGKILL)
            wait_until_gone(pids, 5)
        case ["node", "killed"]:
            pids = nodes.kill_one(fault.number)
        case ["driver", "killed"] | ["clock", _]:
            run.clock = {"ahead": _CLOCK_SECONDS, "behind": -_CLOCK_SECONDS}.get(fault.kind.split()[1], 0)
            pids = nodes.workers()
            run.process.kill()
            run.process.wait()
            wait_until_gone(pids, 20)  # Ray ends them, not this
            stored = run.stored()
        case ["second", "job", "started"]:
            second = subprocess.run(run.command, env=run.env, capture_output=True, text=True, timeout=300)
            if run.process.poll() is not None:
                return None
            refused = f"is claimed by another job: pid {run.process.pid} on"
            if second.returncode != 2 or refused not in second.stderr:
                raise AssertionError(f"a second job was not refused: {second.returncode}: {second.stderr}")
        case ["S3", "server", "killed"]:
            s3.kill()
            time.sleep(fault.number % 5)
            s3.start()
            s3.wait()
        case ["S3", "server", "stopped"]:
            s3.process.send_signal(signal.SIGSTOP)
            time.sleep(stop_seconds)
            s3.process.send_signal(signal.SIGCONT)
            s3.wait()
        case ["disk", "full"]:
            fill(s3, 2 + fault.number % 8)
        case ["store", "away", *_]:
            s3.kill()
            time.sleep(away)
            s3.start()
            s3.wait()
        case ["disk", "full", "longer", *_]:
            fill(s3, away)
        case ["access", "denied"]:
            with s3.denied():
                time.sleep(_DENIED_SHARE * lease_seconds)
        case ["temporary", "folder", "full"]:
            workers = nodes.workers()
            for pid in workers:
                _limit_files(pid, _FILE_BYTES)
            time.sleep(_FULL_SECONDS)
            for pid in workers:
                _limit_files(pid, resource.RLIM_INFINITY)
        case ["loading", "dies", "five", "times"] | ["loading", "raises", *_]:
            what, times = ("die", 5) if "dies" in fault.kind else ("raise", 1)
            pid = _worker("refine", run, nodes, fault.number)
            if pid is None:
                return None
            told = [run.model.fates["refine"].tell(f"load-{what}-{number}") for number in range(times)]
            pids, stored, at = [pid], run.stored(), time.time()
            os.kill(pid, signal.SIGKILL)
            _until(lambda: not any(path.exists() for path in told), run)
            for path in told:
                path.unlink(missing_ok=True)
        case ["loading", "dies", *_]:
            node = nodes.some_of("refine")
            if node is None:
                return None
            told = [run.model.fates["refine"].tell("load-die-on", node)]
            pids, stored, at = nodes.workers("refine", node), run.stored(), time.time()
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            _until(lambda: False, run)
            told[0].unlink()
        case ["label", *_]:
            _until(lambda: _said(run, 0, OUTSIDE[fault.kind].says), run, _SAYING_SECONDS)
            for _ in range(2):
                nodes.join(LABEL)
        case ["all", "clips", *_] | ["one", "bad", "node"]:
            where = "everywhere" if "all" in fault.kind else nodes.some_of("refine")
            if where is None:
                return None
            told = [run.model.fates["refine"].tell("call-raise-on", where)]
            _until(lambda: False, run)
            told[0].unlink()
            if not run.alike():
                return None
    says = OUTSIDE[fault.kind].says
    said = _said(run, log_bytes, says) if says else None
    return Injection(fault.kind, at, time.time(), stored, tuple(pids), said)


def _said(run: Run, start: int, words: str) -> bool:
    """Whether the job's log has these words from a byte on; its lines break wherever they are full."""
    return words in " ".join(run.log.read_bytes()[start:].decode(errors="replace").split())


def _until(over: Callable[[], bool], run: Run, seconds: float = _BAD_SECONDS) -> None:
    """Until it is over, the job has ended, or that many seconds are."""
    assert run.process is not None
    deadline = time.monotonic() + seconds
    while not over() and run.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)


def _limit_files(pid: int, length: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (length, resource.RLIM_INFINITY))


def fill(s3: S3, seconds: float) -> None:
    """Let the server not write another byte to any file for so long, as on a full disk.

    By RLIMIT_FSIZE, which needs neither root nor a disk that can be filled: the kernel refuses the writes of the real
    server in the middle of its work (with EFBIG in place of ENOSPC), while reads go on.
    """
    everything = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(s3.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        time.sleep(seconds)
    finally:
        resource.prlimit(s3.process.pid, resource.RLIMIT_FSIZE, everything)
    s3.wait()


def _worker(stage: Stage, run: Run, nodes: Nodes, number: int) -> int | None:
    """A process of the stage's pool; one that was killed just now may still be coming back."""
    assert run.process is not None
    deadline = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline and run.process.poll() is None:
        pids = nodes.workers(stage)
        if pids:
            return pids[number % len(pids)]
        time.sleep(0.2)
    return None
