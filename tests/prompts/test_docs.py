"""What docs/prompts.md shows, as it stands there."""

from __future__ import annotations

import datetime as dt
import gzip
import re
import shlex
from pathlib import Path
from typing import Any

import guides
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer.main
import yaml
from support import ROOT

from flashvideo_ray import Settings
from flashvideo_ray.cli import app
from flashvideo_ray.cli.runs import columns_as_overrides
from flashvideo_ray.expressions.filters import Filter
from flashvideo_ray.graph import checks

DOCS = (ROOT / "docs" / "prompts.md").read_text()
COMMANDS = re.findall(r"^flashvideo-ray render (\S+ runs/mine .*--(?:only|column).*)$", DOCS, re.MULTILINE)


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the commands name."""
    monkeypatch.chdir(tmp_path)
    ids, texts = ["shot-007", "shot-012", "shot-020"], ["a cat", "a cat runs", "a dog"]
    pq.write_table(pa.table({"id": ids, "prompt": texts, "mood": ["calm", "wild", "calm"]}), "prompts.parquet")
    lines = ["key\tcaption", *("\t".join(row) for row in zip(ids, texts, strict=True))]
    Path("captions.tsv.gz").write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    Path("ids.txt").write_text("shot-007\n")


def prompts_of(words: list[str], *more: str) -> list[str]:
    """The ids of the prompts that `render` would take, by its own reading of its arguments."""
    command: Any = typer.main.get_command(app)
    asked = command.commands["render"].make_context("render", list(words)).params
    settings = Settings.load(None, [*columns_as_overrides(asked["column"]), *more])
    found: list[str] = checks.read_prompts(asked["prompts"], settings, asked["only"])["id"].to_pylist()
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_take_what_they_say(command: str) -> None:
    expected = {
        "--column": ["shot-007", "shot-012", "shot-020"],
        "--only shot-007,shot-012": ["shot-007", "shot-012"],
    }
    [ids] = [ids for option, ids in expected.items() if option in command] or [["shot-007"]]
    assert prompts_of(shlex.split(command)) == ids


def test_its_settings_are_those_of_its_command() -> None:
    text = guides.block("docs/prompts.md", "prompts:")
    Path("run.yaml").write_text(text)
    settings = Settings.load("run.yaml")
    assert yaml.safe_load(text)
    assert checks.read_prompts("captions.tsv.gz", settings)["prompt"].to_pylist() == ["a cat", "a cat runs", "a dog"]
    assert settings.prompts == Settings.load(None, columns_as_overrides(["prompt=caption", "id=key"])).prompts


def test_its_expressions_can_be_asked() -> None:
    day = dt.datetime(2026, 11, 26, tzinfo=dt.UTC)
    row = {"prompt": "a cat", "mood": "calm", "shots": 2, "weight": 0.5, "day": day.date(), "at": day, "audited": True}
    table = pa.Table.from_pylist([row])
    lines = DOCS[DOCS.index("### Expressions") : DOCS.index("A comparison with what has no value")].splitlines()
    asked = [text for line in lines for text in re.findall("`(.+?)`", line) if {*re.findall(r"\w+", text)} & {*row}]
    assert len(asked) >= 8
    found = {text: Filter.parse(text).over(table).to_pylist() for text in asked}
    assert {text for text, holds in found.items() if holds == [False]} == {"mood is null", "at < '2026-11-25 14:30'"}
