"""The same command again: what was paid for is not paid for twice, whatever ended the job before."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faulty
import pytest
from support import PROMPTS, at_a_terminal, ctrl_c, script, short_lease, tiny_overrides, write_prompts
from tiny import save_model
from typer.testing import CliRunner

import flashvideo_ray
from flashvideo_ray import Settings
from flashvideo_ray.cli import app
from flashvideo_ray.errors import InputError
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.claim import Claim, ClaimLostError
from flashvideo_ray.ledger.holder import Identity
from flashvideo_ray.ledger.keys import clip_key, latents_key
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.media import provenance, video


def rows(output: Path, table: tables.Table) -> dict[str, dict[str, Any]]:
    return {row["clip_id"]: row for row in tables.read(Store(str(output)), table).to_pylist()}


@pytest.mark.usefixtures("inline")
def test_what_was_stored_but_not_in_the_ledger_is_checked_and_adopted(tmp_path: Path, tiny_model: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:4])
    output = tmp_path / "run"
    settings = Settings.load("nano", tiny_overrides(tiny_model))
    flashvideo_ray.render(prompts, str(output), settings)
    before = rows(output, "clips")
    scores = {clip_id: row["score_motion"] for clip_id, row in rows(output, "previews").items()}
    media = {path: path.read_bytes() for path in output.glob("clips/*/*.mp4")}

    # As if the job had been killed after its last upload and before its first ledger part.
    shutil.rmtree(output / "ledger")
    whole, damaged, gone, other = sorted(before)
    (output / clip_key(damaged)).write_bytes(media[output / clip_key(damaged)][:2000])
    (output / clip_key(gone)).unlink()
    shutil.copy(output / clip_key(whole), output / clip_key(other))
    (output / latents_key(gone)).write_bytes(b"not latents")
    result = flashvideo_ray.render(prompts, str(output), settings)

    assert result.total == {"rendered": 4}
    after = rows(output, "clips")
    adopted = {clip_id for clip_id, row in after.items() if row["reason"] == "found in the store, checked and adopted"}
    assert adopted == {whole}
    assert {path: path.read_bytes() for path in output.glob("clips/*/*.mp4")} == media
    previews = rows(output, "previews")
    assert {clip_id for clip_id, row in previews.items() if row["preview_seconds"] is not None} == {gone}
    assert {clip_id: row["score_motion"] for clip_id, row in previews.items()} == scores


@pytest.mark.usefixtures("inline")
def test_what_videos_tell_may_change_at_any_time_and_a_clip_that_tells_more_is_not_adopted(
    tmp_path: Path, tiny_model: Path
) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:2])
    output = tmp_path / "run"
    flashvideo_ray.render(prompts, str(output), Settings.load("nano", tiny_overrides(tiny_model)))
    before = rows(output, "clips")
    for part in (output / "ledger").glob("clips-*"):
        part.unlink()
    minimal = Settings.load("nano", [*tiny_overrides(tiny_model), "video.metadata=minimal"])
    flashvideo_ray.render(prompts, str(output), minimal)
    for clip_id, row in rows(output, "clips").items():
        assert row["sha256"] != before[clip_id]["sha256"]
        assert row["stream_sha256"] == before[clip_id]["stream_sha256"]
        made = video.probe(output / row["clip"]).metadata
        assert made["clip_id"] == clip_id
        assert not {*provenance.PRIVATE} & {*made}
        assert row["prompt"].encode() not in (output / row["clip"]).read_bytes()


@pytest.mark.usefixtures("inline")
def test_failed_candidates_are_taken_up_again_when_asked(tmp_path: Path, tiny_model: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:2])
    output = tmp_path / "run"
    flashvideo_ray.preview(prompts, str(output), Settings.load("nano", tiny_overrides(tiny_model)))
    lost = next(iter(rows(output, "previews").values()))
    latents = output / lost["latents"]
    kept = latents.rename(tmp_path / "kept")
    assert flashvideo_ray.refine(str(output)).ended == {"rendered": 1, "failed": 1}
    assert rows(output, "clips")[lost["clip_id"]]["error_class"] == "FileNotFoundError"

    kept.rename(latents)
    assert flashvideo_ray.refine(str(output)).ended == {}
    assert flashvideo_ray.refine(str(output), retry="failed:RuntimeError").ended == {}
    again = flashvideo_ray.refine(str(output), retry="failed:FileNotFoundError")
    assert (again.ended, again.total) == ({"rendered": 1}, {"rendered": 2})
    assert flashvideo_ray.refine(str(output), retry="failed").ended == {}
    with pytest.raises(InputError, match="--retry all: write failed"):
        flashvideo_ray.refine(str(output), retry="all")


@pytest.mark.usefixtures("inline")
def test_a_job_that_lost_its_run_ends_though_no_row_comes(tmp_path: Path) -> None:
    faulty.known()  # to this process, where the stages run
    model = save_model(tmp_path / "model", [("refine", "hang", PROMPTS[0])])
    settings = Settings.load("nano", [*tiny_overrides(model), *short_lease(3)])
    store = Store(str(tmp_path / "run"))

    def take() -> None:
        while not store.keys("latents"):  # of the one that hangs, in stage 2
            if over.wait(0.1):
                return
        with Claim(store, Identity.of_this_process(), takeover=True):
            over.wait(60)

    over = threading.Event()
    other = threading.Thread(target=take)
    other.start()
    try:
        with pytest.raises(ClaimLostError):
            flashvideo_ray.render(write_prompts(tmp_path / "prompts.parquet", PROMPTS[:1]), store.url, settings)
    finally:
        over.set()
        other.join()
    assert store.keys("clips") == []


STOPPED = "Stopped. What is done is in the ledger; the same command carries on."


@pytest.mark.long
@pytest.mark.usefixtures("inline")
def test_a_job_that_is_stopped_says_so_in_a_line_and_is_carried_on(tmp_path: Path, tiny_model: Path) -> None:
    """By Ctrl-C, which all that it started get as well, and by SIGTERM (`ray job stop`); SIGKILL is in `test_chaos`."""
    prompts = write_prompts(tmp_path / "prompts.parquet", [f"a red circle moves left {n}" for n in range(16)])
    output, console = tmp_path / "run", tmp_path / "first.log"
    words = [word for override in tiny_overrides(tiny_model) for word in ("--set", override)]
    command = [script("flashvideo-ray"), "render", prompts, str(output), "-c", "nano", *words]
    with open(console, "wb") as log:
        job = at_a_terminal(command, stdout=log, stderr=log)
    deadline = time.monotonic() + 200
    while len(clips(output)) < 3:
        assert time.monotonic() < deadline
        assert job.poll() is None, console.read_text()
        time.sleep(0.1)
    said = console.stat().st_size
    ctrl_c(job)
    assert job.wait(30) == 1
    told = console.read_bytes()[said:].decode().splitlines()
    assert [line for line in told if " busy" not in line] == [STOPPED], told  # beside the last line of progress
    stored = clips(output)
    assert 3 <= len(stored) < 16

    with in_the_meantime(lambda: len(clips(output)) >= len(stored) + 3, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        again = CliRunner().invoke(app, command[1:])
    assert (again.exit_code, again.output.splitlines()[-1]) == (1, STOPPED), again.output
    assert stored.items() < clips(output).items()
    stored = clips(output)
    assert len(stored) < 16

    again = CliRunner().invoke(app, command[1:])
    assert again.exit_code == 0, again.output
    assert Counter(row["status"] for row in rows(output, "clips").values()) == {"rendered": 16}
    assert stored.items() < clips(output).items()


def clips(output: Path) -> dict[Path, int]:
    """The clips that are stored, and when they were."""
    return {path: path.stat().st_mtime_ns for path in output.glob("clips/*/*.mp4")}


@contextmanager
def in_the_meantime(come: Callable[[], bool], act: Callable[[], None]) -> Iterator[None]:
    """Within it, do something when the time has come."""
    over = threading.Event()

    def wait() -> None:
        while not over.wait(0.01):
            if come():
                return act()

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
