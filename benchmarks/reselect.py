"""Decide anew on a large run, as `flashvideo-ray select` does: CPU seconds and what was written.

    python benchmarks/reselect.py [--rows 100000] [--candidates 4] [--json results.json]

Writes a run of so many previews, all judged, into an empty folder; then other rules are tried on it and written. The
time to read the ledger alone stands beside it.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from flashvideo_ray.graph import reselect
from flashvideo_ray.ledger import parquet_log, tables
from flashvideo_ray.ledger.keys import latents_key, preview_key
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.settings import Settings

SCORES = ("motion", "flicker", "sharpness", "exposure", "black", "frozen", "alignment", "hash")
RULES: list[tuple[str, dict[str, Any]]] = [
    ("two requirements", {"require": ["motion > 0.3 and black < 0.9", "flicker < 0.8"]}),
    ("best of each prompt", {"rank": "alignment + 0.1 * motion", "keep": 1}),
    ("and near-duplicates within the prompt", {"rank": "alignment", "keep": 2, "duplicates": 6}),
    ("upper half of the run", {"percentiles": {"alignment": 50}}),
    ("near-duplicates within the run", {"rank": "alignment", "duplicates": 3, "duplicates_within": "run"}),
]


def make(store: Store, rows: int, candidates: int) -> None:
    """A run whose previews all survived."""
    rng = np.random.default_rng(0)
    ids = [f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}{number:04x}"[:20] for number in range(rows)]
    schema = tables.extended(tables.PREVIEWS, [pa.field(f"score_{name}", pa.float64()) for name in SCORES])
    known: dict[str, Any] = {
        "clip_id": ids,
        "id": [f"prompt-{number // candidates}" for number in range(rows)],
        "prompt": ["a red circle moves slowly over the grey water"] * rows,
        "seed": np.arange(rows),
        "candidate": np.arange(rows) % candidates,
        "status": ["previewed"] * rows,
        "latents": [latents_key(clip_id) for clip_id in ids],
        "preview": [preview_key(clip_id) for clip_id in ids],
        "at": np.arange(rows) + 1_700_000_000_000,
        "score_hash": rng.integers(0, 2**48, rows).astype(float),
        **{f"score_{name}": rng.uniform(0, 1, rows) for name in SCORES if name != "hash"},
    }
    columns = [
        pa.array(known[field.name]).cast(field.type) if field.name in known else pa.nulls(rows, field.type)
        for field in schema
    ]
    parquet_log.write(store, "ledger/previews-20260101T0", pa.table(columns, schema=schema))
    run = {"recipe": {}, "settings": Settings().model_dump(mode="json"), "candidates": rows}
    store.put("run.json", json.dumps(run).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        make(store, args.rows, args.candidates)
        cpu = time.process_time()
        tables.read(store, "previews")
        print(f"{args.rows:,} previews, {args.candidates} of each prompt")
        print(f"reading them: {time.process_time() - cpu:.2f} CPU s")
        for name, rules in RULES:
            settings = Settings.model_validate({"select": rules})
            cpu = time.process_time()
            found = reselect.reselect(store, settings)
            seconds = time.process_time() - cpu
            changed = sum(found.changes.values())
            print(f"{name}: {seconds:.2f} CPU s, {found.survivors:,} survive, {changed:,} changed")
            results.append({"rules": rules, "cpu_seconds": seconds, "survivors": found.survivors, "changed": changed})
    if args.json:
        args.json.write_text(json.dumps({"rows": args.rows, "rules": results}, indent=2))


if __name__ == "__main__":
    main()
