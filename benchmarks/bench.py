"""Short forms of the benchmarks, whose ratios are compared with those in `ratios.json`: `make bench`.

    python benchmarks/bench.py [--only ledger,pipeline,overhead] [--renew]

A ratio is of two things that were measured side by side, so it holds on other machines; less is better. One that is
more than its tolerance above what is committed is outside, and the exit status is 1. `--renew` writes those that were
found: run it on a quiet machine, and commit the file with what changed them. Tolerances are not renewed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
COMMITTED = HERE / "ratios.json"
_STEPS = ("status", "report", "verify --no-decode", "compact")
_BESIDE = ("(starting Python)", "read, all columns")
COMMANDS = {
    "ledger": ["--rows", "100000", "--objects", *(word for step in (*_BESIDE, *_STEPS) for word in ("--only", step))],
    "pipeline": ["--systems", "ours,ray_data_tuned", "--cards", "4+2", "--candidates", "60"],
    "overhead": ["--few", "1", "--many", "4", "--short"],
}
console = Console(width=160)


@dataclass(frozen=True)
class Ratio:
    """What is compared: by a benchmark's name, from what it wrote down."""

    of: str
    name: str
    unit: str
    found: Callable[[Any], float]


def _cpu(step: str) -> Callable[[Any], float]:
    return lambda results: _cpu_of(results, step) / _cpu_of(results, "read, all columns")


def _cpu_of(results: Any, step: str) -> float:
    return float(results["steps"][step]["cpu_seconds"])


def _memory(step: str) -> Callable[[Any], float]:
    """Beside what Python and the package take."""
    return lambda results: _memory_of(results, step) / _memory_of(results, "read, all columns")


def _memory_of(results: Any, step: str) -> float:
    return float(results["steps"][step]["peak_mib"] - results["steps"]["(starting Python)"]["peak_mib"])


def _makespans(results: Any) -> float:
    ours, tuned = (float(row["work_s"]) for row in results)
    return ours / tuned


def _of_a_clip(results: Any) -> float:
    [over] = results["clips_per_cpu_s_of_the_job_over"].values()
    return 1 / float(over)


RATIOS = (
    *(Ratio("ledger", f"CPU time: {step}", "times reading all of it", _cpu(step)) for step in _STEPS),
    *(Ratio("ledger", f"memory: {step}", "times reading all of it", _memory(step)) for step in _STEPS),
    Ratio("pipeline", "from the first call to the last clip", "times Ray Data's, tuned", _makespans),
    Ratio("overhead", "CPU time of a further clip in a job", "times that in a loop", _of_a_clip),
)


def run(name: str, folder: Path) -> Any:
    """One benchmark in its short form; what it wrote down."""
    written = folder / f"{name}.json"
    command = [sys.executable, str(HERE / f"{name}.py"), *COMMANDS[name], "--json", str(written)]
    console.print(" ".join(["python", f"benchmarks/{name}.py", *map(shlex.quote, COMMANDS[name])]))
    begun = time.monotonic()
    subprocess.run(command, check=True, cwd=HERE.parent)
    console.print(f"{time.monotonic() - begun:.0f} s\n")
    return json.loads(written.read_text())


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(COMMANDS), help=", ".join(COMMANDS))
    parser.add_argument("--renew", action="store_true", help="write what is found to ratios.json")
    options = parser.parse_args()
    committed = json.loads(COMMITTED.read_text())
    table = Table("benchmark", "what", "unit", "committed", "at most", "found", "")
    outside = 0
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        results = {of: run(of, Path(name)) for of in options.only}
    for ratio in RATIOS:
        if ratio.of not in results:
            continue
        known = committed[f"{ratio.of}: {ratio.name}, {ratio.unit}"]
        found, most = ratio.found(results[ratio.of]), known["ratio"] * (1 + known["tolerance"])
        outside += found > most
        numbers = (f"{each:.2f}" for each in (known["ratio"], most, found))
        table.add_row(ratio.of, ratio.name, ratio.unit, *numbers, "OUTSIDE" if found > most else "")
        if options.renew:
            known["ratio"] = round(found, 3)
    console.print(table)
    if options.renew:
        COMMITTED.write_text(json.dumps(committed, indent=2) + "\n")
        return 0
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
