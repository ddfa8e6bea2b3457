"""One run by several jobs at once: each with a share of the prompts, all with one ledger and one report."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from support import PROMPTS, TESTS, tiny_overrides, write_prompts
from typer.testing import CliRunner

from flashvideo_ray.cli import app
from flashvideo_ray.graph import checks, ending
from flashvideo_ray.ledger import jobs, parquet_log, run_file, tables
from flashvideo_ray.ledger.shard import Shard
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.nano.vocabulary import EXAMPLES
from flashvideo_ray.settings import Settings, SettingsError

TEXTS = [f"{text} {number}" for number in range(2) for text in PROMPTS]
IN_A_PROCESS = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from inline import stages_inline
from flashvideo_ray.cli import app
with stages_inline():
    app(sys.argv[1:])
"""


def command(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*words])
    return result.exit_code, result.output


def rows(output: Path, table: tables.Table) -> dict[str, dict[str, Any]]:
    """What the ledger says, without times and where they were taken."""
    found = tables.read(Store(str(output)), table).to_pylist()
    return {
        row["clip_id"]: {name: value for name, value in row.items() if name != "at" and not name.endswith("_seconds")}
        for row in found
    }


def media(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.glob("[cpl][lra]*s/??/*")}


@pytest.mark.long
@pytest.mark.usefixtures("inline")
def test_two_shards_that_were_killed_and_taken_up_equal_one_job(tmp_path: Path, tiny_model: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet", TEXTS)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    best = ["candidates=2", "select.rank=motion", "select.keep=1", "ledger.flush_rows=1"]
    options = ["-c", "nano", *(word for text in [*tiny_overrides(tiny_model), *best] for word in ("--set", text))]
    assert command("render", prompts, str(whole), *options)[0] == 0

    env = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", IN_A_PROCESS, "render", prompts, str(parts), *options, "--shard", shard],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for shard in ("1/2", "2/2")
    ]
    try:
        shares = [
            {*Shard(number, 2).of(tables.read(Store(str(whole)), "clips"))["clip_id"].to_pylist()} for number in (1, 2)
        ]
        deadline = time.monotonic() + 120
        while not all({path.stem for path in parts.glob("clips/*/*.mp4")} & share for share in shares):
            assert time.monotonic() < deadline
            for each in started:
                assert each.poll() is None, each.stderr.read().decode()
            time.sleep(0.01)
        # Nobody else may work on the run meanwhile.
        for words in (["compact", str(parts)], ["render", prompts, str(parts), *options]):
            code, said = command(*words)
            assert (code, "its shard " in said) == (2, True), said
        code, said = command("render", prompts, str(parts), *options, "--shard", "1/3")
        assert (code, "same number of shares" in said) == (2, True), said
        assert command("status", str(parts))[0] == 0
    finally:
        for each in started:
            each.send_signal(signal.SIGKILL)
            each.wait()
    made = {path: path.stat().st_mtime_ns for path in parts.glob("clips/*/*.mp4")}
    assert 2 <= len(made) < len(TEXTS)

    code, said = command("render", prompts, str(parts), *options, "--shard", "1/2")
    assert code == 0, said
    assert command("status", str(parts), "--exit-status")[0] == 2  # the other has not ended
    code, said = command("render", prompts, str(parts), *options, "--shard", "2/2")
    assert code == 0, said
    assert command("status", str(parts), "--exit-status")[0] == 0

    assert {path: path.stat().st_mtime_ns for path in made} == made  # nothing was done twice
    for table in ("candidates", "previews", "clips"):
        expected = rows(whole, table)
        found = rows(parts, table)
        adopted = {clip_id for clip_id, row in found.items() if row.get("reason") and "adopted" in row["reason"]}
        assert {*found} == {*expected}
        for clip_id, row in found.items():
            if row["status"] == "rejected" and row.get("attempts", 1) is None:
                row["attempts"] = 1  # its preview was in the ledger when its job died, so no actor judged it again
            if clip_id not in adopted:
                assert row == expected[clip_id]
    assert media(parts) == media(whole)
    store = Store(str(parts))
    code, said = command("verify", store.url)
    assert (code, "0 problems" in said) == (0, True), said
    recipes = [json.loads(Store(str(run)).get("run.json")) for run in (whole, parts)]
    assert recipes[0]["recipe"] == recipes[1]["recipe"]
    assert [run["candidates"] for run in recipes] == [2 * len(TEXTS)] * 2
    summary = json.loads(store.get("summary.json"))
    assert summary["status"] == json.loads(Store(str(whole)).get("summary.json"))["status"]
    assert Counter(row["status"] for row in jobs.read(store)) == {"running": 2, "ended": 2}

    # What failed in one share is not the failure of another, and is over with that share's next job.
    clips = Shard(1, 2).of(tables.read(store, "clips")).slice(0, 1)
    now = pa.array([dt.datetime.now(dt.UTC)], pa.timestamp("us", "UTC")).cast(pa.timestamp("ms", "UTC"), safe=False)
    for name, value in {"status": "failed", "error_class": "OSError", "at": now}.items():
        clips = tables.with_column(clips, name, value)
    parquet_log.write(store, tables.stem("clips"), clips)
    assert [command("render", prompts, store.url, *options, "--shard", each)[0] for each in ("1/2", "2/2")] == [3, 0]
    command("render", prompts, store.url, *options, "--shard", "1/2", "--retry", "failed")
    assert command("status", str(parts), "--exit-status")[0] == 0

    # Nothing is left for any of them, nor for a job on all; whose end is then that of the run.
    code, said = command("render", prompts, store.url, *options, "--shard", "2/2")
    assert (code, "Nothing to do" in said) == (0, True), said
    assert command("render", prompts, store.url, *options)[0] == 0
    assert store.exists(ending.FILE)


@pytest.mark.long
@pytest.mark.usefixtures("inline")
def test_eight_shards_of_eight_jobs_equal_one_job(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet", [*EXAMPLES] * 4, seed=[*range(12)])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ["-c", "nano", "--set", "select.require=[motion > 1]"]
    code, said = command("render", prompts, str(whole), *options)
    assert code == 0, said
    env = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}

    def job(number: int) -> None:
        words = ["render", prompts, str(parts), *options, "--shard", f"{number}/8"]
        done = subprocess.run([sys.executable, "-c", IN_A_PROCESS, *words], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    with ThreadPoolExecutor(2) as pool:  # as many at a time as there are cores
        list(pool.map(job, range(1, 9)))
    for table in ("candidates", "previews", "clips"):
        assert rows(parts, table) == rows(whole, table)
    assert media(parts) == media(whole)
    code, said = command("verify", str(parts))
    assert (code, "0 problems" in said) == (0, True), said
    assert command("status", str(parts), "--exit-status")[0] == 0
    summaries = [json.loads(Store(str(run)).get("summary.json"))["status"] for run in (whole, parts)]
    assert summaries[0] == summaries[1]


def test_the_end_of_all_shards_together_is_the_worst_of_them(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for number, status in ((1, 0), (2, 3), (3, 0)):
        with pytest.raises(run_file.NoRunError, match=r"has ended here|have not ended"):
            ending.exit_status(store)
        store.put(ending.file_of(Shard(number, 3)), json.dumps({"exit_status": status}).encode())
    assert ending.exit_status(store) == 3
    ending.forget(store, Shard(2, 3))
    with pytest.raises(run_file.NoRunError, match="shards 2/3 have not ended"):
        ending.exit_status(store)
    ending.forget(store, Shard(1, 2))
    assert store.keys("exit") == []


def test_of_two_shards_that_begin_a_run_at_once_with_other_recipes_one_is_refused(tmp_path: Path) -> None:
    class Slow(Store):
        """Another job writes run.json between this one's look and its own writing."""

        def create(self, key: str, data: bytes) -> bool:
            run_file.open_run(Store(self.url), {"seed": 1}, {"settings": {}, "candidates": 1})
            return super().create(key, data)

    about = {"settings": {}, "candidates": 1}
    with pytest.raises(run_file.RecipeError, match="seed: 1 there, 2 now"):
        run_file.open_run(Slow(str(tmp_path)), {"seed": 2}, about)
    assert run_file.open_run(Slow(str(tmp_path)), {"seed": 1}, about)["recipe"] == {"seed": 1}


def test_rules_over_the_whole_run_are_not_for_a_share_of_it() -> None:
    settings = Settings.load("nano", ["select.duplicates=3", "select.duplicates_within=run"])
    with pytest.raises(SettingsError, match="--until preview"):
        checks.check_shard(Shard(1, 2), settings, "refine")
    checks.check_shard(Shard(1, 2), settings, "preview")
    checks.check_shard(None, settings, "refine")


def test_a_candidate_that_two_shards_would_make_is_refused_by_each(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet", ["a"] * 9, seed=[*range(9)])
    for shard in ("1/2", "2/2"):
        words = ["--set", "candidates=2", "--shard", shard]
        code, said = command("render", prompts, str(tmp_path / "run"), "-c", "nano", *words)
        assert (code, "have the same text" in said) == (2, True), said
    assert not (tmp_path / "run").exists()


def test_the_time_of_jobs_side_by_side_counts_once(tmp_path: Path) -> None:
    def row(until: int, seconds: float) -> dict[str, Any]:
        at = dt.datetime(2026, 11, 26, tzinfo=dt.UTC) + dt.timedelta(seconds=until)
        return {
            "at": at,
            "seconds": seconds,
            **{f"{s}_{n}_seconds": None for s in jobs.STAGES for n in ("held", "busy")},
        }

    assert jobs.usage([row(100, 100), row(110, 100), row(300, 50), row(300, 10)])[0] == 160
