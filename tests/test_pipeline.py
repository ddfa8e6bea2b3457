"""The whole pipeline on a real Ray: prompts in, clips and a ledger out, whatever happens on the way."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support import PROMPTS, tiny_overrides, write_prompts
from tiny import CLIP_SIZE, FPS, FRAMES, PREVIEW_SIZE

import flashvideo_ray
from flashvideo_ray import Settings, ledger, video
from flashvideo_ray.errors import InputError
from flashvideo_ray.storage import Store

pytestmark = pytest.mark.usefixtures("local_ray")


def rows(output: Path | str, table: ledger.Table) -> list[dict[str, Any]]:
    return ledger.read(Store(str(output)), table).to_pylist()


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
        assert row["bytes"] == (output / row["clip"]).stat().st_size
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
    with pytest.raises(ledger.RecipeError, match=r"refine\.noise_step"):
        flashvideo_ray.render(prompts, str(output), other)


def test_preview_and_refine_apart_equal_a_straight_render(tmp_path: Path, tiny_model: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:3])
    settings = Settings.load("nano", tiny_overrides(tiny_model))
    straight, apart = tmp_path / "straight", tmp_path / "apart"
    flashvideo_ray.render(prompts, str(straight), settings)

    first = flashvideo_ray.preview(prompts, str(apart), settings)
    assert (first.ended, first.total) == ({"previewed": 3}, {"previewed": 3})
    assert rows(apart, "clips") == []
    # Other rows a call and another order of work change nothing about a clip.
    second = flashvideo_ray.refine(
        str(apart), Settings.load("nano", [*tiny_overrides(tiny_model), "pools.refine.batch_size=3"])
    )
    assert (second.ended, second.total) == ({"rendered": 3}, {"rendered": 3})
    ids = sorted(row["clip_id"] for row in rows(straight, "clips"))
    assert sorted(row["clip_id"] for row in rows(apart, "clips")) == ids
    for clip_id in ids:
        for key in (ledger.latents_key(clip_id), ledger.clip_key(clip_id)):
            assert (straight / key).read_bytes() == (apart / key).read_bytes()


def test_rejected_candidates_end_in_the_ledger_and_are_not_refined(tmp_path: Path, tiny_model: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:2])
    settings = Settings.load("nano", [*tiny_overrides(tiny_model), "candidates=2", "select.require=motion > 1e6"])
    result = flashvideo_ray.render(prompts, str(tmp_path / "run"), settings)
    assert result.ended == {"rejected": 4}
    assert result.exit_status == 0
    for row in rows(tmp_path / "run", "clips"):
        assert row["reason"].startswith("motion > 1e6 (motion = ")
        assert (row["stage"], row["clip"]) == ("score", None)
    assert not (tmp_path / "run" / "clips").exists()
    assert Counter(row["status"] for row in rows(tmp_path / "run", "previews")) == {"rejected": 4}


def test_another_rule_decides_anew_on_previews_that_have_not_ended(tmp_path: Path, tiny_model: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:2])
    settings = Settings.load("nano", tiny_overrides(tiny_model))
    flashvideo_ray.preview(prompts, str(tmp_path / "run"), settings)
    motions = sorted(row["score_motion"] for row in rows(tmp_path / "run", "previews"))
    rule = f"select.require=motion > {sum(motions) / 2}"
    result = flashvideo_ray.refine(str(tmp_path / "run"), Settings.load("nano", [*tiny_overrides(tiny_model), rule]))
    assert result.ended == {"rendered": 1, "rejected": 1}
    run = ledger.read_run(Store(str(tmp_path / "run")))
    assert run is not None
    assert run["settings"]["select"]["require"] == [rule.removeprefix("select.require=")]  # as the last job had them
    [rejected] = [row for row in rows(tmp_path / "run", "clips") if row["status"] == "rejected"]
    assert rejected["reason"].startswith("motion > ")
    assert rejected["stage"] == "score"


def test_a_column_that_changes_its_type_is_refused_before_anything_is_rendered(
    tmp_path: Path, tiny_model: Path
) -> None:
    settings = Settings.load("nano", tiny_overrides(tiny_model))
    flashvideo_ray.preview(write_prompts(tmp_path / "a.parquet", PROMPTS[:1], tag=[1]), str(tmp_path / "run"), settings)
    with pytest.raises(InputError, match="column 'tag' holds string, and held int64"):
        flashvideo_ray.render(
            write_prompts(tmp_path / "b.parquet", PROMPTS[:2], tag=["1", "2"]), str(tmp_path / "run"), settings
        )


def test_a_lost_preview_object_fails_its_candidate_only(tmp_path: Path, tiny_model: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:3])
    settings = Settings.load("nano", tiny_overrides(tiny_model))
    flashvideo_ray.preview(prompts, str(tmp_path / "run"), settings)
    lost = rows(tmp_path / "run", "previews")[0]
    (tmp_path / "run" / lost["latents"]).unlink()
    result = flashvideo_ray.refine(str(tmp_path / "run"))
    assert result.ended == {"rendered": 2, "failed": 1}
    [failed] = [row for row in rows(tmp_path / "run", "clips") if row["status"] == "failed"]
    assert (failed["clip_id"], failed["error_class"]) == (lost["clip_id"], "FileNotFoundError")
