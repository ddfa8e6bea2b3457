"""A run that the tests of exports share: a hundred clips, best of four, some decided by people; no model is loaded.

Media and rows are written as a job writes them: candidates by `identity`, decisions by the real rules and by people,
rows by the ledger's `Writer`, videos by `encode_mp4`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import guides
import numpy as np
import pyarrow as pa

from flashvideo_ray import identity
from flashvideo_ray.graph import recipe, remaining
from flashvideo_ray.graph.stage_base import row_schema
from flashvideo_ray.ledger import decisions, run_file, tables
from flashvideo_ray.ledger.decisions import Decision
from flashvideo_ray.ledger.keys import clip_key, preview_key
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.writer import Writer
from flashvideo_ray.media import video
from flashvideo_ray.settings import LedgerSettings, Settings

CLIPS, SIBLINGS, FPS = 100, 4, 8.0
DECIDED = 10  # prompts whose best candidate a person rejected, and whose second best one was approved
REFUSED = (CLIPS, CLIPS + 1)  # prompts all of whose candidates are black
BROKEN = CLIPS + 2  # the prompt whose best candidate failed in stage 2, and whose third has no score
PROMPTS = CLIPS + 3
SETTINGS = ("select.rank=alignment", "select.keep=1", "select.require=black < 0.5", "candidates=4")
_SCORES = [pa.field(f"score_{name}", pa.float64()) for name in ("alignment", "motion", "black")]
_OWN = [pa.field("title", pa.string()), pa.field("tags", pa.list_(pa.string()))]


def build(store: Store) -> None:
    """The run, with `CLIPS` rendered clips."""
    settings = Settings.load("nano", list(SETTINGS))
    run_file.open_run(store, recipe.recipe_of(settings), recipe.about(settings, PROMPTS * SIBLINGS))
    _add(store, settings, range(PROMPTS))


def grow(store: Store, more: int = 20) -> None:
    """So many further prompts, and as many clips."""
    _add(store, Settings.load("nano", list(SETTINGS)), range(1000, 1000 + more))


def docs_module(name: str, dataset: Path) -> ModuleType:
    """A block of code of docs/datasets.md, by the comment on its first line, as a module of its own."""
    code = guides.block("docs/datasets.md", f"# {name}:")
    file = Path(tempfile.mkdtemp(dir=dataset.parent)) / f"{name.replace('-', '_')}.py"
    file.write_text(f"DATASET = {str(dataset)!r}\n{code}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _add(store: Store, settings: Settings, numbers: range) -> None:
    made = recipe.recipe_of(settings)
    prompts = pa.table(
        {
            "id": [f"p{number:04d}" for number in numbers],
            "prompt": [f"shot {number}: a red star moves left over the sea" for number in numbers],
            "negative_prompt": pa.array(["grey" if number % 2 else None for number in numbers], pa.string()),
            "seed": pa.array([number * 10 for number in numbers], pa.int64()),
            "title": [f"Star {number}" for number in numbers],
            "tags": [["star", f"n{number % 3}"] for number in numbers],
        }
    )
    fingerprint = made["fingerprints"]["preview"]
    rows = identity.candidates(prompts, SIBLINGS, settings.stage1_recipe(), fingerprint).to_pylist()
    previews = [{**row, **_preview(store, row)} for row in rows]
    best = [
        sorted(previews[i : i + SIBLINGS], key=lambda row: -row["score_alignment"])
        for i in range(0, len(previews), SIBLINGS)
    ]
    broken = next((group for group in best if group[0]["id"] == f"p{BROKEN:04d}"), None)
    if broken:
        broken[2]["score_alignment"] = None
    schema = tables.extended(tables.PREVIEWS, [*_OWN, *_SCORES])
    table = pa.Table.from_pylist([{**row, "at": tables.now()} for row in previews], schema=schema)
    people = [
        Decision(row["clip_id"], word, who)
        for group in best
        if int(group[0]["id"][1:]) < DECIDED
        for row, word, who in ((group[0], "rejected", "ann"), (group[1], "approved", "bob"))
    ]
    decisions.write(store, people)  # type: ignore[arg-type]
    judged = remaining.judged(table, settings, decisions.opinions(store)).select(schema.names)
    Writer(store, "previews", schema, LedgerSettings()).write(judged)
    work = remaining.next_work(store, None, row_schema(_OWN + _SCORES), settings)
    schema = tables.extended(tables.CLIPS, _OWN)
    writer = Writer(store, "clips", schema, LedgerSettings(flush_rows=10_000))
    writer.write(work.decided)
    for row in work.rows.to_pylist():
        ended = _failure(row) if broken and row["clip_id"] == broken[0]["clip_id"] else _clip(store, row)
        writer.append({**row, "reason": None, **ended})
    writer.flush()


def _preview(store: Store, row: dict[str, Any]) -> dict[str, Any]:
    random, number = _random(row["clip_id"]), int(row["id"][1:])
    key = preview_key(row["clip_id"])
    store.put(key, video.encode_mp4(_frames(row["clip_id"], 3, 32, 48), FPS, preset="ultrafast"))
    return {
        "status": "previewed",
        "preview": key,
        "latents": f"latents/{row['clip_id']}.safetensors",
        "preview_seconds": 0.5,
        "device": "cpu: test",
        "score_alignment": float(random.random()),
        "score_motion": float(random.random() * 10),
        "score_black": 1.0 if number in REFUSED else 0.0,
    }


def _clip(store: Store, row: dict[str, Any]) -> dict[str, Any]:
    frames = _frames(row["clip_id"], 5, 64, 96)
    mp4, key = video.encode_mp4(frames, FPS, preset="ultrafast"), clip_key(row["clip_id"])
    store.put(key, mp4)
    about = {"frames": 5, "height": 64, "width": 96, "fps": FPS, "bytes": len(mp4)}
    digest = hashlib.sha256(mp4).hexdigest()
    return {"status": "rendered", "clip": key, "sha256": digest, "refine_seconds": 1.0, "device": "cpu: test", **about}


def _failure(row: dict[str, Any]) -> dict[str, Any]:
    return {"status": "failed", "stage": "refine", "error_class": "ValueError", "error": "tried", "attempts": 2}


def _frames(clip_id: str, frames: int, height: int, width: int) -> np.ndarray:
    """Pictures that are those of one candidate alone."""
    coarse = _random(clip_id).integers(0, 256, (frames, height // 16, width // 16, 3), np.uint8)
    return coarse.repeat(16, 1).repeat(16, 2)


def _random(clip_id: str) -> np.random.Generator:
    return np.random.default_rng(int(clip_id[:12], 16))
