"""The whole pipeline on a real Ray: prompts in, clips and a ledger out, whatever happens on the way."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from support import PROMPTS, tiny_overrides, write_prompts
from tiny import CLIP_SIZE, FPS, FRAMES, PREVIEW_SIZE

import flashvideo_ray
from flashvideo_ray import Settings, provenance, video
from flashvideo_ray.errors import InputError
from flashvideo_ray.ledger import run_file, tables
from flashvideo_ray.ledger.store import Store

pytestmark = pytest.mark.usefixtures("local_ray")


def rows(output: Path | str, table: tables.Table) -> list[dict[str, Any]]:
    return tables.read(Store(str(output)), table).to_pylist()


def test_prompts_become_clips(tmp_path: Path, tiny_model: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet", id=[*"abcdef"], mood=[*"uvwxyz"], seed=[*range(6)])
    output = tmp_path / "run"
    settings = Settings.load("nano", [*tiny_overrides(tiny_model), "select.require=black < 2"])
    result = flashvideo_ray.render(prompts, str(output), settings)

    assert result.ended == result.total == {"rendered": 6}
    assert result.exit_status == 0
    clips = {row["id"]: row for row in rows(output, "clips")}
    assert [clips[name]["prompt"] for name in "abcdef"] == PROMPTS
    assert [clips[name]["mood"] for name in "abcdef"] == [*"uvwxyz"]
    for row in clips.values():
        frames, info = video.decode_mp4(output / row["clip"])
        assert frames.shape == (FRAMES, *CLIP_SIZE, 3)
        assert (row["frames"], row["height"], row["width"], row["fps"]) == (FRAMES, *CLIP_SIZE, FPS)
        assert (info.fps, info.codec, info.pixel_format) == (FPS, "h264", "yuv420p")
        assert info.metadata["prompt"] == row["prompt"]
        assert info.metadata["seed"] == str(row["seed"])
        assert {"clip_id", "settings", "model_fingerprints"} <= set(info.metadata)
        assert info.metadata["digital_source_type"] == provenance.DIGITAL_SOURCE_TYPE
        assert row["bytes"] == (output / row["clip"]).stat().st_size
        assert row["sha256"] == hashlib.sha256((output / row["clip"]).read_bytes()).hexdigest()
        assert row["stream_sha256"] == video.stream_sha256(output / row["clip"])
        assert row["attempts"] == 1
        assert (output / row["poster"]).is_file()
    for row in rows(output, "previews"):
        frames, _ = video.decode_mp4(output / row["preview"])
        assert frames.shape == (FRAMES, *PREVIEW_SIZE, 3)
        assert row["score_motion"] >= 0
        assert row["preview_seconds"] > 0
        assert (output / row["latents"]).is_file()
    for name in ("run.json", "summary.json", "report.html"):
        assert (output / name).is_file()

    # The same command again renders nothing, and another recipe is refused.
    again = flashvideo_ray.render(prompts, str(output), settings)
    assert (again.ended, again.total) == ({}, {"rendered": 6})
    other = Settings.load("nano", [*tiny_overrides(tiny_model), "refine.noise_step=1"])
    with pytest.raises(run_file.RecipeError, match=r"refine\.noise_step"):
        flashvideo_ray.render(prompts, str(output), other)

    # A column that changes its type is refused before anything is rendered.
    numbers = write_prompts(tmp_path / "numbers.parquet", ["a red star"], mood=[1])
    with pytest.raises(InputError, match="column 'mood' holds int64, and held string"):
        flashvideo_ray.render(numbers, str(output), settings)
