"""The kinds of faults, a seeded schedule of them, and how each is injected."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass

from support import S3

from flashvideo_ray.settings import Stage

from .nodes import Nodes, wait_until_gone
from .runs import Run

# Where a fault strikes from outside, and how often in a schedule of 22. What costs most time comes least often.
OUTSIDE = {
    "preview worker killed": 3,
    "refine worker killed": 3,
    "score worker killed": 1,
    "text worker killed": 1,
    "node killed": 1,
    "driver killed": 2,
    "second job started": 1,
    "S3 server killed": 2,
    "S3 server stopped": 1,
    "disk full": 2,
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
_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Fault:
    """What is to happen: at which share of a run's samplings, and how many seconds after that."""

    kind: str
    moment: float
    delay: float
    number: int  # which one of several, and how long


@dataclass(frozen=True)
class Injection:
    """What did happen, from when to when; which processes it ended, and whose latents were in the store then."""

    kind: str
    at: float
    over: float
    stored: frozenset[str] = frozenset()
    pids: tuple[int, ...] = ()


def schedule(count: int, kinds: Iterable[str], rng: random.Random) -> tuple[list[Fault], list[tuple[str, str, str]]]:
    """That many faults: those from outside in the order of their moments, and those of candidates (kind, stage, what).

    Every kind comes before any comes more often than its share.
    """
    bag = [(k / times, kind) for kind in kinds for times in [OUTSIDE.get(kind, 1)] for k in range(times)]
    order = [kind for _, kind in sorted(bag, key=lambda item: item[0])]
    chosen = [order[number % len(order)] for number in range(count)]
    outside = [kind for kind in chosen if kind in OUTSIDE]
    rng.shuffle(outside)
    # Spread over the run, but each wherever it likes in its part of it.
    moments = [0.97 * (number + rng.random()) / len(outside) for number in range(len(outside))]
    faults = [Fault(kind, m, rng.random(), rng.randrange(100)) for kind, m in zip(outside, moments, strict=True)]
    inside = [kind for kind in chosen if kind in INSIDE]
    rng.shuffle(inside)
    return faults, [(kind, *INSIDE[kind][number % len(INSIDE[kind])]) for number, kind in enumerate(inside)]


def inject(fault: Fault, run: Run, nodes: Nodes, s3: S3, stop_seconds: float) -> Injection | None:
    """Do it; None if the job ended before there was anything to do it to."""
    assert run.process is not None
    time.sleep(fault.delay)
    stored, at, pids = run.stored(), time.time(), []
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
        case ["driver", "killed"]:
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
    return Injection(fault.kind, at, time.time(), stored, tuple(pids))


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
