"""What README and docs/ tell to type is typed here, a guide at a time, in a folder with a small finished run.

Commands of the package run in this process, with its stages in place of actors (`inline`), few steps and small clips;
others in bash. YAML is read as settings, Python is executed. `test_quickstart` does the quickstart as a newcomer would.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import typer.main
import yaml
from guides import GUIDES, Block, blocks
from support import ROOT, S3, write_prompts
from typer.testing import CliRunner

from flashvideo_ray.cli import app
from flashvideo_ray.ledger import decisions, tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.writer import Writer
from flashvideo_ray.settings import LedgerSettings, Settings

QUICK = ("preview.num_inference_steps=2", "preview.num_frames=2", "refine.num_inference_steps=1")
QUICK += ("refine.height=48", "refine.width=64")
CHOOSING = ("candidates=2", "select={rank: motion, keep: 1, audit: 1}")
RENDERS = ("render", "preview", "demo")  # commands that are told to be quick
# What the guides leave to the reader. A guide whose OUTPUT is not there yet has one of its own.
WORDS = {"PROMPTS": "prompts.parquet", "OUTPUT": "runs/mine", "NEW": "runs/new", "CHECKPOINTS": "checkpoints"}
FRESH = ("docs/models.md",)
OURS = re.compile(r"(?:\w+=\S+ )*(?:\.venv/bin/)?flashvideo-ray ")
SUBMITTED = re.compile(r"ray job submit .*-- python jobs/render.py (.*)")


def words_of(command: str, names: dict[str, str]) -> list[str]:
    """The arguments of a command of the package."""
    words = shlex.split(command, comments=True)
    while "=" in words[0]:
        words = words[1:]
    return [names.get(word, word) for word in words[1:]]


def parse(words: list[str]) -> None:
    """Raises where the command has no such option, or lacks an argument."""
    group: Any = typer.main.get_command(app)
    assert words[0] in group.commands, f"no command {words[0]}"
    group.commands[words[0]].make_context(words[0], list(words[1:]))


def run(words: list[str], *statuses: int) -> None:
    """In few steps: by run.yaml where nothing else is said, else by options."""
    quick: list[str] = []
    if words[0] in RENDERS:
        quick = [word for setting in QUICK for word in ("--set", setting)] if "-c" in words else ["-c", "run.yaml"]
    done = CliRunner().invoke(app, [*words, *quick])
    assert done.exit_code in (0, *statuses), f"{shlex.join(words)}\n{done.output}"


def in_bash(text: str) -> None:
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", text], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, local_ray: None, tiny_model: Path) -> Path:
    """A folder with what the guides take for granted: prompts, settings, a finished run."""
    from inline import stages_inline

    folder = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch, stages_inline():
        patch.chdir(folder)
        texts = ["a large red star slides left on a navy background", "a cat and a small blue circle", "a green square"]
        ids, moods = ["shot-007", "shot-012", "shot-020"], ["calm", "calm", "wild"]
        write_prompts(folder / "prompts.parquet", texts, id=ids, mood=moods, title=["one", "two", "three"])
        header = ("key", "caption", "mood", "title")
        captions = [header, *zip(ids, texts, moods, ["one", "two", "three"], strict=True)]
        Path("captions.tsv").write_text("".join("\t".join(row) + "\n" for row in captions))
        subprocess.run(["gzip", "captions.tsv"], check=True)
        Path("ids.txt").write_text("shot-007\n")
        settings = Settings.load("nano", [*QUICK, *CHOOSING, "prices.devices={cpu: {on_demand: 0.05}}"])
        Path("run.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_unset=True)))
        run(["render", "prompts.parquet", "runs/mine"])
        clips = tables.read(Store("runs/mine"), "clips").to_pylist()
        approved = [row["clip_id"] for row in clips if row["status"] == "rendered"]
        decisions.write(Store("runs/mine"), [decisions.Decision(clip_id, "approved", "ann") for clip_id in approved])
        shutil.copytree("runs/mine", "runs/before")
        shutil.copytree("runs/mine", "runs/demo")
        previews = tables.read(Store("runs/mine"), "previews").to_pylist()[:2]
        urls = [str(folder / "runs" / "before" / row["preview"]) for row in previews]
        write_prompts(folder / "previews.parquet", [row["prompt"] for row in previews], preview_url=urls)
        shutil.copy("prompts.parquet", "heldout60.parquet")
        shutil.copy(next(Path("runs/mine/clips").rglob("*.mp4")), "clip.mp4")
        Path("model").symlink_to(tiny_model)
        for name in ("benchmarks", "tests", "Makefile", "flashvideo_ray", "docs"):
            Path(name).symlink_to(ROOT / name)
    return folder


def let_one_fail(output: str) -> None:
    """The newest row of a candidate says that stage 2 failed."""
    row = next(row for row in tables.read(Store(output), "clips").to_pylist() if row["status"] == "rendered")
    failed = {"status": "failed", "stage": "refine", "error_class": "TimeoutError", "error": "3600 s", "clip": None}
    schema = pq.read_schema(next(Path(output, "ledger").glob("clips-*.parquet")))
    rows = pa.Table.from_pylist([{**row, **failed, "at": tables.now()}], schema=schema)
    Writer(Store(output), "clips", schema, LedgerSettings()).write(rows)


@pytest.fixture(scope="module")
def bucket(made: Path, s3: S3) -> None:
    """The bucket that the guides name, with prompts and that run."""
    store = s3fs.S3FileSystem(skip_instance_cache=True)
    store.makedirs("bucket", exist_ok=True)
    there = {f"bucket/{name}": str(made / "prompts.parquet") for name in ("prompts.parquet", "prompts/1.parquet")}
    run = made / "runs" / "mine"
    files = [path for path in run.rglob("*") if path.is_file() and path.parent.name != "claims"]
    there |= {f"bucket/run1/{path.relative_to(run)}": str(path) for path in files}
    store.put(list(there.values()), list(there))


@pytest.fixture
def reader(made: Path, bucket: None, tmp_path: Path, inline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the folder, which is this process's own."""
    shutil.copytree(made, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("NIGHT_WEBHOOK", "http://127.0.0.1:9/")


def taken(guide: Path) -> list[Block]:
    return [each for each in blocks(guide) if each.language != "text"]


def typed(guide: Path) -> list[Block]:
    """Commands and code that are run here."""
    return [each for each in taken(guide) if not each.mark and each.language != "yaml"]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_every_block_is_run_or_says_why_not(guide: Path) -> None:
    assert guide.read_text().count("\n```") == 2 * len(blocks(guide)), f"{guide}: a fence that is not read"
    for each in taken(guide):
        assert each.language in ("", "sh", "yaml", "python"), (
            f"{each}: ```{each.language}: nobody runs it; text is shown"
        )
        if each.mark == "run by":
            assert (ROOT / each.why).is_file(), f"{each}: no test {each.why}"
            assert guide.name in (ROOT / each.why).read_text(), f"{each}: {each.why} does not read {guide.name}"
        elif each.mark == "not run":
            assert len(each.why.split()) > 2, f"{each}: no reason"


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_commands_have_the_options_that_they_are_given(guide: Path) -> None:
    """Those that are not run, too, and those within a sentence."""
    text = guide.read_text()
    sentences = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"`(flashvideo-ray [a-z]+ [^`…]*)`", sentences)
    for each in taken(guide):
        found += [line for line in each.commands() if OURS.match(line)]
        found += ["flashvideo-ray render " + rest for line in each.commands() for rest in SUBMITTED.findall(line)]
    for command in found:
        words = words_of(command, WORDS)
        if "--prompts" in words:  # as `jobs/render.py` takes them
            for option in ("--prompts", "--output"):
                words.remove(option)
        parse(words)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_settings_are_settings(guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHT_WEBHOOK", "http://127.0.0.1:9/")
    for each in taken(guide):
        if each.language == "yaml" and not each.mark:
            (tmp_path / "run.yaml").write_text(each.text)
            Settings.load(tmp_path / "run.yaml")


@pytest.mark.parametrize("guide", [guide for guide in GUIDES if typed(guide)], ids=lambda path: path.name)
def test_what_a_guide_tells_to_type_works(guide: Path, reader: None) -> None:
    here = str(guide.relative_to(ROOT))
    names = {**WORDS, **({"OUTPUT": "runs/own"} if here in FRESH else {})}
    failed: tuple[int, ...] = ()
    if here == "docs/prompts.md":  # which tells what to do about it
        let_one_fail("runs/mine")
        failed = (3,)
    for each in typed(guide):
        if each.language == "python":
            exec(compile(each.text.replace('"cuda"', '"cpu"'), str(each), "exec"), {"prompt": "a red circle"})
        elif any(OURS.match(line) for line in each.commands()):
            for line in each.commands():
                run(words_of(line, names), *failed) if OURS.match(line) else in_bash(line)
        else:
            in_bash(each.text)


def test_the_messages_of_the_troubleshooting_are_those_of_the_program() -> None:
    """The first column of its tables, up to the doctor's: each piece of a message stands in the source."""
    guide = (ROOT / "docs" / "troubleshooting.md").read_text().partition("## Doctor")[0]
    rows = re.findall(r"^\| (?!---|you see)(.*?) \|", guide, re.MULTILINE)
    pieces = {piece.strip() for row in rows for text in re.findall("`(.+?)`", row) for piece in text.split("…")}
    assert len(pieces) >= 25
    source = "".join(path.read_text() for path in (ROOT / "flashvideo_ray").rglob("*.py"))
    assert {piece for piece in pieces if piece not in source} == set()
