"""Selection in a run: candidates judged together, more drawn, enough accepted, people and audits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support import PROMPTS, tiny_overrides, write_prompts

import flashvideo_ray
from flashvideo_ray import Settings
from flashvideo_ray.graph.quota import Quota, QuotaError
from flashvideo_ray.ledger import decisions, run_file, tables
from flashvideo_ray.ledger.decisions import Decision
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.verify import verify
from flashvideo_ray.prompts import PromptError


def rows(output: Path, table: tables.Table) -> list[dict[str, Any]]:
    return tables.read(Store(str(output)), table).to_pylist()


def load(model: Path, *overrides: str) -> Settings:
    return Settings.load("nano", [*tiny_overrides(model), *overrides])


@pytest.mark.usefixtures("inline")
def test_the_best_candidate_of_each_prompt_is_refined(tmp_path: Path, tiny_model: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:3], id=[*"abc"])
    output = tmp_path / "run"
    best = ["candidates=3", "select.rank=motion"]
    result = flashvideo_ray.render(prompts, str(output), load(tiny_model, *best, "select.keep=1", "select.audit=0.5"))

    assert result.ended == {"rendered": 3, "rejected": 6}
    previews, clips = rows(output, "previews"), rows(output, "clips")
    assert sum(row["text_seconds"] is not None for row in previews) == 3  # each text once
    for prompt in "abc":
        motions = {row["clip_id"]: row["score_motion"] for row in previews if row["id"] == prompt}
        [rendered] = [row["clip_id"] for row in clips if row["id"] == prompt and row["status"] == "rendered"]
        assert rendered == max(motions, key=motions.__getitem__)
        assert all(row["rank"] == row["score_motion"] for row in previews)
    rejected = [row for row in clips if row["status"] == "rejected"]
    assert all(row["reason"].startswith("not among the best 1 of its prompt by motion (") for row in rejected)
    # Some of the rejected are refined all the same, to be looked at; they stay rejected.
    audited = [row for row in rejected if row["audit"]]
    assert 0 < len(audited) < 6
    assert all((row["clip"] is not None) == bool(row["audit"]) for row in rejected)

    # Another rule admits more, and only those are refined; what was audited is there already.
    result = flashvideo_ray.refine(str(output), load(tiny_model, *best, "select.keep=2"))
    assert result.ended == {"rendered": 3}
    assert result.total == {"rendered": 6, "rejected": 3}
    assert {row["at"] for row in rows(output, "previews")} == {row["at"] for row in previews}
    run = run_file.read_run(Store(str(output)))
    assert run is not None
    assert run["settings"]["select"]["keep"] == 2  # as the last job had it


@pytest.mark.usefixtures("inline")
def test_a_prompt_that_was_edited_is_previewed_and_rendered_anew(tmp_path: Path, tiny_model: Path) -> None:
    output, best = tmp_path / "run", load(tiny_model, "candidates=2", "select.rank=motion", "select.keep=1")
    prompts = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:2], id=[*"ab"], seed=[1, 1], mood=["calm", None])
    assert flashvideo_ray.preview(prompts, str(output), best).total == {"previewed": 2, "rejected": 2}
    write_prompts(
        tmp_path / "prompts.parquet", PROMPTS[2:3] + PROMPTS[1:2], id=[*"ab"], seed=[1, 1], mood=["calm", None]
    )
    assert flashvideo_ray.preview(prompts, str(output), best).total == {"previewed": 2, "rejected": 2}
    result = flashvideo_ray.refine(str(output))
    assert result.total == {"rendered": 2, "rejected": 2}
    rendered = {row["prompt"] for row in rows(output, "clips") if row["status"] == "rendered"}
    assert rendered == {PROMPTS[2], PROMPTS[1]}

    other = write_prompts(tmp_path / "other.parquet", PROMPTS[2:3] + PROMPTS[1:2], id=[*"xy"], seed=[1, 1])
    with pytest.raises(PromptError, match="--relabel"):
        flashvideo_ray.render(other, str(output), best)
    assert flashvideo_ray.render(other, str(output), best, relabel=True).ended == {}
    labels = {(row["id"], row["mood"]) for row in rows(output, "clips") if row["prompt"] in rendered}
    assert labels == {("x", None), ("y", None)}
    assert verify(Store(str(output))).problems == []


@pytest.mark.usefixtures("inline")
def test_a_prompt_whose_candidates_all_fail_gets_more(tmp_path: Path, tiny_model: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:2])
    settings = load(tiny_model, "select.require=motion > 1e6", "select.draw=2", "keep=[]")
    result = flashvideo_ray.render(prompts, str(tmp_path / "run"), settings)
    assert result.ended == {"rejected": 6}
    assert result.exit_status == 0
    found = Counter(row["candidate"] for row in rows(tmp_path / "run", "previews"))
    assert found == {0: 2, 1: 2, 2: 2}
    assert {row["status"] for row in rows(tmp_path / "run", "previews")} == {"rejected"}
    for row in rows(tmp_path / "run", "clips"):
        assert row["reason"].startswith("motion > 1e6 (motion = ")
        assert (row["stage"], row["clip"]) == ("score", None)
    assert not (tmp_path / "run" / "clips").exists()
    # Nothing was to be kept of what has ended.
    assert not [*tmp_path.glob("run/latents/*/*"), *tmp_path.glob("run/previews/*/*")]
    assert verify(Store(str(tmp_path / "run"))).problems == []


@pytest.mark.usefixtures("inline")
def test_a_job_ends_when_enough_clips_are_accepted_and_another_goes_on(tmp_path: Path, tiny_model: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet", [f"{text} {n}" for n in range(5) for text in PROMPTS])
    output, settings = tmp_path / "run", load(tiny_model)
    first = flashvideo_ray.render(prompts, str(output), settings, quota=Quota(accept=3))
    assert first.ended["rendered"] == 3
    assert first.ended["skipped"] == 27
    made = len(rows(output, "previews"))
    assert made == 3  # all of them survived, so no more were begun
    reasons = {row["reason"] for row in rows(output, "clips") if row["status"] == "skipped"}
    assert reasons == {"3 clips are accepted"}

    second = flashvideo_ray.render(prompts, str(output), settings, quota=Quota(accept=5))
    assert second.total == {"rendered": 5, "skipped": 25}
    again = flashvideo_ray.render(prompts, str(output), settings, quota=Quota(accept=5))
    assert again.ended == {}


@pytest.mark.usefixtures("inline")
def test_enough_clips_of_those_that_a_rule_about_the_whole_run_lets_through(tmp_path: Path, tiny_model: Path) -> None:
    """All previews are made for such a rule: that some pass it before the others are there counts for nothing."""
    prompts = write_prompts(tmp_path / "prompts.parquet", [f"{text} {n}" for n in range(2) for text in PROMPTS])
    output, settings = tmp_path / "run", load(tiny_model, "select.percentiles={motion: 50}")
    result = flashvideo_ray.render(prompts, str(output), settings, quota=Quota(accept=2))
    assert result.total == {"rendered": 2, "rejected": 6, "skipped": 4}
    assert len(rows(output, "previews")) == 12

    with pytest.raises(QuotaError, match="--accept 2 counts clips, and --until preview makes none"):
        flashvideo_ray.render(prompts, str(tmp_path / "none"), settings, until="preview", quota=Quota(accept=2))
    assert not (tmp_path / "none").exists()


@pytest.mark.usefixtures("inline")
def test_rules_about_the_whole_run_and_decisions_of_people(tmp_path: Path, tiny_model: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet", id=[*"abcdef"])
    output = tmp_path / "run"
    half = load(tiny_model, "select.percentiles={motion: 50}")
    result = flashvideo_ray.preview(prompts, str(output), half)
    assert result.total["previewed"] == 3

    ranked = sorted(rows(output, "previews"), key=lambda row: row["score_motion"])
    worst, best = ranked[0]["clip_id"], ranked[-1]["clip_id"]
    decisions.write(Store(str(output)), [Decision(worst, "approved", "ann"), Decision(best, "rejected", "ann")])
    # One more rule decides anew about those that have not ended.
    fourth = ranked[3]
    rule = f"motion > {(fourth['score_motion'] + ranked[4]['score_motion']) / 2}"
    more = load(tiny_model, "select.percentiles={motion: 50}", f"select.require={rule}")
    result = flashvideo_ray.refine(str(output), more)
    clips = {row["clip_id"]: row for row in rows(output, "clips")}
    rendered = {row["clip_id"] for row in clips.values() if row["status"] == "rendered"}
    assert rendered == {worst, ranked[4]["clip_id"]}
    assert clips[best]["reason"] == "rejected by ann"
    assert clips[fourth["clip_id"]]["reason"].startswith(f"{rule} (motion = ")


@pytest.mark.usefixtures("inline")
def test_a_heavy_scorer_sees_only_what_the_others_let_through(tmp_path: Path, tiny_model: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet", id=[*"abcdef"])
    output, log = tmp_path / "run", tmp_path / "seen.txt"
    scorers = f"score.scorers=[{{name: probe.Words}}, {{name: probe.Probe, pool: rate, options: {{log: {log}}}}}]"
    rules = "select.require=[probe > 0, words > 6]"
    result = flashvideo_ray.preview(prompts, str(output), load(tiny_model, scorers, rules))

    seen = log.read_text().splitlines()
    assert len(seen) == 4
    assert result.ended["previewed"] == sum("square" not in text and "star" not in text for text in seen)
    for row in rows(output, "previews"):
        if row["prompt"] not in seen:
            assert row["reason"].startswith("words > 6 (words = ")
        elif "square" in row["prompt"]:
            assert "no usable score probe (probe.Probe: RuntimeError: squares are too much for me)" in row["reason"]
        elif "star" in row["prompt"]:
            assert "probe is not finite" in row["reason"]
        else:
            assert (row["status"], row["score_probe"]) == ("previewed", 1.0)
