"""Given a ledger, when one asks for some of its candidates, then these come, and can be rendered again as they were."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import ROOT, write_prompts
from typer.testing import CliRunner

from flashvideo_ray import Settings
from flashvideo_ray.cli import app
from flashvideo_ray.graph.candidates import read, with_open
from flashvideo_ray.identity import candidates
from flashvideo_ray.ledger import decisions, run_file, tables
from flashvideo_ray.ledger.decisions import Decision
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.writer import Writer
from flashvideo_ray.prompts import read_prompts

STAGE1 = Settings().stage1_recipe()


@pytest.fixture
def wanted(tmp_path: Path) -> pa.Table:
    """Three candidates of each of three prompts."""
    url = write_prompts(
        tmp_path / "p.parquet",
        ["a cat", "a dog", "a cow"],
        mood=["calm", "wild", None],
        negative_prompt=["x", None, ""],
    )
    return candidates(read_prompts(url), 3, STAGE1, "f00d")


@pytest.fixture
def store(tmp_path: Path, wanted: pa.Table) -> Store:
    """Of the first prompt all have ended, of the second one has failed early, of the third nothing has begun."""
    store, settings = Store(str(tmp_path / "run")), Settings.load("nano", ["candidates=3", "select.require=motion > 2"])
    run_file.open_run(store, {"seed": 0}, {"settings": settings.model_dump(mode="json"), "candidates": 9})
    extra = [pa.field("mood", pa.string())]
    previews = Writer(
        store,
        "previews",
        tables.extended(tables.PREVIEWS, [*extra, pa.field("score_motion", pa.float64())]),
        settings.ledger,
    )
    clips = Writer(store, "clips", tables.extended(tables.CLIPS, extra), settings.ledger)
    known = [name for name in tables.CANDIDATES.names if name in wanted.column_names]
    all_at_once = wanted.select(known).append_column("status", pa.array(["wanted"] * wanted.num_rows))
    all_at_once = all_at_once.append_column("at", pa.nulls(wanted.num_rows))  # the writer knows
    Writer(store, "candidates", tables.CANDIDATES, settings.ledger).write(all_at_once)
    rows = wanted.to_pylist()
    ends: list[dict[str, Any]] = [
        {"status": "rendered", "bytes": 1_500_000, "clip": "c"},
        {"status": "rejected", "reason": "motion > 2 (motion = 1)"},
        {"status": "failed", "stage": "refine", "error_class": "TimeoutError", "error": "too [slow]"},
        {"status": "failed", "stage": "preview", "error_class": "OSError", "error": "no disk"},
    ]
    for number, row in enumerate(rows):
        if number < 3:
            previews.append(
                {
                    **row,
                    "status": "rejected" if number else "previewed",
                    "score_motion": [3.0, 1.0, float("nan")][number],
                }
            )
        if number < 4:
            clips.append({**row, **ends[number]})
    for writer in (previews, clips):
        writer.flush()
    decisions.write(store, [Decision(rows[0]["clip_id"], "approved", "ann")])
    return store


def listed(store: Store, *arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["list", store.url, *arguments])
    assert result.exit_code == status, result.output
    return result.output


@pytest.mark.parametrize(
    ("where", "places"),
    [
        (None, range(9)),
        ("status == 'failed'", [2, 3]),
        ("status == 'failed' and error_class == 'OSError' or status == 'open' and id is not null", [3, 4, 5, 6, 7, 8]),
        ("motion > 2", [0]),
        ("score_motion is null and stage == 'refine'", [2]),
        ("decision == 'approved' and decided_by == 'ann'", [0]),
        ("mood == 'calm' and candidate > 0", [1, 2]),
        ("mood == 'wild' and status == 'open'", [4, 5]),
        ("'slow' in error", [2]),
        ("clip is not null", [0]),
    ],
)
def test_an_expression_reaches_all_that_is_known(
    store: Store, wanted: pa.Table, where: str | None, places: list[int]
) -> None:
    ids = listed(store, *([where] if where else []), "--ids").split()
    assert ids == wanted.take(pa.array(places))["clip_id"].to_pylist()


def test_json_lines_have_all_columns(store: Store, wanted: pa.Table) -> None:
    rows = [json.loads(line) for line in listed(store, "mood == 'calm'", "--jsonl").splitlines()]
    assert [row["clip_id"] for row in rows] == wanted["clip_id"].to_pylist()[:3]
    assert [row["score_motion"] for row in rows] == [3.0, 1.0, None]
    assert rows[0]["decided_by"] == "ann"
    assert rows[2]["error"] == "too [slow]"


def test_a_table_has_a_limit_and_says_what_it_leaves_out(store: Store, wanted: pa.Table) -> None:
    output = listed(store, "--limit", "4")
    assert "9 candidates, 5 more not shown" in output
    assert [clip_id in output for clip_id in wanted["clip_id"].to_pylist()] == [True] * 4 + [False] * 5
    assert "2 of 9 candidates." in listed(store, "status == 'failed'")
    assert "0 of 9 candidates." in listed(store, "status == 'skipped'")


def test_what_is_submitted_again_makes_the_same_candidates(store: Store, wanted: pa.Table, tmp_path: Path) -> None:
    again = str(tmp_path / "again.parquet")
    listed(store, "status in ('failed', 'rejected') or status == 'open' and mood is not null", "--parquet", again)
    prompts = read_prompts(again, reserved=[*tables.PREVIEWS.names, *tables.CLIPS.names])
    made = candidates(prompts, 3, STAGE1, "f00d")
    assert made.to_pylist() == wanted.take(pa.array(range(1, 6))).select(made.column_names).to_pylist()
    assert pq.read_schema(again).names == ["id", "prompt", "negative_prompt", "seed", "candidate", "mood"]


def test_the_commands_of_the_docs_list(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path(store.path()).rename("runs/mine")
    docs = (ROOT / "docs" / "prompts.md").read_text()
    commands = [
        shlex.split(line, comments=True) for line in re.findall("^flashvideo-ray (list .*)$", docs, re.MULTILINE)
    ]
    assert len(commands) >= 5
    for command in commands:
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, (command, done.output)
    assert read_prompts("failed.parquet")["prompt"].to_pylist() == ["a cat"]


def test_what_cannot_be_listed_is_said(store: Store, tmp_path: Path) -> None:
    assert "did you mean status?" in listed(store, "stauts == 'failed'", status=2)
    assert "cannot read the filter" in listed(store, "status = 'failed'", status=2)
    assert "ask for one of them" in listed(store, "--ids", "--jsonl", status=2)
    there = tmp_path / "there.parquet"
    there.write_text("mine")
    assert "is there already" in listed(store, "--parquet", str(there), status=2)
    assert there.read_text() == "mine"
    assert "no candidate is as you ask" in listed(store, "motion > 99", "--parquet", str(tmp_path / "n"), status=2)
    assert "no run here" in listed(Store(str(tmp_path / "none")), status=2)
    assert "have not begun: the ledger does not know what their prompts have in mood" in " ".join(
        listed(store, "status == 'open'", "--parquet", str(tmp_path / "open.parquet")).split()
    )


def test_a_run_without_anything_lists_nothing(tmp_path: Path) -> None:
    store, settings = Store(str(tmp_path / "run")), Settings.load("nano")
    run_file.open_run(store, {"seed": 0}, {"settings": settings.model_dump(mode="json"), "candidates": 9})
    assert with_open(store, read(store, settings)).num_rows == 0
    assert "0 of 0 candidates." in listed(store)
    assert listed(store, "status == 'failed' and motion is null", "--ids", status=2)
