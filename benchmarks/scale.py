"""What one job's parts can do a second, and what a candidate costs them: for docs/performance.md's plan of a large run.

    python benchmarks/scale.py [--only tracker] [--clips 4] [--json FILE]
    python benchmarks/scale.py --only rows [--rows 100000]

- calls of stages that the tracker's actor answers a second, from eight callers, and its CPU time for each;
- requests to the store of a candidate of the nano model that is rendered, and of one that is rejected, by kind, of a
  whole run in one process (so the driver's claim, ledger and report are in it: the difference of two runs is told);
- parts that a ledger of so many rows has, written one at a time, and what was written and deleted for it;
- rows a second of a job whose models do nothing, at its begin, at its end and in all, and its driver's memory.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from scale_rows import rows  # noqa: E402

import flashvideo_ray  # noqa: E402
from flashvideo_ray import Settings  # noqa: E402
from flashvideo_ray.graph.tracker import Tracker  # noqa: E402
from flashvideo_ray.graph.tracker_client import TrackerClient  # noqa: E402
from flashvideo_ray.ledger import tables  # noqa: E402
from flashvideo_ray.ledger.store import Store  # noqa: E402
from flashvideo_ray.ledger.writer import Writer  # noqa: E402
from flashvideo_ray.nano.vocabulary import EXAMPLES  # noqa: E402
from flashvideo_ray.settings import LedgerSettings  # noqa: E402

CALLERS, CALLS_EACH = 8, 500
ROWS = (1_000, 10_000)


class Caller:
    """What a stage's actor asks the tracker for each row."""

    def __init__(self, tracker: Any, number: int):
        self.events, self.number = TrackerClient(tracker, ray.get, gated=False), number
        self.events.starting("refine")
        self.events.joined("refine")

    def work(self, rows: int) -> None:
        """So many rows' calls, as fast as they are answered."""
        for row in range(rows):
            clip_id = f"{self.number}/{row}"
            self.events.begin("refine", clip_id)
            self.events.attempt("refine", clip_id)
            self.events.survived("refine", clip_id)
            self.events.end("refine", clip_id, "rendered")


class TimedTracker(Tracker):
    """A tracker that tells its process's CPU time."""

    def cpu_seconds(self) -> float:
        """So far."""
        return time.process_time()


def tracker() -> dict[str, float]:
    """Calls a second; four for each row and stage."""
    ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        remote: Any = ray.remote(num_cpus=0)
        actor = remote(TimedTracker).remote(Store(folder), tables.PREVIEWS, LedgerSettings())
        ray.get(actor.permit.remote(time.monotonic() + 3600))
        callers = [remote(Caller).remote(actor, number) for number in range(CALLERS)]
        ray.get([caller.work.remote(10) for caller in callers])
        cpu, begun = ray.get(actor.cpu_seconds.remote()), time.monotonic()
        ray.get([caller.work.remote(CALLS_EACH) for caller in callers])
        seconds = time.monotonic() - begun
        cpu = ray.get(actor.cpu_seconds.remote()) - cpu
    ray.shutdown()
    calls = 4 * CALLERS * CALLS_EACH
    return {"calls_per_second": calls / seconds, "cpu_microseconds_of_a_call": 1e6 * cpu / calls}


def requests(clips: int) -> dict[str, dict[str, float]]:
    """Requests of one further candidate, by operation."""
    from inline import stages_inline
    from support import serve_s3

    asked: Counter[str] = Counter()

    def count(model: Any, **rest: Any) -> None:
        asked[model.name] += 1

    def run(name: str, count_: int, rule: str) -> Counter[str]:
        store = Store(f"s3://{s3.bucket}/{name}")
        prompts = Path(folder, f"{name}.parquet")
        texts = [EXAMPLES[number % len(EXAMPLES)] for number in range(count_)]
        pq.write_table(pa.table({"prompt": texts, "seed": [*range(count_)]}), prompts)
        asked.clear()
        flashvideo_ray.render(str(prompts), store.url, Settings.load("nano", [f"select.require=[{rule}]"]))
        return Counter(asked)

    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, serve_s3(Path(folder, "s3")) as s3, stages_inline():
        ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.WARNING)
        store = Store(f"s3://{s3.bucket}/warm")
        store.exists("nothing")  # connects
        store.fs.s3.meta.events.register("before-call", count)
        for what, rule in (("rendered", "motion > -1"), ("rejected", "motion > 1e9")):
            few, many = (run(f"{what}-{size}", size, rule) for size in (clips, 2 * clips))
            each = {name: (many[name] - few[name]) / clips for name in sorted({*few, *many})}
            found[what] = {name: value for name, value in each.items() if value}
        ray.shutdown()
    return found


def parts() -> list[dict[str, int]]:
    """Of ledgers whose rows come one at a time."""

    class Counting(Store):
        written = deleted = 0

        def put(self, key: str, data: bytes) -> None:
            """See Store."""
            self.written += 1
            super().put(key, data)

        def delete(self, key: str) -> None:
            """See Store."""
            self.deleted += 1
            super().delete(key)

    found = []
    with tempfile.TemporaryDirectory() as folder:
        store = Counting(folder)
        writer = Writer(store, "clips", tables.CLIPS, LedgerSettings())
        row = dict.fromkeys(tables.CLIPS.names, None) | {"id": "a", "prompt": "a", "seed": 1, "candidate": 0}
        for number in range(max(ROWS)):
            writer.append({**row, "clip_id": f"{number:020}", "status": "rendered"})
            writer.flush()
            if number + 1 in ROWS:
                left = len(store.keys("ledger"))
                found.append({"rows": number + 1, "parts": left, "written": store.written, "deleted": store.deleted})
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--only", choices=("tracker", "parts", "requests", "rows"), action="append")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = {}
    measures: dict[str, Callable[[], Any]] = {
        "tracker": tracker,
        "parts": parts,
        "requests": lambda: requests(options.clips),
        "rows": lambda: rows(options.rows),
    }
    for name, measure in measures.items():
        if name in (options.only or [name]):
            result[name] = measure()
            print(name, json.dumps(result[name], indent=2), flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
