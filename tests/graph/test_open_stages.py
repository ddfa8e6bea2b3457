"""Stages of other models: their previews through the whole graph, and what is handed over between two of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from support import PROMPTS, script, short_lease, write_prompts

import flashvideo_ray
from flashvideo_ray import Settings
from flashvideo_ray.graph import checks, handover
from flashvideo_ray.graph.recipe import about, recipe_of
from flashvideo_ray.graph.refine_from import branch
from flashvideo_ray.ledger import parquet_log, run_file, tables
from flashvideo_ray.ledger.keys import frames_key, latents_key
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.verify import verify
from flashvideo_ray.media import video
from flashvideo_ray.settings import SettingsError

Folders = Callable[[str], Path]


def load(folder: Path, *overrides: str, refine: str = "nano") -> Settings:
    small = ["height=32", "width=64", "num_frames=9", "num_inference_steps=2", "call.max_sequence_length=16"]
    clip = ["refine.height=48", "refine.width=96", "refine.num_inference_steps=2"] if refine == "nano" else []
    own = [f"preview.model={folder}", *(f"preview.{each}" for each in small), f"refine.model={refine}", *clip]
    return Settings.load("nano", [*own, "ledger.flush_seconds=0.5", *overrides])


def rows(output: Path, table: tables.Table) -> list[dict[str, Any]]:
    return tables.read(Store(str(output)), table).to_pylist()


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize(("family", "fps"), [("wan", 16), ("ltx", 25), ("cogvideo", 8), ("hunyuan_video", 24)])
def test_previews_of_another_family_are_scored_and_refined(
    family: str, fps: int, tmp_path: Path, pipelines: Folders
) -> None:
    prompts, output = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:1]), tmp_path / "run"
    assert flashvideo_ray.render(prompts, str(output), load(pipelines(family))).total == {"rendered": 1}
    for preview, clip in zip(rows(output, "previews"), rows(output, "clips"), strict=True):
        assert preview["score_motion"] is not None
        # Stage 2 works in other latents: the preview's frames are kept, and not one of their pixels is lost.
        assert preview["latents"] == frames_key(preview["clip_id"])
        _, kept = video.decode_lossless((output / preview["latents"]).read_bytes())
        assert (kept.codec, kept.frames, kept.height, kept.width) == ("ffv1", 9, 32, 64)
        assert (clip["frames"], clip["height"], clip["width"], clip["fps"]) == (9, 48, 96, fps)
    assert not verify(Store(str(output)), decode=True).findings


@pytest.mark.usefixtures("inline")
def test_without_a_refiner_the_preview_encoded_as_asked_is_the_clip(tmp_path: Path, pipelines: Folders) -> None:
    prompts, output = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:2]), tmp_path / "run"
    rules = ["candidates=2", "select.rank=motion", "select.keep=1", "video.clip_crf=0"]
    settings = load(pipelines("wan"), *rules, refine="none")
    assert flashvideo_ray.render(prompts, str(output), settings).total == {"rendered": 2, "rejected": 2}
    by_id = {row["clip_id"]: row for row in rows(output, "previews")}
    for clip in rows(output, "clips"):
        if clip["status"] == "rendered":
            drawn = handover.unpacked((output / by_id[clip["clip_id"]]["latents"]).read_bytes())
            shown, info = video.decode_mp4(output / clip["clip"])
            assert (info.height, info.width, info.frames, info.fps) == (32, 64, 9, 16)
            assert isinstance(drawn, np.ndarray)
            assert np.abs(drawn.astype(int) - shown).mean() < 4  # what yuv420p takes of it
    # The nano model's previews go the same way.
    plain = Settings.load("nano", ["refine.model=none"])
    assert flashvideo_ray.render(prompts, str(tmp_path / "nano"), plain).total == {"rendered": 2}
    assert {clip["height"] for clip in rows(tmp_path / "nano", "clips")} == {48}


@pytest.mark.usefixtures("inline")
def test_frames_that_were_stored_before_a_kill_are_adopted_and_damaged_ones_drawn_anew(
    tmp_path: Path, pipelines: Folders
) -> None:
    prompts, output = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:3]), tmp_path / "run"
    settings = load(pipelines("ltx"), refine="none")
    flashvideo_ray.render(prompts, str(output), settings)
    before = {path: path.read_bytes() for path in output.glob("*/*/*.m*")}
    shutil.rmtree(output / "ledger")
    _, damaged, gone = sorted(output.glob("latents/*/*.mkv"))
    damaged.write_bytes(before[damaged][:-200])
    gone.unlink()
    assert flashvideo_ray.render(prompts, str(output), settings).total == {"rendered": 3}
    paid = {row["latents"] for row in rows(output, "previews") if row["preview_seconds"] is not None}
    assert paid == {str(path.relative_to(output)) for path in (damaged, gone)}
    assert {path: path.read_bytes() for path in output.glob("*/*/*.m*")} == before


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize(("family", "size"), [("cogvideo", (48, 64)), ("ltx", (64, 96))])
def test_any_video_to_video_pipeline_refines(
    family: str, size: tuple[int, int], tmp_path: Path, pipelines: Folders
) -> None:
    prompts, output = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:2]), tmp_path / "run"
    own = [f"height={size[0]}", f"width={size[1]}", "num_inference_steps=4", "call.max_sequence_length=16"]
    own += ["call.strength=0.5", f"model={pipelines(family)}"]
    settings = Settings.load("nano", [f"refine.{each}" for each in own])
    assert flashvideo_ray.render(prompts, str(output), settings).total == {"rendered": 2}
    clips = rows(output, "clips")
    assert {(clip["frames"], clip["height"], clip["width"]) for clip in clips} == {(9, *size)}
    first = {clip["prompt"]: clip["stream_sha256"] for clip in clips}
    assert len({*first.values()}) == 2
    # The same previews, refined once more by stage 2 alone, are the same clips.
    again = tmp_path / "again"
    shutil.copytree(output, again)
    for path in (*again.glob("clips/*/*"), *again.glob("ledger/clips-*")):
        path.unlink()
    assert flashvideo_ray.refine(str(again), settings).total == {"rendered": 2}
    assert {clip["prompt"]: clip["stream_sha256"] for clip in rows(again, "clips")} == first


@pytest.mark.long
@pytest.mark.usefixtures("no_ray")
def test_a_killed_job_is_carried_on_with_what_it_had_paid_for(tmp_path: Path, pipelines: Folders) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet", [f"a red circle moves left {n}" for n in range(8)])
    output, config = tmp_path / "run", tmp_path / "run.yaml"
    settings = load(pipelines("wan"), "preview.num_inference_steps=8", *short_lease(2))
    config.write_text(json.dumps(settings.model_dump(mode="json")))
    command = [script("flashvideo-ray"), "render", prompts, str(output), "-c", str(config)]
    with open(tmp_path / "first.log", "wb") as log:
        job = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 300
    while len([*output.glob("latents/*/*.mkv")]) < 3:
        assert time.monotonic() < deadline
        assert job.poll() is None, (tmp_path / "first.log").read_text()
        time.sleep(0.1)
    started = psutil.Process(job.pid).children(recursive=True)
    for process in (psutil.Process(job.pid), *started):  # the job and its Ray
        with suppress(psutil.NoSuchProcess):
            process.kill()
    job.wait()
    stored = {path: path.stat().st_mtime_ns for path in output.glob("latents/*/*.mkv")}
    assert 3 <= len(stored) <= 8

    assert flashvideo_ray.render(prompts, str(output), settings).total == {"rendered": 8}
    assert {path: path.stat().st_mtime_ns for path in stored} == stored
    assert not verify(Store(str(output)), decode=True).findings


def test_latents_of_a_run_are_not_brought_to_a_stage_2_that_takes_frames(tmp_path: Path) -> None:
    old, settings = Store(str(tmp_path / "old")), checks.check(Settings.load("nano"))
    run_file.open_run(old, recipe_of(settings), about(settings, 1))
    row = {"clip_id": "a", "id": "a", "prompt": PROMPTS[0], "seed": 1, "candidate": 0, "status": "previewed"}
    row |= {"latents": latents_key("a"), "at": tables.now()}
    parquet_log.write(old, tables.stem("previews"), pa.Table.from_pylist([row], schema=tables.PREVIEWS))
    other = checks.check(Settings.load("nano", ["refine.model=none"]))
    with pytest.raises(
        SettingsError, match=r"refine\.model: none takes frames, and .*old has kept latents of 1 previews"
    ):
        branch(old, Store(str(tmp_path / "new")), other)
    assert not (tmp_path / "new").exists()


def test_previews_that_stage_2_cannot_take_are_refused_before_anything_starts(
    tmp_path: Path, pipelines: Folders, tiny_model: Path
) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:1])
    settings = load(pipelines("wan"), "preview.num_frames=13", refine=str(tiny_model))
    with pytest.raises(SettingsError, match=r"cannot refine .* a video of 13 frames cannot be decoded; 8k \+ 1 can"):
        flashvideo_ray.render(prompts, str(tmp_path / "run"), settings)
    for override, why in (
        ("preview.height=128", "128x64 is larger than the clip of 48x96"),
        ("preview.width=32", "32x32 would be stretched to the clip's 48x96"),
    ):
        with pytest.raises(SettingsError, match=f"refine.model: nano cannot refine what .* makes: {why}"):
            flashvideo_ray.render(prompts, str(tmp_path / "run"), load(pipelines("wan"), override))
    with pytest.raises(SettingsError, match=r"refine.noise_step: there is no stage 2 \(refine.model: none\)"):
        flashvideo_ray.render(
            prompts, str(tmp_path / "run"), load(pipelines("wan"), "refine.noise_step=9", refine="none")
        )
    assert not (tmp_path / "run").exists()
