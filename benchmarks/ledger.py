"""A large run: how long its ledger takes to read, merge, report, verify and take up again, and how much memory.

    python benchmarks/ledger.py [--rows 1000000] [--store DIR|s3://…] [--objects] [--json results.json]

Writes a run of the nano model into an empty place, as a job leaves it that was killed: half as many prompts as rows,
each about 60 words long, all of them previewed, four fifths of them ended. The parts have the sizes that such a job's
own merging leaves (`ledger.writer`). Each figure is of a process of its own, so that memory is what that step needs;
the time and memory to start Python and import the package are given beside. `--objects` also makes an empty file for
each object that a row names, for `verify`. `render` is begun on what the run left and on as many new prompts as rows,
until the first row has gone through a stage that does nothing: all are handed over to Ray then; and once to its end,
with a graph that gives nothing back, so that the ledger is read again, merged, and told of.
"""

import argparse
import contextlib
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.cloudpickle

from flashvideo_ray import Settings, identity
from flashvideo_ray.graph import checks, datasets, finish, pipeline
from flashvideo_ray.graph.bundles import bundled
from flashvideo_ray.graph.recipe import about, recipe_of
from flashvideo_ray.graph.standing import Standing
from flashvideo_ray.ledger import jobs, parquet_log, run_file, tables
from flashvideo_ray.ledger import verify as verification
from flashvideo_ray.ledger.keys import clip_key, latents_key, poster_key, preview_key
from flashvideo_ray.ledger.store import Store

WORDS = np.array(
    ["a", "the", "red", "blue", "green", "circle", "moves", "slowly", "over", "water", "grey", "left", "up"]
)
SCORES = ("motion", "motion_area", "flicker", "sharpness", "exposure", "black")
MERGED = (32**3, 32**2, 32, 1)  # rows of parts, from what was merged often to what was not
ENDED, RENDERED = 0.8, 0.25  # shares: of previews, and of those that ended
READING_SECONDS = 3.0  # of CPU, at least: others are compared with one reading, which takes less than can be measured
PROMPTS, MORE = "prompts.parquet", "more.parquet"
SETTINGS = ["select.require=[motion > 75]", "ledger.lease_seconds=600"]


def settings_of() -> Settings:
    return checks.check(Settings.load("nano", SETTINGS))


def prompt_rows(start: int, count: int) -> pa.Table:
    rng = np.random.default_rng(start)
    texts = [" ".join(words) for words in rng.choice(WORDS, (count, 60))]
    return pa.table({"id": [f"p{number:08}" for number in range(start, start + count)], "prompt": texts})


def write_prompts(path: Path, count: int) -> None:
    with pq.ParquetWriter(path, prompt_rows(0, 1).schema) as file:
        for start in range(0, count, 50_000):
            file.write_table(prompt_rows(start, min(50_000, count - start)))


def make(store: Store, folder: Path, rows: int, objects: bool) -> None:
    """The run, in a process of its own."""
    write_prompts(folder / PROMPTS, rows // 2)
    write_prompts(folder / MORE, rows)
    settings = settings_of()
    recipe = recipe_of(settings)
    table = checks.read_prompts(str(folder / PROMPTS), settings)
    table = identity.candidates(table, 1, settings.stage1_recipe(), recipe["fingerprints"]["preview"])
    run = run_file.open_run(store, recipe, about(settings, table.num_rows))
    jobs.note(store, run, seconds=3600.0)
    moment = int(tables.now().timestamp() * 1000) - 10 * rows
    wanted = {name: table[name] for name in tables.CANDIDATES.names if name in table.column_names}
    wanted |= {
        "status": ["wanted"] * len(table),
        "at": pa.array([moment] * len(table)).cast(tables.CANDIDATES.field("at").type),
    }
    parquet_log.write(
        store, tables.stem("candidates"), pa.table(wanted).select(tables.CANDIDATES.names).cast(tables.CANDIDATES)
    )
    counts: dict[tables.Table, int] = {"previews": table.num_rows, "clips": int(ENDED * table.num_rows)}
    for name, count in counts.items():
        start = 0
        for size in MERGED:
            while count - start >= size:
                part = ledger_rows(name, table.slice(start, size), moment + 1 + start)
                parquet_log.write(store, f"ledger/{name}-20260101T{start:012d}", part)
                start += size
                if objects:
                    touch(store, part)


def ledger_rows(name: tables.Table, candidates: pa.Table, at: int) -> pa.Table:
    """Rows with all columns filled."""
    count = candidates.num_rows
    ids = candidates["clip_id"].to_pylist()
    number = np.array([int(clip_id[:8], 16) / 16**8 * 100 for clip_id in ids])  # the same in both tables
    kept = number > 100 * (1 - RENDERED)
    schema = tables.SCHEMAS[name]
    if name == "previews":
        schema = tables.previews_schema(SCORES)
    out = [None if keep else f"motion > 75 (motion = {value:.4g})" for keep, value in zip(kept, number, strict=True)]
    known: dict[str, Any] = {
        "status": np.where(kept, "rendered" if name == "clips" else "previewed", "rejected"),
        "reason": out,
        "latents": [latents_key(clip_id) for clip_id in ids],
        "preview": [preview_key(clip_id) for clip_id in ids],
        "poster": [poster_key(preview_key(clip_id)) for clip_id in ids],
        "at": np.arange(at, at + count),
        "host": ["render-17"] * count,
        "device": ["NVIDIA L40S"] * count,
    }
    if name == "clips":
        known["clip"] = [clip_key(clip_id) if keep else None for clip_id, keep in zip(ids, kept, strict=True)]
        known["poster"] = [poster_key(clip) if clip else None for clip in known["clip"]]
        known["sha256"] = known["stream_sha256"] = [f"{int(value * 1e12):064x}" for value in number]
        known["stage"] = [None if keep else "score" for keep in kept]
        known["bytes"] = np.zeros(count, np.int64)
    columns = []
    for field in schema:
        if field.name in known:
            columns.append(pa.array(known[field.name]).cast(field.type))
        elif field.name in candidates.column_names:
            columns.append(candidates[field.name].cast(field.type))
        elif field.type == pa.float64():
            only_clips = field.name in ("refine_seconds", "publish_seconds")
            columns.append(pa.array(number, mask=~kept if only_clips else None))
        elif field.type == pa.int32():
            columns.append(pa.array(np.full(count, 49, np.int32)))
        else:
            columns.append(pa.nulls(count, field.type))
    return pa.table(columns, schema=schema)


def touch(store: Store, rows: pa.Table) -> None:
    """Empty files in a local folder."""
    for column in {"latents", "preview", "poster", "clip"} & {*rows.column_names}:
        for key in rows[column].drop_null().to_pylist():
            path = Path(store.path(key))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def nothing(store: Store, folder: Path) -> int:
    return 0


def read_all(store: Store, folder: Path) -> int:
    both = [tables.read(store, "previews"), tables.read(store, "clips")]
    return sum(table.num_rows for table in both)


def compact(store: Store, folder: Path) -> int:
    return sum(done.rows for done in tables.compact(store).values())


def status(store: Store, folder: Path) -> int:
    run = run_file.read_run(store)
    assert run is not None
    return sum(Standing.read(store, finish.settings_of(store, run), figures=True).counts(run["candidates"]).values())


def report(store: Store, folder: Path) -> int:
    run = run_file.read_run(store)
    assert run is not None
    return sum(finish.finish(store, finish.settings_of(store, run)).values())


def verify(store: Store, folder: Path) -> int:
    return verification.verify(store, decode=False).rows


class BegunError(Exception):
    """The first row has come through."""


class Nothing:
    """A stage."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        """As they come."""
        return batch


def _render(output: str, prompts_: Path, to_the_end: bool = False) -> int:
    handed_over = 0

    def graph(rows: pa.Table, store: Store, settings: Settings, *rest: Any) -> Any:
        nonlocal handed_over
        handed_over = rows.num_rows
        dataset = datasets.dataset_of(bundled(rows, "prompt"))
        dataset = dataset.map_batches(Nothing, **datasets.map_options(settings.pools.text))
        if to_the_end:
            return dataset.limit(0)
        next(iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow")))
        raise BegunError

    ray.cloudpickle.register_pickle_by_value(sys.modules[Nothing.__module__])
    pipeline.build_graph = graph  # type: ignore[assignment]
    with contextlib.suppress(BegunError):
        pipeline.render(str(prompts_), output, Settings.load("nano", SETTINGS))
    assert handed_over, "nothing was to do"
    return handed_over


def resume(store: Store, folder: Path) -> int:
    """`render` once more: from its start to the first row; what Ray takes to start is in it."""
    return _render(store.url, folder / PROMPTS)


def render(store: Store, folder: Path) -> int:
    """`render` on as many new prompts as the run has rows."""
    return _render(str(folder / "another"), folder / MORE)


def end(store: Store, folder: Path) -> int:
    """`render` once more, to its end, though nothing comes out of its graph."""
    return _render(store.url, folder / PROMPTS, to_the_end=True)


Step = Callable[[Store, Path], int]


def measured(step: Step, store: Store, folder: Path) -> dict[str, Any]:
    """Run a step in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure, args=(step, store, folder, queue))
    process.start()
    result = queue.get()
    process.join()
    return result


def _measure(step: Step, store: Store, folder: Path, queue: Any) -> None:
    cpu, wall, times = time.process_time(), time.perf_counter(), 1
    rows = step(store, folder)
    while step is read_all and time.process_time() - cpu < READING_SECONDS:
        rows, times = step(store, folder), times + 1
    queue.put(
        {
            "rows": rows,
            "cpu_seconds": (time.process_time() - cpu) / times,
            "wall_seconds": (time.perf_counter() - wall) / times,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    )


STEPS: dict[str, Step] = {
    "(starting Python)": nothing,
    "read, all columns": read_all,
    "status": status,
    "report": report,
    "verify --no-decode": verify,
    "render again, to the first row": resume,
    "render new prompts, to the first row": render,
    "render again, to its end": end,
    "compact": compact,
    "report, compacted": report,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--store", help="an empty folder or prefix; a temporary folder if not given")
    parser.add_argument("--objects", action="store_true", help="with the objects that rows name, in a local folder")
    parser.add_argument("--only", action="append", choices=STEPS, help="these steps")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(options.store or f"{folder}/run")
        if store.keys("ledger"):
            sys.exit(f"{store.url} has a ledger already")
        making = multiprocessing.get_context("spawn").Process(
            target=make, args=(store, Path(folder), options.rows, options.objects)
        )
        making.start()
        making.join()
        results: dict[str, dict[str, Any]] = {}
        print(f"{'':36} {'rows':>9} {'parts':>6} {'CPU s':>7} {'wall s':>7} {'peak MiB':>9}")
        for name, step in STEPS.items():
            if options.only and name not in options.only:
                continue
            before = len(store.keys("ledger"))
            results[name] = result = {**measured(step, store, Path(folder)), "parts": before}
            print(
                f"{name:36} {result['rows']:9} {before:6} {result['cpu_seconds']:7.1f} {result['wall_seconds']:7.1f} "
                f"{result['peak_mib']:9.0f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps({"rows": options.rows, "steps": results}, indent=2))


if __name__ == "__main__":
    main()
