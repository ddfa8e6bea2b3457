"""A run for each night: one at a time on a pattern, and each renders what those before it have not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import faulty  # noqa: F401  what the faulty model is made of is loaded by this process
import pytest
import ray
from support import PROMPTS, tiny_overrides, write_prompts
from tiny import save_model
from typer.testing import CliRunner

from flashvideo_ray import Settings
from flashvideo_ray.cli import app
from flashvideo_ray.graph.nightly import Night, NightError, held
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.claim import Claim, ClaimedError
from flashvideo_ray.ledger.holder import Identity
from flashvideo_ray.ledger.store import Store

TEXTS = [f"{text} {word}".strip() for word in ("", "slowly", "on sand") for text in PROMPTS]
ELSEWHERE = Identity(host="another", pid=1, user="night", command="render")


def test_a_date_is_fixed_when_a_night_is_submitted() -> None:
    night = Night.of("s3://bucket/nights/{date}/clips", "2026-11-26")
    assert (night.output, night.root) == ("s3://bucket/nights/2026-11-26/clips", "s3://bucket/nights")
    assert Night.of("runs/night-{date}", "2026-11-26").root == "runs"
    assert len(Night.of("runs/{date}").date) == 10


@pytest.mark.parametrize(
    ("pattern", "date"),
    [("s3://b/{date}/{date}", None), ("{date}", None), ("s3://{date}/x", None), ("runs/{date}", "yesterday")],
)
def test_patterns_and_dates_that_are_none(pattern: str, date: str | None) -> None:
    with pytest.raises(NightError):
        Night.of(pattern, date)


def test_options_of_nights_need_a_pattern(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet")
    for option in (["--new"], ["--date", "2026-11-26"]):
        result = CliRunner().invoke(app, ["render", prompts, str(tmp_path / "run"), *option])
        assert (result.exit_code, "{date}" in result.output) == (2, True)


def test_a_night_waits_for_the_one_before_it_and_takes_over_from_a_dead_one(tmp_path: Path) -> None:
    settings = Settings.of_tree({}, ["ledger.lease_seconds=1", "store_patience_seconds=1"])
    pattern = str(tmp_path / "nights" / "{date}")
    first, second = Night.of(pattern, "2026-11-26"), Night.of(pattern, "2026-11-27")
    with (
        Claim(Store(first.root), ELSEWHERE, 60.0),
        pytest.raises(ClaimedError, match="claimed by another job"),
        held(second, settings),
    ):
        pytest.fail("two nights at once")
    dead = Claim(Store(first.root), ELSEWHERE, 1.0)
    dead._renewer.run = dead._watchdog.run = lambda: None  # type: ignore[method-assign]  # as of a killed process
    dead.__enter__()
    with pytest.raises(ClaimedError), held(second, settings):
        pytest.fail("its lease is not over")
    time.sleep(1.2)
    with held(second, settings):
        pass


def test_a_night_that_is_refused_is_told_of(tmp_path: Path) -> None:
    """The one before it hangs, say, and nobody looks at the terminal."""
    words = [write_prompts(tmp_path / "prompts.parquet"), str(tmp_path / "nights" / "{date}"), "--date", "2026-11-27"]
    told = ["--set", f"notify.command=cat > {tmp_path / 'told'}", "--set", "store_patience_seconds=1"]
    with Claim(Store(str(tmp_path / "nights")), ELSEWHERE, 60.0):
        assert CliRunner().invoke(app, ["render", *words, *told]).exit_code == 2
    notice = json.loads((tmp_path / "told").read_text())
    assert (notice["event"], notice["exit_status"]) == ("end", 2)
    assert "claimed by another job" in notice["text"]
    assert notice["output"].endswith("nights/2026-11-27")


NIGHT = """
import sys
from inline import stages_inline
from flashvideo_ray.cli import app
with stages_inline():
    app(sys.argv[1:])
"""


def words_of(folder: Path, model: Path, date: str, count: int) -> list[str]:
    """The command of a night: of its prompts, what no night before it has done."""
    prompts = write_prompts(folder / f"prompts-{count}.parquet", TEXTS[:count])
    options = [word for text in tiny_overrides(model) for word in ("--set", text)]
    return ["render", prompts, str(folder / "nights" / "{date}"), "-c", "nano", "--new", "--date", date, *options]


def rendered(folder: Path, date: str) -> set[str]:
    clips = tables.read(Store(str(folder / "nights" / date)), "clips").to_pylist()
    texts = [row["prompt"] for row in clips if row["status"] == "rendered"]
    assert len(texts) == len(set(texts))
    return set(texts)


@pytest.mark.long
@pytest.mark.usefixtures("inline")
def test_a_night_that_was_killed_holds_up_none_after_it_and_loses_nothing(tmp_path: Path, tiny_model: Path) -> None:
    env = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "-c", NIGHT, *words_of(tmp_path, tiny_model, "2026-11-26", 12)]
    with open(tmp_path / "log", "wb") as log:
        first = subprocess.Popen(command, env=env, stdout=log, stderr=log)

    def night(date: str, count: int) -> tuple[int, str]:
        result = CliRunner().invoke(app, words_of(tmp_path, tiny_model, date, count))
        return result.exit_code, result.output

    try:
        deadline = time.monotonic() + 120
        while not rendered(tmp_path, "2026-11-26"):
            assert first.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.05)
        first.send_signal(signal.SIGSTOP)  # at half, for as long as the second looks
        code, said = night("2026-11-27", 14)
        assert (code, "is claimed by another job" in said) == (2, True), said
        assert not (tmp_path / "nights" / "2026-11-27").exists()
    finally:
        first.kill()
        first.wait()
    half = rendered(tmp_path, "2026-11-26")
    assert 0 < len(half) < 12

    # The second takes up what the first left; the first itself can be taken up, too, and has nothing that is twice.
    assert night("2026-11-27", 14)[0] == 0
    assert rendered(tmp_path, "2026-11-27") == set(TEXTS[:14]) - half
    assert night("2026-11-26", 12)[0] == 0
    assert rendered(tmp_path, "2026-11-26") == set(TEXTS[:12])
    # A third renders only what is new.
    assert night("2026-11-28", 15)[0] == 0
    assert rendered(tmp_path, "2026-11-28") == {TEXTS[14]}


@pytest.mark.usefixtures("inline")
def test_each_night_renders_what_is_new_and_what_was_left(tmp_path: Path, tiny_model: Path) -> None:
    """The first night loses one prompt to a fault; a rerun of a night, whenever, is the same run."""
    broken = save_model(tmp_path / "faulty", faults=[("preview", "raise", PROMPTS[1])])

    def night(date: str, count: int, model: Path = tiny_model) -> tuple[int, list[str], str]:
        result = CliRunner().invoke(app, words_of(tmp_path, model, date, count))
        return result.exit_code, sorted(rendered(tmp_path, date)), result.output

    code, clips, said = night("2026-11-26", 2, broken)
    assert (code, clips) == (3, [PROMPTS[0]]), said
    code, clips, said = night("2026-11-27", 3)
    assert (code, clips) == (0, sorted(PROMPTS[1:3])), said
    code, clips, said = night("2026-11-28", 3)
    assert (code, clips) == (0, [])
    assert "none of these prompts is left for this job" in said
    code, clips, said = night("2026-11-27", 3)  # after midnight
    assert (code, clips) == (0, sorted(PROMPTS[1:3])), said
    assert "Nothing to do" in said
    assert not (tmp_path / "nights" / "2026-11-28" / "run.json").exists()
