"""Given a ledger, when a command has changed it, then status, report and bill say what the ledger says."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support import PROMPTS, short_lease, tiny_overrides, write_prompts
from typer.testing import CliRunner

import flashvideo_ray
from flashvideo_ray import Settings
from flashvideo_ray.accounting import terminal
from flashvideo_ray.cli import app
from flashvideo_ray.graph import finish
from flashvideo_ray.graph.recipe import with_added_scorers
from flashvideo_ray.graph.standing import Standing
from flashvideo_ray.ledger import decisions, jobs, run_file, tables
from flashvideo_ray.ledger.keys import latents_key
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.writer import Writer
from flashvideo_ray.settings import ScorerSettings

BEST_OF_THREE = ["candidates=3", "select.rank=motion", "select.keep=1"]


@pytest.fixture
def store(tmp_path: Any) -> Store:
    """Two prompts with three candidates each, of which the one that moves most was rendered, on cards."""
    store, settings = Store(str(tmp_path / "run")), Settings.load("nano", BEST_OF_THREE)
    run_file.open_run(store, {"seed": 0}, {"settings": settings.model_dump(mode="json"), "candidates": 6})
    schema = tables.extended(tables.PREVIEWS, [pa.field("score_motion", pa.float64())])
    previews = Writer(store, "previews", schema, settings.ledger)
    clips = Writer(store, "clips", tables.CLIPS, settings.ledger)
    for number in range(6):
        prompt, candidate = divmod(number, 3)
        row = {"clip_id": f"{number:020x}", "id": f"p{prompt}", "prompt": "a", "seed": number, "candidate": candidate}
        made = {"latents": latents_key(row["clip_id"]), "preview_seconds": 2.0, "device": "NVIDIA H100"}
        status = "previewed" if candidate == 2 else "rejected"
        previews.append({**row, **made, "status": status, "score_motion": float(candidate)})
        if candidate == 2:
            ended = {"status": "rendered", "clip": "c", "refine_seconds": 4.0, "device": "NVIDIA L40S"}
        else:
            ended = {"status": "rejected", "stage": "score", "reason": "not among the best 1"}
        clips.append({**row, **ended})
    previews.flush()
    clips.flush()
    return store


def command(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == 0, result.output
    return result.output


def counted(store: Store) -> dict[str, int]:
    """What `status` says."""
    words = command("status", store.url).split()
    known = ("rendered", "rejected", "previewed", "approved", "failed", "open")
    return {word: int(words[place + 2]) for place, word in enumerate(words) if word in known}


def summary(store: Store) -> dict[str, Any]:
    command("report", store.url)
    return dict(json.loads(store.get("summary.json")))


@pytest.mark.usefixtures("inline")
def test_a_report_that_takes_longer_than_the_lease_is_written_all_the_same(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary_of = finish.summary_of

    def slowly(*arguments: Any) -> Any:
        time.sleep(1.5)
        return summary_of(*arguments)

    monkeypatch.setattr(finish, "summary_of", slowly)
    prompts = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:1])
    settings = Settings.load("nano", [*tiny_overrides(tiny_model), *short_lease(1)])
    result = flashvideo_ray.preview(prompts, str(tmp_path / "run"), settings)
    assert (result.exit_status, result.total) == (0, {"previewed": 1})
    assert Store(result.output).exists("summary.json")


def test_the_columns_that_figures_need_give_the_figures_of_all_columns(store: Store) -> None:
    settings = Settings.load("nano", BEST_OF_THREE)
    decisions.write(store, [decisions.Decision(f"{0:020x}", "approved", "ann")])
    some, all_ = (Standing.read(store, settings, figures=figures) for figures in (True, False))
    assert some.counts(6) == all_.counts(6)
    assert finish.summary_of(store, settings, some) == finish.summary_of(store, settings, all_)


def test_after_select_status_report_and_bill_say_what_the_ledger_says(store: Store) -> None:
    assert counted(store) == {"rendered": 2, "rejected": 4, "open": 0}
    assert "4 of 6 previews survive" in command("select", store.url, "--keep", "2")
    ledger = Counter(tables.read(store, "previews", ["status"])["status"].to_pylist())
    assert ledger == {"previewed": 4, "rejected": 2}
    assert counted(store) == {"rendered": 2, "previewed": 2, "rejected": 2, "open": 0}
    found = summary(store)
    assert found["status"] == {"rendered": 2, "previewed": 2, "rejected": 2}
    assert (found["survivors"], found["bill"]["rejected"], found["refine_seconds_saved"]) == (4, 2, 8.0)
    assert found["bill"]["refine_everything"]["spared"] == 2
    # And back: what is rendered stays, what is not is not wanted any more.
    command("select", store.url, "--keep", "1")
    assert counted(store) == {"rendered": 2, "rejected": 4, "open": 0}


def test_what_people_decide_counts_at_once(store: Store) -> None:
    first = f"{0:020x}"
    decisions.write(store, [decisions.Decision(first, "approved", "her")])
    assert counted(store) == {"rendered": 2, "approved": 1, "rejected": 3, "open": 0}
    assert summary(store)["survivors"] == 3
    decisions.write(store, [decisions.Decision(first, "cleared", "her")])
    assert counted(store) == {"rendered": 2, "rejected": 4, "open": 0}


def test_prices_of_the_newest_job_are_those_of_the_report(store: Store) -> None:
    """A job that had nothing to do was told them; run.json is of the job before."""
    run = run_file.read_run(store)
    assert run is not None
    assert summary(store)["bill"]["total"]["money"] is None
    told = Settings.of_tree(run["settings"], ["prices.devices={L40S: {on_demand: 3600}}"]).model_dump(mode="json")
    jobs.note(store, run, told)
    assert summary(store)["bill"]["total"]["money"] == 8.0
    # `select` changes what it is about, and no prices.
    command("select", store.url, "--keep", "2")
    assert summary(store)["bill"]["total"]["money"] == 8.0


def test_wall_time_and_idle_shares_outlive_the_summary(store: Store) -> None:
    run = run_file.read_run(store)
    assert run is not None
    with jobs.Record(store, run, time.monotonic() - 60.0) as record:
        record.used({"refine": (10.0, 4.0)})
    before = summary(store)
    assert before["wall_seconds"] == pytest.approx(60.0, abs=10)
    assert before["bill"]["pools"]["refine"]["idle_share"] == pytest.approx(0.6)
    store.delete("summary.json")
    assert summary(store) == before


def test_damage_is_one_message_that_names_what_mends_it(store: Store) -> None:
    jobs.note(store, json.loads(store.get("run.json")))
    before = summary(store)
    store.put("ledger/clips-9.parquet", b"PAR1 torn")
    store.put("summary.json", b"[1,2]")
    for words in (("status", store.url), ("report", store.url), ("plan", "p.parquet", "--from", store.url)):
        result = CliRunner().invoke(app, [*words])
        assert result.exit_code == 2, result.output
        if words[0] != "plan":
            assert result.stderr.count("\n") == 1
            assert f"`flashvideo-ray verify {store.url} --repair`" in result.stderr
    CliRunner().invoke(app, ["verify", store.url, "--repair", "--no-decode"])
    assert json.loads(store.get("summary.json"))["bill"]["currency"] == before["bill"]["currency"]
    assert CliRunner().invoke(app, ["status", store.url]).exit_code == 0


def test_scorers_that_differ_are_told_by_name_with_what_to_write(store: Store) -> None:
    there = {"score": {"scorers": [{"name": "motion", "options": {}}, {"name": "phash", "options": {}}]}}
    now = {"score": {"scorers": [{"name": "motion", "options": {}}]}}
    run = {**json.loads(store.get("run.json")), "recipe": there}
    store.put("run.json", json.dumps(run).encode())
    with pytest.raises(run_file.RecipeError) as caught:
        run_file.check_recipe(store, now)
    _, difference, hint, *_ = str(caught.value).splitlines()
    assert difference.startswith("  score.scorers.phash: {'name': 'phash'")
    key, _, value = hint.partition("--set '")[2].rstrip("'").partition("=")
    assert [spec.name for spec in Settings.load(None, [f"{key}={value}"]).score.scorers] == ["motion", "phash"]


def test_scorers_that_score_added_belong_to_the_run(store: Store) -> None:
    spec = {"name": "phash", "options": {}, "pool": "score"}
    run = {**json.loads(store.get("run.json")), "added_scorers": [spec]}
    settings = with_added_scorers(Settings.load("nano"), run)
    assert settings.score.scorers == (*Settings.load("nano").score.scorers, ScorerSettings(name="phash"))
    assert with_added_scorers(settings, run) == settings
    assert with_added_scorers(Settings(), None) == Settings()


def test_a_rejection_by_a_rule_about_the_whole_run_stands(store: Store) -> None:
    """Such a rule is applied when all previews are there: their rows, written before, say `previewed`."""
    run = run_file.read_run(store)
    assert run is not None
    run["settings"]["select"] |= {"keep": None, "percentiles": {"motion": 90}}
    store.put("run.json", json.dumps(run).encode())
    previews = tables.read(store, "previews")
    status = pa.array(["previewed"] * 6)
    place = previews.schema.get_field_index("status")
    tables.supersede(store, "previews", previews.set_column(place, previews.schema.field("status"), status))
    assert counted(store) == {"rendered": 2, "rejected": 4, "open": 0}


def test_a_run_without_cards_has_no_column_about_them(store: Store) -> None:
    def columns() -> list[str]:
        return [str(column.header) for column in terminal.stages_table(summary(store)).columns]

    assert columns() == ["stage", "candidates", "mean", "sum", "GPU-seconds"]
    for which in ("previews", "clips"):
        rows = tables.read(store, which)  # type: ignore[arg-type]
        place, field = rows.schema.get_field_index("device"), rows.schema.field("device")
        rows = rows.set_column(place, field, pa.array(["cpu (x86_64)"] * rows.num_rows, field.type))
        tables.supersede(store, which, rows)  # type: ignore[arg-type]
    assert columns() == ["stage", "candidates", "mean", "sum"]
