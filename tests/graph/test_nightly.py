"""A run for each night: one at a time on a pattern, and each renders what those before it have not."""

from __future__ import annotations

from pathlib import Path

import faulty  # noqa: F401  what the faulty model is made of is loaded by this process
import pytest
from support import PROMPTS, tiny_overrides, write_prompts
from tiny import save_model
from typer.testing import CliRunner

from flashvideo_ray import Settings
from flashvideo_ray.cli import app
from flashvideo_ray.graph.nightly import Night, NightError, held
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.claim import Claim, ClaimedError, Identity
from flashvideo_ray.ledger.store import Store

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
    import time

    time.sleep(1.2)
    with held(second, settings):
        pass


@pytest.mark.usefixtures("inline")
def test_each_night_renders_what_is_new_and_what_was_left(tmp_path: Path, tiny_model: Path) -> None:
    """The first night loses one prompt to a fault; a rerun of a night, whenever, is the same run."""
    broken = save_model(tmp_path / "faulty", faults=[("preview", "raise", PROMPTS[1])])

    def night(date: str, count: int, model: Path = tiny_model) -> tuple[int, list[str], str]:
        prompts = write_prompts(tmp_path / f"prompts-{count}.parquet", PROMPTS[:count])
        options = [word for text in tiny_overrides(model) for word in ("--set", text)]
        words = [
            "render",
            prompts,
            str(tmp_path / "nights" / "{date}"),
            "-c",
            "nano",
            "--new",
            "--date",
            date,
            *options,
        ]
        result = CliRunner().invoke(app, words)
        store = Store(str(tmp_path / "nights" / date))
        clips = tables.read(store, "clips").to_pylist()
        return result.exit_code, sorted(row["prompt"] for row in clips if row["status"] == "rendered"), result.output

    code, rendered, said = night("2026-11-26", 2, broken)
    assert (code, rendered) == (3, [PROMPTS[0]]), said
    code, rendered, said = night("2026-11-27", 3)
    assert (code, rendered) == (0, sorted(PROMPTS[1:3])), said
    code, rendered, said = night("2026-11-28", 3)
    assert (code, rendered) == (0, [])
    assert "no prompt is new" in said
    code, rendered, said = night("2026-11-27", 3)  # after midnight
    assert (code, rendered) == (0, sorted(PROMPTS[1:3])), said
    assert "Nothing to do" in said
    assert not (tmp_path / "nights" / "2026-11-28" / "run.json").exists()
