"""Commands: exit status, one clear message, and nothing left behind by wrong input."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import ROOT, script, tiny_overrides, write_prompts
from typer.testing import CliRunner

from flashvideo_ray import Settings
from flashvideo_ray.cli import app
from flashvideo_ray.cli.outcome import run_job
from flashvideo_ray.errors import JobError
from flashvideo_ray.graph import checks, pipeline
from flashvideo_ray.graph.health import Fault
from flashvideo_ray.graph.recipe import about, recipe_of
from flashvideo_ray.ledger import run_file, tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.writer import Writer
from flashvideo_ray.prompts import read_prompts
from flashvideo_ray.settings import LedgerSettings

pytestmark = pytest.mark.usefixtures("no_ray")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"]}, "no column 'prompt'"),
        ({"prompt": ["a", None]}, "row 2: prompt is null"),
        ({"prompt": ["a", " "]}, "row 2: prompt is empty"),
        ({"prompt": ["a", "b"], "id": ["x", "x"]}, "row 2: the id 'x' was used before"),
        ({"prompt": ["a"], "seed": ["one"]}, "column 'seed' holds string"),
        ({"prompt": [3]}, "column 'prompt' holds int64"),
        ({"prompt": ["a"], "clip": ["x"]}, "column clip has a name that the ledger uses"),
    ],
)
def test_wrong_prompts_end_with_status_2_and_leave_no_run(
    tmp_path: Path, tiny_model: Path, columns: dict[str, list[object]], message: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "prompts.parquet")
    overrides = [word for override in tiny_overrides(tiny_model) for word in ("--set", override)]
    result = run("render", str(tmp_path / "prompts.parquet"), str(tmp_path / "run"), *overrides)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pools.refin.size=2"], "did you mean pools.refine?"),
        (["score.scorers=[moton]"], "unknown scorer 'moton': did you mean motion?"),
        (["score.scorers=[{name: motion, options: {fsp: 3}}]"], "does not take these options"),
        (["video.encoder_preset=warp"], "video.encoder_preset: "),
        (["select.rank=alignment"], "the rule 'alignment' uses alignment, but the scorers of this run give"),
        (["select.duplicates=3"], "add the scorer phash"),
        (["select.require=motoin > 1"], "uses motoin, but the scorers of this run give"),
        (["score.scorers=[motion, motion]"], "motion, motion_area would be given by two scorers"),
        (["preview.model=/absent"], "/absent: no such folder"),
        (["preview.height=8"], "preview.height, preview.width: the smallest size is 16x16, got 8x48"),
        (["refine.decode_tiling=reference", "refine.decode_tiles=[50, 50]"], "50 rows of tiles do not fit"),
        (["video.codec=h264_nvenc"], "pools.refine.num_gpus is 0"),
        (["candidates=30000000"], "candidates: Input should be less than or equal to 10000"),
        (["preview.num_frames=10"], "preview.num_frames: a video of 10 frames cannot be decoded; 8k + 1 can"),
        (["pools.preview.num_gpus=64"], "pools.preview asks for 1 times 1 CPU, 64 GPU; there is room for 0"),
    ],
)
def test_wrong_settings_end_with_status_2_and_leave_no_run(
    tmp_path: Path, tiny_model: Path, overrides: list[str], message: str
) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet")
    words = [word for override in [*tiny_overrides(tiny_model), *overrides] for word in ("--set", override)]
    result = run("render", prompts, str(tmp_path / "run"), *words)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["prompt=caption", "prompt=text"], "--column prompt=text: prompt is caption already; give it once"),
        (["promt=caption"], "unknown key prompts.columns.promt; did you mean prompts.columns.prompt?"),
        (["caption"], "--column caption: expected FIELD=NAME"),
        (["prompt="], "--column prompt=: expected FIELD=NAME"),
        (["prompt=captoin"], "no column 'captoin' for prompt (columns: caption); did you mean 'caption'?"),
    ],
)
def test_a_column_that_is_not_there(tmp_path: Path, columns: list[str], message: str) -> None:
    (tmp_path / "p.csv").write_text("caption\na cat\n")
    asked = [word for text in columns for word in ("--column", text)]
    result = run("plan", str(tmp_path / "p.csv"), *asked)
    assert (result.exit_code, message in " ".join(result.output.split())) == (2, True), result.output
    result = run("render", str(tmp_path / "p.csv"), str(tmp_path / "run"), *asked)
    assert (result.exit_code, message in " ".join(result.output.split())) == (2, True), result.output
    assert not (tmp_path / "run").exists()


def test_a_plan_is_of_the_part_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text("null\tmood\n" + "".join(f"cat {n}\t{n % 2}\n" for n in range(10)))
    timed = ["--set", "candidates=4", "--seconds", "preview=1,refine=1"]
    told = ["--column", "prompt=null", *timed]
    assert "40 candidates" in " ".join(run("plan", str(tmp_path / "p.tsv"), *told).output.split())
    assert "20 candidates" in " ".join(
        run("plan", str(tmp_path / "p.tsv"), *told, "--only", "mood == 1").output.split()
    )
    (tmp_path / "c.jsonl").write_text(
        "".join(json.dumps({"id": "x", "prompt": "a", "seed": n, "candidate": n}) + "\n" for n in range(3))
    )
    assert "3 candidates" in " ".join(run("plan", str(tmp_path / "c.jsonl"), *timed).output.split())


def test_a_place_that_cannot_be_written(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    words = [word for override in tiny_overrides(tiny_model) for word in ("--set", override)]
    result = run("render", write_prompts(tmp_path / "prompts.parquet"), str(tmp_path / "file" / "run"), *words)
    assert result.exit_code == 2, result.output
    assert "cannot be" in result.output


def test_a_quota_that_cannot_be_read(tmp_path: Path) -> None:
    result = run("render", write_prompts(tmp_path / "prompts.parquet"), str(tmp_path / "run"), "--budget", "much")
    assert result.exit_code == 2
    assert "write it like '200 gpu-hours'" in result.output


def test_a_run_is_not_refined_from_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = checks.check(Settings.load("nano"))
    run_file.open_run(Store("run"), recipe_of(settings), about(settings, 0))
    written = (tmp_path / "run" / "run.json").read_bytes()
    for new, old in (("run", "run"), ("run/", f"file://{tmp_path}/run"), (str(tmp_path / "run"), "./run")):
        result = run("refine", new, "--from", old)
        assert result.exit_code == 2
        assert "this is OUTPUT itself" in result.output
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]
    assert (tmp_path / "run" / "run.json").read_bytes() == written


@pytest.mark.parametrize("command", ["refine", "status", "report", "select", "prune"])
def test_a_place_without_a_run(tmp_path: Path, command: str) -> None:
    result = run(command, str(tmp_path))
    assert result.exit_code == 2
    assert "no run here" in result.output
    assert list(tmp_path.iterdir()) == []


def test_prompts_that_are_too_long_or_have_a_negative_are_named_and_rendered_all_the_same(
    tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = write_prompts(
        tmp_path / "prompts.parquet", ["a red circle", "a red star " * 9], negative_prompt=[None, "blue"]
    )
    table = read_prompts(prompts)
    checks.warn_of_prompts(table, Settings.load("nano", tiny_overrides(tiny_model)))
    # By their ids: rows may have been left out before, and may be of several files.
    cut = f"cut there: {table['id'][1].as_py()!r} (31)"
    assert f"1 of 2 prompts have more than 16 tokens and are {cut}" in caplog.text
    assert "1 prompts have a negative_prompt" in caplog.text


def test_words_that_the_nano_model_does_not_know_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompts = ["A large striped red star slides left on a navy background.", "A heron takes off over a navy lake."]
    table = read_prompts(write_prompts(tmp_path / "prompts.parquet", prompts))
    checks.warn_of_prompts(table, Settings.load("nano"))
    unknown = caplog.text.split("of these prompts: ")[1].split("; it was trained")[0].split(", ")
    assert {"heron", "lake"} <= set(unknown)
    assert not {"navy", "a", "large", "striped", "red"} & set(unknown)


def test_status_counts_candidates(tmp_path: Path, tiny_model: Path) -> None:
    store = Store(str(tmp_path / "run"))
    settings = Settings.load("nano", tiny_overrides(tiny_model))
    run_file.open_run(store, {"seed": 0}, {"settings": settings.model_dump(mode="json"), "candidates": 5})
    earlier = {"clip_id": "e", "id": "p", "prompt": "the text before", "seed": 0, "candidate": 0, "status": "previewed"}
    writer = Writer(store, "previews", tables.PREVIEWS, LedgerSettings())
    writer.append(earlier)
    writer.flush()
    time.sleep(0.002)  # the ledger's clock has milliseconds
    for table, statuses in {
        "previews": ["previewed", "rejected", "previewed"],
        "clips": ["rendered", "rejected"],
    }.items():
        writer = Writer(store, table, tables.SCHEMAS[table], LedgerSettings())
        for number, status in enumerate(statuses):
            common = {"id": "p", "prompt": "a", "seed": 0, "candidate": 0}
            writer.append({**common, "clip_id": str(number), "status": status})
        writer.flush()
    result = run("status", store.url)
    assert result.exit_code == 0
    words = result.output.split()
    assert "earlier text │ 1" in " ".join(words)
    counts = {
        word: words[index + 2]
        for index, word in enumerate(words)
        if word in ("rendered", "rejected", "previewed", "open")
    }
    assert counts == {"rendered": "1", "rejected": "1", "previewed": "1", "open": "2"}
    assert run("report", store.url).exit_code == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<html" in page
    assert "the text before" not in page
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["candidates"], summary["prompts"], summary["earlier_texts"]) == (3, 1, 1)

    # Rows without media, and two parts that need not be two.
    wrong = run("verify", store.url)
    assert wrong.exit_code == 1
    assert "WRONG" in wrong.output
    assert "clips: 2 rows, 1 parts before" in run("compact", store.url).output


def test_what_a_cluster_runs_takes_the_options_of_render(tmp_path: Path) -> None:
    script_ = [sys.executable, str(ROOT / "jobs" / "render.py"), "--prompts", str(tmp_path / "no.parquet")]
    own = ["--output", str(tmp_path / "run"), "--until", "refine", "--set", "seed=3", "--relabel", "--accept", "3"]
    own += ["--only", "mood == 'calm'", "--column", "prompt=caption"]
    result = subprocess.run([*script_, *own], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {tmp_path}/no.parquet: no such file"), result.stderr


def test_the_console_script_is_there() -> None:
    result = subprocess.run([script("flashvideo-ray"), "--help"], capture_output=True, text=True, check=True)
    for command in (
        "demo",
        "render",
        "preview",
        "refine",
        "status",
        "report",
        "verify",
        "compact",
        "convert",
        "plan",
        "audit",
    ):
        assert command in result.stdout
    assert pipeline.render.__doc__


def test_a_job_that_breaks_says_so_in_a_line_and_names_the_file_with_the_rest(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def job() -> None:
        raise OSError("model.safetensors: truncated\nand forty lines of where that was noticed")

    assert run_job(job) == 1
    message, where = capfd.readouterr().err.splitlines()
    assert message == "error: OSError: model.safetensors: truncated"
    [path] = re.findall(r"\S+\.log", where)
    assert "forty lines" in Path(path).read_text()


def test_a_job_without_a_node_left_names_stage_node_and_cause(capfd: pytest.CaptureFixture[str]) -> None:
    def job() -> None:
        raise JobError(str(Fault("refine", "OSError: model.safetensors: truncated", "id", "gpu-7")))

    assert run_job(job) == 1
    assert capfd.readouterr().err.startswith("error: refine on gpu-7: OSError: model.safetensors: truncated\n")


def test_the_help_of_a_command_waits_for_no_model_library() -> None:
    heavy = "{'torch', 'ray', 'diffusers', 'transformers', 'av', 'pandas'}"
    code = f"import sys, flashvideo_ray.cli, flashvideo_ray.engines; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
