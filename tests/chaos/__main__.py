"""See the package."""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from support import S3, script, serve_s3

from flashvideo_ray import Settings
from flashvideo_ray.media import video

from .account import Account
from .faults import INSIDE, KINDS, LABEL, OUTSIDE, Fault, Injection, inject, schedule
from .model import StandIn
from .nodes import Nodes, serve_ray
from .runs import POOLS, Run

JOBS = 60  # how often the command is started at most
JOB_SECONDS = 1500
FAULTS_A_RUN = 35
SECONDS = {"preview": 0.3, "refine": 0.3}  # of a sampling: most of a run has calls in flight
# Of preview workers another one goes on when one is killed, of refine workers none.
FEWER = {"preview": 2, "refine": 1}
SHORT = ("preview worker killed", "refine worker killed", "driver killed", "S3 server killed", "second job started")
SHORT += (
    "disk full",
    "access denied",
    "NaN",
    "exception",
    "out of memory once",
    "out of memory",
)
console = Console(width=220)


def disturb(
    run: Run, faults: Sequence[Fault], nodes: Nodes, s3: S3, options: argparse.Namespace, account: Account
) -> list[Injection]:
    """Start the command until the run has ended, and inject the faults meanwhile."""
    left, done = list(faults), []
    while run.jobs < JOBS:
        job = run.start()
        mine: list[Injection] = []
        try:
            _watch(run, left, mine, nodes, s3, options)
        finally:
            job.kill()  # if it has not ended
            job.wait()
            run.clock = 0 if not mine or not mine[-1].kind.startswith("clock") else run.clock
        done += mine
        say(f"{run.progress():4.0%} job {run.jobs} ended with {job.returncode}")
        if job.returncode in (0, 3):
            run.finished()
            if not run.open() and not run.alike():
                return done
        if job.returncode not in (0, 3) or run.open():
            account.ended(run, mine, job.returncode)
    raise RuntimeError(f"{run.jobs} jobs did not finish the run: {run.log.read_text()[-3000:]}")


def _watch(
    run: Run, left: list[Fault], done: list[Injection], nodes: Nodes, s3: S3, options: argparse.Namespace
) -> None:
    """Inject what is left into the job that runs now, until it ends."""
    assert run.process is not None
    deadline = time.monotonic() + JOB_SECONDS
    while run.process.poll() is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the job does not end: {run.log.read_text()[-3000:]}")
        if left and run.progress() >= left[0].moment and _may_strike(left[0], nodes):
            injection = inject(left.pop(0), run, nodes, s3, options.stop_seconds, options.lease)
            if injection is not None:
                done.append(injection)
                say(f"{run.progress():4.0%} {injection.kind}")
        time.sleep(0.2)


def _may_strike(fault: Fault, nodes: Nodes) -> bool:
    """A job waits for a store once it is at work; before, it has nothing to lose and says at once what is wrong."""
    return not OUTSIDE[fault.kind].expected.startswith("waits") or bool(nodes.workers())


def verified(run: Run) -> int:
    """The number of problems that `flashvideo-ray verify` finds; they are printed."""
    result = subprocess.run([script("flashvideo-ray"), "verify", run.output], capture_output=True, text=True)
    problems = [line for line in result.stdout.splitlines() if line.startswith("WRONG")]
    if result.returncode:
        console.print(result.stdout + result.stderr, markup=False)
    return len(problems) if problems or not result.returncode else 1


def chaos(options: argparse.Namespace, folder: Path, nodes: Nodes, s3: S3) -> tuple[Account, dict[str, Any]]:
    """Runs with up to 35 faults each, of all kinds."""
    rng = random.Random(options.seed)
    outside, inside = schedule(options.faults, options.kinds, rng)
    count = -(-options.faults // FAULTS_A_RUN)
    account, told = Account(), []
    for number in range(count):
        mine = [(kind, stage, what) for kind, stage, what in inside[number::count]]
        model = StandIn(
            folder / f"run{number}",
            options.candidates,
            seconds=SECONDS,
            faults=[(stage, what) for _, stage, what in mine],
            seed=options.seed + number,
        )
        output = f"s3://{s3.bucket}/run{number}"
        late = any(fault.kind == "label joins later" for fault in outside[number::count])
        overrides = _lease(options) + [f"pools.refine.labels={json.dumps(LABEL)}"] * late
        pools = FEWER if options.short else POOLS
        run = Run(folder / f"run{number}", output, model, [kind for kind, _, _ in mine], pools, overrides)
        say(f"{output}: {options.candidates} candidates, {len(outside[number::count]) + len(mine)} faults")
        injections = disturb(run, outside[number::count], nodes, s3, options, account)
        account.add(run, injections, verified(run))
        told += [(injection.kind, injection.at, injection.over) for injection in injections]
    return account, {"injections": [[kind, at, over] for kind, at, over in told]}


def kills(options: argparse.Namespace, folder: Path, nodes: Nodes, s3: S3) -> tuple[Account, dict[str, Any]]:
    """SIGKILL of the driver again and again; the ledger and the clips are then those of an undisturbed run."""
    rng = random.Random(options.seed)
    model = StandIn(folder / "stand-in", options.candidates, seconds=SECONDS, rejected=0.75)
    account, pools = Account(), FEWER
    straight = Run(folder / "straight", f"s3://{s3.bucket}/straight", model, pools=pools, overrides=_lease(options))
    disturb(straight, [], nodes, s3, options, account)
    for line in model.log.iterdir():
        line.unlink()
    killed = Run(folder / "killed", f"s3://{s3.bucket}/killed", model, pools=pools, overrides=_lease(options))
    moments = sorted(0.97 * rng.random() for _ in range(options.kills))
    faults = [Fault("driver killed", moment, 2 * rng.random(), 0) for moment in moments]
    injections = disturb(killed, faults, nodes, s3, options, account)
    account.add(killed, injections, verified(killed))
    account.wrong += _differences(straight, killed)
    last = injections[-1]
    calls = sum(call.begun > last.over for call in model.calls("preview"))
    if calls != options.candidates - len(last.stored):
        account.wrong.append(f"{calls} stage-1 calls after the last kill, {len(last.stored)} previews finished before")
    return account, {"previews finished at the last kill": len(last.stored), "stage-1 calls after it": calls}


def _lease(options: argparse.Namespace) -> list[str]:
    """The defaults, or what is shorter in their proportions."""
    default = Settings()
    patience = default.store_patience_seconds * options.lease / default.ledger.lease_seconds
    return [f"ledger.lease_seconds={options.lease:g}", f"store_patience_seconds={patience:g}"]


def _differences(straight: Run, killed: Run) -> list[str]:
    """Ids, statuses, reasons, scores, and the frames of the clips."""
    wrong = []
    for table in ("previews", "clips"):
        ours, theirs = straight.rows(table), killed.rows(table)  # type: ignore[arg-type]
        if ours.keys() != theirs.keys():
            wrong.append(f"{table}: {len(theirs)} rows, and {len(ours)} undisturbed")
        for prompt in ours.keys() & theirs.keys():
            a, b = ours[prompt], theirs[prompt]
            same = ["clip_id", "id", "seed", "candidate", "status", "frames", "height", "width", "sha256"]
            same += [name for name in a if name.startswith("score_") and name != "score_seconds"]
            differ = [name for name in same if a.get(name) != b.get(name)]
            if differ:
                wrong.append(f"{table}: {prompt!r} differs in {', '.join(differ)}")
            if a.get("clip") and b.get("clip"):
                frames = [video.decode_mp4(run.store.get(row["clip"]))[0] for run, row in ((straight, a), (killed, b))]
                if frames[0].shape != frames[1].shape or (frames[0] != frames[1]).any():
                    wrong.append(f"the frames of {prompt!r} differ")
    return wrong


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=sys.modules["chaos"].__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", nargs="?", choices=["faults", "kills"], default="faults")
    parser.add_argument("--seed", type=int, default=0, help="the same one gives the same schedule")
    parser.add_argument("--faults", type=int, help="how many; 70")
    parser.add_argument("--kinds", type=lambda text: text.split(","), help=", ".join(KINDS))
    parser.add_argument("--kills", type=int, help="of the driver; 20")
    parser.add_argument("--candidates", type=int, help="of each run; 200, and 100 for kills")
    parser.add_argument("--stop-seconds", type=float, default=20.0, help="how long the S3 server stands still")
    parser.add_argument("--lease", type=float, help="seconds; the default of the settings")
    parser.add_argument("--short", action="store_true", help="the form for `make test-long`")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    defaults = {
        "faults": len(SHORT) if options.short else 70,
        "kinds": list(SHORT if options.short else KINDS),
        "lease": 6.0 if options.short else Settings().ledger.lease_seconds,
        "kills": 1 if options.short else 20,
        "candidates": 20 if options.short else 100 if options.what == "kills" else 200,
    }
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    unknown = set(options.kinds) - {*OUTSIDE, *INSIDE}
    if unknown:
        parser.error(f"--kinds: there is no {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")

    started = time.monotonic()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    os.environ["HF_HUB_OFFLINE"] = "1"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True)))
        (folder / "s3").mkdir()
        s3 = stack.enter_context(serve_s3(folder / "s3"))
        nodes = stack.enter_context(serve_ray(others=1 if options.short else 2))
        account, more = (chaos if options.what == "faults" else kills)(options, folder, nodes, s3)
    console.print(account.table())
    for name, value in more.items():
        if not isinstance(value, list):
            console.print(f"{name}: {value}")
    for message in account.wrong:
        console.print(f"WRONG: {message}", markup=False, soft_wrap=True)
    minutes = (time.monotonic() - started) / 60
    console.print(f"{account.injected} faults, seed {options.seed}, {minutes:.1f} minutes; {len(account.wrong)} wrong")
    if options.json:
        about = {"what": options.what, "seed": options.seed, "minutes": minutes, **more}
        options.json.write_text(json.dumps({**about, **account.tree()}, indent=2))
    unreadable = sum(line.unreadable for line in account.lines.values())
    return 1 if account.wrong or unreadable else 0


if __name__ == "__main__":
    sys.exit(main())
