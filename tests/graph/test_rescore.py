"""Which scorers a run has: each once, whatever it is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from flashvideo_ray import Settings
from flashvideo_ray.graph import checks, rescore
from flashvideo_ray.graph.recipe import about, recipe_of
from flashvideo_ray.ledger import run_file
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.media import video
from flashvideo_ray.settings import ScorerSettings, SettingsError

MOTION, PHASH = "flashvideo_ray.scorers.motion.Motion", "flashvideo_ray.scorers.phash.PHash"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A run without previews: there is nothing to measure, and no Ray is started."""
    store = Store(str(tmp_path / "run"))
    settings = checks.check(Settings.load("nano"))
    run_file.open_run(store, recipe_of(settings), about(settings, 0))
    return store


def settings_of(store: Store) -> Settings:
    run = run_file.read_run(store)
    assert run is not None
    return Settings.of_tree(run["settings"], where="run.json")


def names(store: Store) -> list[str]:
    return [spec.name for spec in settings_of(store).score.scorers]


def add(store: Store, *specs: str | tuple[str, dict[str, Any]]) -> int:
    asked = [ScorerSettings(name=s) if isinstance(s, str) else ScorerSettings(name=s[0], options=s[1]) for s in specs]
    return rescore.rescore(store.url, asked, settings_of(store))


def is_usable(store: Store) -> bool:
    """Whether the next job, with the settings of the run, is let work on it."""
    settings = checks.check(settings_of(store))
    return run_file.check_recipe(store, recipe_of(settings)) is not None


def test_a_scorer_is_there_once_whatever_it_is_called(store: Store) -> None:
    before = names(store)
    add(store, MOTION, "motion")
    assert names(store) == before
    add(store, "phash", PHASH, "phash")
    assert names(store) == [*before, "phash"]
    assert is_usable(store)


def test_a_scorer_is_there_with_one_set_of_options(store: Store) -> None:
    before = Path(store.path("run.json")).read_bytes()
    for specs in ([(MOTION, {"fps": 4})], [("clip", {}), ("flashvideo_ray.scorers.clip.Clip", {"model": "other"})]):
        with pytest.raises(rescore.ScorerError, match="one run has one of each"):
            add(store, *specs)
    with pytest.raises(SettingsError, match="unknown scorer"):
        add(store, "phash", "beauty")
    assert Path(store.path("run.json")).read_bytes() == before


def test_a_run_that_has_a_scorer_twice_is_usable_again(store: Store) -> None:
    run = json.loads(store.get("run.json"))
    for part in ("settings", "recipe"):
        run[part]["score"]["scorers"] += [{"name": MOTION, "options": {}, "pool": "score"}]
    store.put("run.json", json.dumps(run).encode())
    assert names(store).count("motion") == 1
    assert MOTION not in names(store)
    assert is_usable(store)


class Blinks:
    """Gives no number for what it finds nothing of."""

    names = ("blinks", "winks")

    def __call__(self, frames: np.ndarray, prompt: str) -> dict[str, float]:
        return {"blinks": 1.0}


class Nothing:
    names = ("nothing",)

    def __call__(self, frames: np.ndarray, prompt: str) -> dict[str, float]:
        return {"nothing": float("nan")}


def test_what_went_wrong_is_told_as_in_a_run_and_costs_no_other_score(store: Store) -> None:
    store.put("a.mp4", video.encode_mp4(np.zeros((9, 48, 64, 3), np.uint8), 8))
    specs = [ScorerSettings(name=name) for name in (f"{__name__}.Blinks", f"{__name__}.Nothing", "sharpness")]
    rows = pa.table({"clip_id": ["a"], "prompt": [""], "preview": ["a.mp4"]})
    [row] = rescore.Rescore(specs, store, 8.0)(rows).to_pylist()
    assert row["score_blinks"] is row["score_winks"] is None
    assert row["scorer_errors"].split("; ") == [
        f"{__name__}.Blinks: KeyError: 'winks'",
        f"{__name__}.Nothing: nothing is not finite",
    ]
    assert row["score_sharpness"] == 0
