"""A run that was rendered once, used again: other rules, more scores, another stage 2, less space."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from inline import stages_inline
from support import PROMPTS, tiny_overrides, write_prompts
from typer.testing import CliRunner

import flashvideo_ray
from flashvideo_ray import Settings
from flashvideo_ray.cli import app
from flashvideo_ray.cli.runs import run_settings
from flashvideo_ray.graph import refine_from, rescore
from flashvideo_ray.ledger import jobs, tables
from flashvideo_ray.ledger.keys import latents_key
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.verify import verify
from flashvideo_ray.settings import ScorerSettings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, local_ray: None) -> Path:
    """Three prompts, two candidates each, of which the better one was rendered. Tests go on where the one before ended."""  # noqa: E501
    folder = tmp_path_factory.mktemp("reselect")
    settings = Settings.load("nano", [*tiny_overrides(tiny_model), *BEST_OF_TWO])
    with stages_inline():
        flashvideo_ray.render(write_prompts(folder / "prompts.parquet", PROMPTS[:3]), str(folder / "run"), settings)
    return folder / "run"


BEST_OF_TWO = ["candidates=2", "select.rank=motion", "select.keep=1"]


def rows(output: Path, table: tables.Table) -> dict[str, dict[str, Any]]:
    return {row["clip_id"]: row for row in tables.read(Store(str(output)), table).to_pylist()}


def command(*arguments: str, input: str | None = None) -> str:
    result = CliRunner().invoke(app, [*arguments], input=input)
    assert result.exit_code == 0, result.output
    return result.output


def test_other_rules_are_tried_without_changing_anything(run: Path) -> None:
    before = rows(run, "previews")
    shown = command("select", str(run), "--keep", "2", "--dry-run")
    assert "6 of 6 previews survive" in shown
    assert "refine would render 3 clips, about" in shown
    assert rows(run, "previews") == before


@pytest.mark.usefixtures("inline")
def test_other_rules_are_written_and_only_what_they_admit_is_refined(run: Path) -> None:
    rendered = {name: row["at"] for name, row in rows(run, "clips").items() if row["status"] == "rendered"}
    motions = sorted(row["score_motion"] for row in rows(run, "previews").values())
    rule = f"motion < {motions[-2] * 1.0001}"  # all but the best of all
    shown = command("select", str(run), "--keep", "2", "--require", rule)
    assert "5 of 6 previews survive" in shown
    assert "1 clips that these rules would reject are rendered already" in shown
    previews = rows(run, "previews")
    assert sorted(row["status"] for row in previews.values()) == ["previewed"] * 5 + ["rejected"]

    result = flashvideo_ray.refine(str(run))
    assert result.ended == {"rendered": 3}
    assert {name: row["at"] for name, row in rows(run, "clips").items() if name in rendered} == rendered


def test_scores_that_were_measured_before_the_command_was_cut_short_are_kept(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a large model, over night."""
    measured, done = rescore._scored, list[int]()

    def cut_short(some: pa.Table, *rest: Any) -> Any:
        done.append(some.num_rows)
        if len(done) == 2:
            raise KeyboardInterrupt
        return measured(some, *rest)

    settings = run_settings(str(run), None, [])
    monkeypatch.setattr(rescore, "_DURABLE", 4)
    monkeypatch.setattr(rescore, "_scored", cut_short)
    with pytest.raises(KeyboardInterrupt):
        rescore.rescore(str(run), [ScorerSettings(name="phash")], settings)
    monkeypatch.setattr(rescore, "_scored", measured)
    assert sum(row["score_hash"] is not None for row in rows(run, "previews").values()) == 4
    assert "2 previews got phash." in command("score", str(run), "--with", "phash")
    assert all(0 <= row["score_hash"] < 2**48 for row in rows(run, "previews").values())


def test_more_scores_for_previews_that_are_there(run: Path) -> None:
    shown = command("score", str(run), "--with", "phash", "--with", "clip")
    assert "6 previews got phash, clip." in shown
    for row in rows(run, "previews").values():
        assert 0 <= row["score_hash"] < 2**48
        assert -1 <= row["score_alignment"] <= 1
        assert row["scorer_errors"] is None
    assert "0 previews got phash." in command("score", str(run), "--with", "phash")
    assert "previews survive" in command("select", str(run), "--rank", "alignment", "--keep", "1", "--dry-run")


@pytest.mark.usefixtures("inline")
def test_another_stage_2_over_the_same_previews(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    command("refine", str(other), "--from", str(run), "--set", "refine.noise_step=30", "--set", "select.require=[]")
    before, after = rows(run, "clips"), rows(other, "clips")
    assert set(after) == set(before)
    for clip_id, row in after.items():
        assert row["status"] == "rendered"
        assert (run / latents_key(clip_id)).read_bytes() == (other / latents_key(clip_id)).read_bytes()
        assert row["sha256"] != before[clip_id]["sha256"]
    assert all(row["preview_seconds"] is None for row in rows(other, "previews").values())
    assert verify(Store(str(other))).problems == []

    refused = CliRunner().invoke(app, ["refine", str(tmp_path / "no"), "--from", str(run), "--set", "preview.width=32"])
    assert refused.exit_code == 2
    assert not (tmp_path / "no").exists()


def test_a_copy_that_was_cut_short_goes_on_from_there(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a hundred thousand previews, copied for hours."""
    old, new, settings = Store(str(run)), Store(str(tmp_path / "run")), run_settings(str(run), None, [])
    monkeypatch.setattr(refine_from, "_AT_ONCE", 2)

    def progress(done: int, total: int) -> None:
        assert total == 18  # of six previews
        if done > 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refine_from.branch(old, new, settings, progress=progress)
    there = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("previews/*/*")}
    assert len(rows(tmp_path / "run", "previews")) == 4
    assert refine_from.branch(old, new, settings) == 2
    assert sum(path.stat().st_mtime_ns == at for path, at in there.items()) >= 4
    assert rows(tmp_path / "run", "previews").keys() == rows(run, "previews").keys()
    assert verify(new).problems == []


def test_what_is_not_needed_any_more_is_removed_when_one_says_so(run: Path) -> None:
    latents = sorted(run.glob("latents/*/*.safetensors"))
    assert "6 objects of 6 candidates" in command("prune", str(run), input="n\n")
    assert sorted(run.glob("latents/*/*.safetensors")) == latents
    command("prune", str(run), "--yes")
    assert not list(run.glob("latents/*/*.safetensors"))
    assert all(row["latents"] is None and row["preview"] for row in rows(run, "previews").values())
    assert verify(Store(str(run))).problems == []
    assert "Nothing to remove." in command("prune", str(run), "--yes")


@pytest.mark.usefixtures("local_ray")
def test_what_cannot_be_refined_for_want_of_latents_is_rendered_by_the_command_that_began_the_run(
    tmp_path: Path, tiny_model: Path
) -> None:
    """Three are rendered and three not when the latents go. The command need not know of scores that were added."""
    run, prompts = tmp_path / "run", write_prompts(tmp_path / "prompts.parquet", PROMPTS[:3])
    settings = [*tiny_overrides(tiny_model), *BEST_OF_TWO]
    with stages_inline():
        flashvideo_ray.render(prompts, str(run), Settings.load("nano", settings))
    command("score", str(run), "--with", "phash")
    command("prune", str(run), "--yes")
    command("select", str(run), "--keep", "2")
    shown = command("refine", str(run))
    assert "3 candidates are wanted whose latents were removed: `flashvideo-ray render PROMPTS" in shown
    assert "Nothing to do" not in shown
    with stages_inline():
        result = flashvideo_ray.render(prompts, str(run), Settings.load("nano", [*settings, "select.keep=2"]))
    assert result.ended == {"rendered": 3}
    assert all(row["score_hash"] is not None for row in rows(run, "previews").values())
    kept = jobs.read(Store(str(run)))
    assert {row["status"] for row in kept} == {"ended"}
    assert kept[-1]["preview_busy_seconds"] > 0
    assert json.loads(kept[-1]["run"]) == json.loads((run / "run.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    assert summary["wall_seconds"] == pytest.approx(sum(row["seconds"] for row in kept))
