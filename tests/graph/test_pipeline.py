"""The whole pipeline on a real Ray: prompts in, clips and a ledger out, whatever happens on the way."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import PROMPTS, own_ray, tiny_overrides, write_prompts
from tiny import CLIP_SIZE, FPS, FRAMES, PREVIEW_SIZE, save_model

import flashvideo_ray
from flashvideo_ray import Settings
from flashvideo_ray.errors import InputError
from flashvideo_ray.graph.job import RunResult
from flashvideo_ray.ledger import run_file, tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.media import provenance, video

# What the model does at these prompts: at which stage, how its row ends, after how many attempts.
FAULTS = {
    "a red star moves up": ("preview", "raise", "RuntimeError", "more than the network can take", 1),
    "a red star moves down": ("preview", "nan", "NonFiniteError", "stage 1 gave NaN", 1),
    "a green square moves up": ("refine", "raise", "RuntimeError", "more than the network can take", 1),
    "a green square moves down": ("refine", "nan", "NonFiniteError", "stage 2 gave NaN", 1),
    "a grey circle moves up": ("refine", "kill", "AttemptsError", "died once on this candidate", 2),
    "a grey circle moves down": ("preview", "hang", "TimeLimitError", "once over 10 s", 2),
}


@dataclass
class Run:
    """What one job made of prompts of which half fail, each in a way of its own."""

    prompts: str
    settings: list[str]
    output: Path
    result: RunResult

    def rows(self, table: tables.Table) -> dict[str, dict[str, Any]]:
        return {row["prompt"]: row for row in tables.read(Store(str(self.output)), table).to_pylist()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("pipeline")
    model = save_model(folder / "model", [(stage, fault, prompt) for prompt, (stage, fault, *_) in FAULTS.items()])
    texts = [*FAULTS, *PROMPTS]
    labels: dict[str, list[Any]] = {"id": [*"abcdefghijkl"], "mood": [*"opqrstuvwxyz"], "seed": [*range(12)]}
    prompts = write_prompts(folder / "prompts.parquet", texts, **labels)
    settings = [*tiny_overrides(model), "select.require=black < 2"]
    settings += ["max_attempts=1", "pools.preview.time_limit_seconds=10"]
    # One CPU: the preset's actors have their place on it, and what Ray Data runs between them asks for none.
    with own_ray(num_cpus=1, runtime_env={"worker_process_setup_hook": "faulty.known"}):
        result = flashvideo_ray.render(prompts, str(folder / "run"), Settings.load("nano", settings))
    return Run(prompts, settings, folder / "run", result)


def test_prompts_become_clips(run: Run) -> None:
    clips, previews = run.rows("clips"), run.rows("previews")
    for prompt, id_, mood, seed in zip(PROMPTS, "ghijkl", "uvwxyz", range(6, 12), strict=True):
        row = clips[prompt]
        frames, info = video.decode_mp4(run.output / row["clip"])
        assert frames.shape == (FRAMES, *CLIP_SIZE, 3)
        assert (row["id"], row["mood"], row["seed"]) == (id_, mood, seed)
        assert (row["frames"], row["height"], row["width"], row["fps"]) == (FRAMES, *CLIP_SIZE, FPS)
        assert (info.fps, info.codec, info.pixel_format) == (FPS, "h264", "yuv420p")
        assert info.metadata["prompt"] == prompt
        assert info.metadata["seed"] == str(seed)
        assert {"clip_id", "settings", "model_fingerprints"} <= set(info.metadata)
        assert info.metadata["digital_source_type"] == provenance.DIGITAL_SOURCE_TYPE
        assert row["sha256"] == hashlib.sha256((run.output / row["clip"]).read_bytes()).hexdigest()
        assert row["stream_sha256"] == video.stream_sha256(run.output / row["clip"])
        assert row["bytes"] == (run.output / row["clip"]).stat().st_size
        assert (row["status"], row["attempts"]) == ("rendered", 1)
        assert (run.output / row["poster"]).is_file()
        made = previews[prompt]
        frames, _ = video.decode_mp4(run.output / made["preview"])
        assert frames.shape == (FRAMES, *PREVIEW_SIZE, 3)
        assert made["score_motion"] >= 0
        assert made["preview_seconds"] > 0
        assert (run.output / made["latents"]).is_file()
    for name in ("run.json", "summary.json", "report.html"):
        assert (run.output / name).is_file()


def test_a_candidate_that_fails_takes_no_other_with_it(run: Run) -> None:
    assert run.result.ended == run.result.total == {"rendered": len(PROMPTS), "failed": len(FAULTS)}
    assert run.result.exit_status == 3
    clips = run.rows("clips")
    for prompt, (stage, _, error_class, message, attempts) in FAULTS.items():
        row = clips[prompt]
        assert (row["status"], row["stage"], row["error_class"]) == ("failed", stage, error_class)
        assert message in row["error"]
        assert row["attempts"] == attempts


def test_the_same_command_again_renders_nothing_and_another_recipe_is_refused(run: Run, tmp_path: Path) -> None:
    again = flashvideo_ray.render(run.prompts, str(run.output), Settings.load("nano", run.settings))
    assert (again.ended, again.total) == ({}, run.result.total)
    other = Settings.load("nano", [*run.settings, "refine.noise_step=1"])
    with pytest.raises(run_file.RecipeError, match=r"refine\.noise_step"):
        flashvideo_ray.render(run.prompts, str(run.output), other)
    # A column that changes its type is refused before anything is rendered.
    numbers = write_prompts(tmp_path / "numbers.parquet", ["a red star"], mood=[1])
    with pytest.raises(InputError, match="column 'mood' holds int64, and held string"):
        flashvideo_ray.render(numbers, str(run.output), Settings.load("nano", run.settings))
