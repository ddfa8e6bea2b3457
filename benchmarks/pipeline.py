"""One workload through flashvideo_ray and through what a team would use instead, on one simulated cluster.

    python benchmarks/pipeline.py [--systems ours,ray_data_tuned] [--candidates 1000] [--cards 16+8] [--json FILE]
    python benchmarks/pipeline.py --systems ours --cards 24 [--pilot 48]

Calls occupy declared cards for times that are drawn about the paper's, scaled down (`pipeline_workload`); latents, MP4s
and rows are real and go to a real S3 server. Each system runs in a process of its own, one after the other, each on a
new cluster of raylets on this machine that declare the same cards. Figures are ratios to a bound that no schedule of
the same calls can be under, so that they hold for other cards; the machine's load is told beside them, as it must not
be the limit.

`--cards 24` are cards that both stages may use: ours divides them itself (`size: auto`), and the bound is that of the
best fixed split; what fixed splits would take without any overhead is told. With `--pilot` an earlier job on the same
run has measured some candidates, which are not counted.

Columns: seconds from the first call to the last clip in the store over the bound; those of the same calls without any
overhead, each on the first card that is free; the first from the start of the command; how much of that time each
pool's cards were at work; seconds to the first call; from there to the first clip, less its own two calls; the driver's
peak memory (without what it shares, of which the object store is a part) and the object store's; how much of this
machine's cores were at work meanwhile, and in how many of the seconds all of them; calls that were made once more.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from pipeline_workload import PAPER, Calls, Workload, loaded, saved  # noqa: E402


@dataclass(frozen=True)
class System:
    """What the workload is given to: `function(workload, folder, url)` of a module, run by a Python."""

    title: str
    module: str
    function: str = "run"
    apart: bool = False
    """Whether it has an environment of its own, which `--python NAME=PATH` names."""
    cards: str = "GPU"
    """What Ray calls the cards, for a system that takes no declared GPU for one."""


SYSTEMS = {
    "ours": System("flashvideo_ray", "pipeline_ours"),
    "ray_data": System("Ray Data, its defaults", "pipeline_others", "ray_data"),
    "ray_data_tuned": System("Ray Data, tuned", "pipeline_others", "ray_data_tuned"),
    "static_split": System("both models on every card, prompts split", "pipeline_others", "static_split"),
    "xenna": System("cosmos-xenna, autoscaled", "pipeline_xenna", apart=True, cards="CPU"),
    "daft": System("Daft", "pipeline_daft", apart=True),
}
TIMEOUT = 7200
console = Console(width=200)


def run_one(system: str, folder: Path, url: str) -> None:
    """In a process of its own: the whole of one system."""
    own = SYSTEMS[system]
    watch = _StoreWatch(folder / "store-mb")
    run = getattr(importlib.import_module(own.module), own.function)
    watch.start()
    run(loaded(str(folder / "workload.json")), folder, url)


class _StoreWatch(threading.Thread):
    """Writes the most that the object stores held, in MB."""

    def __init__(self, path: Path):
        super().__init__(daemon=True)
        self.path = path

    def run(self) -> None:
        import ray

        most = 0.0
        while True:
            if ray.is_initialized():
                name = "object_store_memory"
                held = ray.cluster_resources().get(name, 0) - ray.available_resources().get(name, 0)
                most = max(most, held / 1e6)
                self.path.write_text(f"{most:.0f}")
            time.sleep(1)


def run_cluster(cards: str, counts: str) -> None:
    """In a process of its own: raylets on this machine that declare cards, until the input ends."""
    from ray.cluster_utils import Cluster

    # cosmos-xenna asks the dashboard for more than it gives by default.
    os.environ |= dict.fromkeys(("RAY_MAX_LIMIT_FROM_API_SERVER", "RAY_MAX_LIMIT_FROM_DATA_SOURCE"), "40000")
    nodes = Cluster()
    store: dict[str, Any] = {"object_store_memory": 2**30}
    if cards == "GPU":
        nodes.add_node(num_cpus=16, include_dashboard=False, labels={"gpu-tier": "none"}, **store)
    tiers = ("large", "small") if "+" in counts else ("any",)
    for count, tier in zip(map(int, counts.split("+")), tiers, strict=True):
        declared: dict[str, Any] = {"num_cpus": 4 * count, "num_gpus": count} if cards == "GPU" else {"num_cpus": count}
        nodes.add_node(labels={"gpu-tier": tier}, **declared, **store)
    print(nodes.address, flush=True)
    sys.stdin.read()
    nodes.shutdown()


@contextmanager
def cluster(system: System, python: str, workload: Workload) -> Iterator[str]:
    """A cluster of a system's own Ray; gives the address."""
    counts = str(workload.shared or f"{workload.previews}+{workload.refiners}")
    command = [python, __file__, "--cluster", system.cards, "--cards", counts]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(60)


def measure(name: str, python: str, workload: Workload, bucket: str, folder: Path) -> dict[str, Any]:
    """Run one system to its end on a cluster of its own; its figures."""
    with cluster(SYSTEMS[name], python, workload) as address:
        return _measured(name, python, workload, f"s3://{bucket}/{folder.name}", folder, address)


def _measured(name: str, python: str, workload: Workload, url: str, folder: Path, address: str) -> dict[str, Any]:
    folder.mkdir()
    (folder / "calls").mkdir()
    saved(workload, folder / "workload.json")
    env = {**os.environ, "RAY_ADDRESS": address}
    now = Path(os.environ["PIPELINE_BENCHMARK"])  # what workers know of
    now.unlink(missing_ok=True)
    now.symlink_to(folder)
    command = [python, __file__, "--run", name, "--folder", str(folder), "--url", url]
    begun, driver, private = time.time(), 0, 0
    load: list[tuple[float, float]] = []  # when, and per cent of all cores
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    psutil.cpu_percent()
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        time.sleep(1)
        load.append((time.time(), psutil.cpu_percent()))
        try:
            memory = watched.memory_info()
            driver, private = max(driver, memory.rss), max(private, memory.rss - memory.shared)
        except psutil.Error:
            break
        if time.time() - begun > TIMEOUT:
            process.kill()
            raise TimeoutError(f"{name} does not end: {(folder / 'log').read_text()[-2000:]}")
    if process.wait() != 0:
        raise RuntimeError(f"{name} failed: {(folder / 'log').read_text()[-3000:]}")
    figures = figures_of(Calls(workload, str(folder / "calls")).read(), workload, begun)
    held = folder / "store-mb"
    working = [percent for at, percent in load if figures["first_s"] < at - begun < figures["last_s"]]
    said = (folder / "log").read_text().splitlines()
    return {
        **figures,
        "system": name,
        "sizes": [line for line in said if line.startswith(("pools of size auto", "sizes change"))],
        "driver_mb": driver / 1e6,
        "driver_private_mb": private / 1e6,
        "store_mb": float(held.read_text()) if held.exists() else 0.0,
        "load": fmean(working) / 100,
        "at_full_load": sum(each > 95 for each in working) / len(working),
    }


def figures_of(log: Sequence[dict[str, Any]], workload: Workload, begun: float) -> dict[str, Any]:
    """From the calls as they were written down."""
    calls = {stage: [line for line in log if line["stage"] == stage] for stage in (*PAPER, "stored")}
    done = {(line["prompt"], line["seed"]) for line in calls["preview"]}
    asked = len(workload.prompts()) * workload.of_a_prompt
    assert len(done) == asked, f"{asked - len(done)} previews are missing"
    kept = {(line["prompt"], line["seed"]) for line in calls["refine"]}
    assert kept == {(line["prompt"], line["seed"]) for line in calls["stored"]}, "a clip is missing, or another one"
    first = min(line["begun"] for line in calls["preview"])
    last = max(line["at"] for line in calls["stored"])
    bound, greedy = workload.bound(log), workload.greedy(log)
    [clip, of_clip] = min((line["at"], (line["prompt"], line["seed"])) for line in calls["stored"])
    own = [line["drawn"] for stage in PAPER for line in calls[stage] if (line["prompt"], line["seed"]) == of_clip]
    cards = {"preview": workload.previews, "refine": workload.refiners}
    busy = {}
    for stage, count in cards.items():
        span = max(line["at"] for line in calls[stage]) - min(line["begun"] for line in calls[stage])
        busy[stage] = sum(line["drawn"] for line in calls[stage]) / count / span
    if workload.shared:
        busy = dict.fromkeys(busy, sum(line["drawn"] for stage in PAPER for line in calls[stage])
                             / workload.shared / (last - first))  # fmt: skip
    return {
        "clips": len(kept),
        "again": len(calls["preview"]) + len(calls["refine"]) - len(done) - len(kept),
        "bound_s": bound,
        "work_s": last - first,
        "over_bound": (last - first) / bound,
        "greedy_over_bound": min(greedy.values()) / bound,
        "greedy_by_split": {f"{split[0]}+{split[1]}": seconds / bound for split, seconds in greedy.items()},
        "over_bound_from_start": (last - begun) / bound,
        "preview_busy": busy["preview"],
        "refine_busy": busy["refine"],
        "first_s": first - begun,
        "last_s": last - begun,
        "first_clip_s": clip - begun,
        "first_clip_over": (clip - first) - sum(own),
        "last_preview_s": max(line["at"] for line in calls["preview"]) - first,
        "first_clip_before_last_preview": clip < max(line["at"] for line in calls["preview"]),
    }


def _by_split(found: Mapping[str, Any]) -> str:
    """The best fixed splits, as a system without any overhead would do on them."""
    best = sorted(found["greedy_by_split"].items(), key=lambda split: split[1])[:4]
    return "greedy / bound of fixed splits: " + ", ".join(f"{split} {over:.3f}" for split, over in best)


def table_of(results: Sequence[dict[str, Any]]) -> Table:
    table = Table()
    for name in ("system", "cards", "candidates", "bound, s", "work / bound", "greedy / bound", "from start / bound",
                 "stage 1 at work", "stage 2 at work", "start, s", "first clip over its calls, s", "driver, MB",
                 "store, MB", "machine", "again"):  # fmt: skip
        table.add_column(name, justify="left" if name == "system" else "right")
    for row in results:
        table.add_row(
            SYSTEMS[row["system"]].title,
            row["cards"],
            str(row["candidates"]),
            f"{row['bound_s']:.1f}",
            f"{row['over_bound']:.3f}",
            f"{row['greedy_over_bound']:.3f}",
            f"{row['over_bound_from_start']:.3f}",
            f"{row['preview_busy']:.1%}",
            f"{row['refine_busy']:.1%}",
            f"{row['first_s']:.1f}",
            f"{row['first_clip_over']:+.1f}",
            f"{row['driver_mb']:.0f} ({row['driver_private_mb']:.0f})",
            f"{row['store_mb']:.0f}",
            f"{row['load']:.0%} ({row['at_full_load']:.0%})",
            str(row["again"]),
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", type=lambda text: text.split(","), default=list(SYSTEMS), help=", ".join(SYSTEMS))
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--of-a-prompt", type=int, default=1, help="candidates; the best of them is kept (ours alone)")
    parser.add_argument("--cards", default="16+8", help="of stage 1 and of stage 2, or one number for either (ours)")
    parser.add_argument("--pilot", type=int, default=0, help="candidates of an earlier job on the same run (ours)")
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--alone", action="store_true", help="only the prompts whose previews are kept")
    parser.add_argument("--scale", type=float, default=0.1, help="of the paper's seconds")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--python", action="append", default=[], metavar="NAME=PATH", help="of a system in an environment of its own"
    )
    parser.add_argument("--cluster", help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        return run_one(options.run, options.folder, options.url)
    if options.cluster:
        return run_cluster(options.cluster, options.cards)
    pythons = dict(each.split("=", 1) for each in options.python)
    systems = [name for name in options.systems if name in pythons or not SYSTEMS[name].apart]
    for name in sorted({*options.systems} - {*systems}):
        console.print(f"{name} is left out: name the Python of its environment (--python {name}=PATH)")

    from support import serve_s3

    split = {}
    if "+" in options.cards:
        split = dict(zip(("previews", "refiners"), map(int, options.cards.split("+")), strict=True))
    elif options.cards.isdecimal():
        split = {"shared": int(options.cards)}
    if "shared" in split and options.systems != ["ours"]:
        parser.error(f"--cards {options.cards}: the other systems need a split, such as 16+8")
    workload = Workload(options.candidates, options.of_a_prompt, keep=options.keep, scale=options.scale,
                        pilot=options.pilot, alone=options.alone, **split)  # fmt: skip
    results = []
    # The raylets' workers have the environment in which the raylets were started.
    os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory(prefix="pipeline-", ignore_cleanup_errors=True) as where:
        folder = Path(where)
        (folder / "s3").mkdir()
        with ExitStack() as stack:
            s3 = stack.enter_context(serve_s3(folder / "s3"))
            os.environ.update(s3.env, PIPELINE_BENCHMARK=str(folder / "now"))
            for number in range(options.repeat):
                for name in systems:
                    python = pythons.get(name, sys.executable)
                    found = measure(name, python, workload, s3.bucket, folder / f"{name}-{number}")
                    candidates = len(workload.prompts()) * workload.of_a_prompt
                    results.append({**found, "cards": options.cards, "candidates": candidates})
                    said = [*found["sizes"], *([] if not workload.shared else [_by_split(found)])]
                    console.print(*said, table_of(results[-1:]), sep="\n", highlight=False)
                    if options.json:
                        options.json.write_text(json.dumps(results, indent=2))
    console.print(table_of(results))


if __name__ == "__main__":
    main()
