"""Read and compact a large ledger: CPU seconds, wall seconds and peak memory.

    python benchmarks/ledger.py [--rows 1000000] [--parts 4000] [--store DIR|s3://…] [--json results.json]

Writes a ledger of that many rows into an empty place, half of them previews and half clips, every prompt about 60 words
long, in parts as a run writes them. Each figure is of a process of its own, so that memory is what that step needs;
the time and memory to start Python and import the package are given beside.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from flashvideo_ray.graph import remaining
from flashvideo_ray.graph.stage_base import row_schema
from flashvideo_ray.ledger import parquet_log, tables
from flashvideo_ray.ledger.keys import clip_key, latents_key, poster_key, preview_key
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.settings import Settings

WORDS = np.array(
    ["a", "the", "red", "blue", "green", "circle", "moves", "slowly", "over", "water", "grey", "left", "up"]
)
SCORES = ("motion", "motion_area", "flicker", "sharpness", "exposure", "black")
# What the start of a job needs to know (`graph.remaining.next_work`).
RESUME = {"clips": ["clip_id"], "previews": ["clip_id", "status", "reason", "latents", "preview", "poster"]}


def rows_of(table: tables.Table, start: int, count: int) -> pa.Table:
    """Rows with all columns filled; the same candidates in both tables."""
    rng = np.random.default_rng(start)
    ids = [f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}{number:048x}" for number in range(start, start + count)]
    number = rng.uniform(0, 100, count)
    schema = tables.SCHEMAS[table]
    if table == "previews":
        schema = tables.extended(schema, [pa.field(f"score_{name}", pa.float64()) for name in SCORES])
    prompts = [" ".join(words) for words in rng.choice(WORDS, (count, 60))]
    known: dict[str, Any] = {
        "clip_id": ids,
        "id": [clip_id[:12] for clip_id in ids],
        "prompt": prompts,
        "status": ["rendered" if table == "clips" else "previewed"] * count,
        "latents": [latents_key(clip_id) for clip_id in ids],
        "preview": [preview_key(clip_id) for clip_id in ids],
        "clip": [clip_key(clip_id) for clip_id in ids],
        "poster": [poster_key(clip_key(clip_id)) for clip_id in ids],
        "sha256": [f"{number:064x}" for number in rng.integers(0, 2**62, count).tolist()],
        "at": np.arange(start, start + count) + 1_700_000_000_000,
        "host": ["render-17"] * count,
        "device": ["NVIDIA L40S"] * count,
    }
    numeric = {pa.float64(): number, pa.int32(): np.full(count, 49), pa.int64(): rng.integers(0, 2**40, count)}
    columns = [
        pa.array(known[field.name] if field.name in known else numeric[field.type]).cast(field.type)
        if field.name in known or field.type in numeric
        else pa.nulls(count, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def make(store: Store, rows: int, count: int) -> None:
    """Half of the rows and parts for each table."""
    each = max(2 * rows // count // 2, 1)

    def one(task: tuple[tables.Table, int]) -> None:
        table, start = task
        parquet_log.write(
            store, f"ledger/{table}-20260101T{start:012d}", rows_of(table, start, min(each, rows // 2 - start))
        )

    with ThreadPoolExecutor(4) as pool:
        both: tuple[tables.Table, ...] = ("previews", "clips")
        list(pool.map(one, [(table, start) for start in range(0, rows // 2, each) for table in both]))


def nothing(store: Store) -> int:
    return 0


def read_all(store: Store) -> int:
    both = [tables.read(store, "previews"), tables.read(store, "clips")]
    return sum(table.num_rows for table in both)


def read_resume(store: Store) -> int:
    both = [tables.read(store, "previews", RESUME["previews"]), tables.read(store, "clips", RESUME["clips"])]
    return sum(table.num_rows for table in both)


def next_work(store: Store) -> int:
    """What a job that refines asks at its start: every preview is judged, and those that have ended are left out."""
    work = remaining.next_work(store, None, row_schema(), Settings())
    return work.rows.num_rows + work.decided.num_rows


def compact(store: Store) -> int:
    return sum(done.rows for done in tables.compact(store).values())


def measured(step: Callable[[Store], int], store: Store) -> dict[str, Any]:
    """Run a step in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure, args=(step, store, queue))
    process.start()
    result = queue.get()
    process.join()
    return result


def _measure(step: Callable[[Store], int], store: Store, queue: Any) -> None:
    cpu, wall = time.process_time(), time.perf_counter()
    rows = step(store)
    queue.put(
        {
            "rows": rows,
            "cpu_seconds": time.process_time() - cpu,
            "wall_seconds": time.perf_counter() - wall,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--parts", type=int, default=4000)
    parser.add_argument("--store", help="an empty folder or prefix; a temporary folder if not given")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(options.store or folder)
        if store.keys("ledger"):
            sys.exit(f"{store.url} has a ledger already")
        make(store, options.rows, options.parts)
        results: dict[str, dict[str, Any]] = {}
        print(f"{'':34} {'rows':>9} {'parts':>6} {'CPU s':>7} {'wall s':>7} {'peak MiB':>9}")
        for name, step in (
            ("(starting Python)", nothing),
            ("read, columns that resume needs", read_resume),
            ("read, all columns", read_all),
            ("what is left to do", next_work),
            ("compact", compact),
            ("read again, columns for resume", read_resume),
            ("read again, all columns", read_all),
            ("what is left to do, again", next_work),
        ):
            before = len(store.keys("ledger"))
            results[name] = result = {**measured(step, store), "parts": before}
            print(
                f"{name:34} {result['rows']:9} {before:6} {result['cpu_seconds']:7.1f} {result['wall_seconds']:7.1f} "
                f"{result['peak_mib']:9.0f}"
            )
    if options.json:
        options.json.write_text(json.dumps({"options": vars(options) | {"json": None}, "steps": results}, indent=2))


if __name__ == "__main__":
    main()
