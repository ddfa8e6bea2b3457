"""Rounds of a job: what broke off is begun again where another try can help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from support import PROMPTS, Days, tiny_overrides, write_prompts

import flashvideo_ray
from flashvideo_ray import Settings
from flashvideo_ray.graph import pipeline, rounds

FULL = "OSError: [Errno 28] No space left on device"
NO_START = ActorDiedError(RayTaskError("__init__", FULL, OSError(28, "No space left on device"), actor_id="0"))


@pytest.mark.usefixtures("inline")
def test_a_worker_that_cannot_begin_for_a_while_ends_no_job(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's part of a worker writes files before ours begins: its host's disk may be full."""
    build_graph, begun = pipeline.build_graph, []

    def graph(*arguments: Any) -> Any:
        begun.append(arguments)
        if len(begun) <= broken:
            raise NO_START
        return build_graph(*arguments)

    monkeypatch.setattr(pipeline, "build_graph", graph)
    monkeypatch.setattr(rounds, "_START_PAUSES", (0.0, 0.0))
    prompts = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:2])
    settings = Settings.load("nano", tiny_overrides(tiny_model))
    broken = 2
    assert flashvideo_ray.render(prompts, str(tmp_path / "run"), settings).ended == {"rendered": 2}
    assert len(begun) == 3

    begun.clear()
    broken = 3
    with pytest.raises(ActorDiedError, match="No space left"):
        flashvideo_ray.render(prompts, str(tmp_path / "other"), settings)
    assert len(begun) == 3


def test_the_last_rows_are_waited_for_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    days = Days()
    monkeypatch.setattr(rounds, "time", days)

    def flush() -> None:
        if days.now < 100:
            raise OSError("503")

    rounds._insist(flush, 600.0)
    assert 100 <= days.now < 130
    assert 5 <= len(caplog.records) <= 20
    with pytest.raises(OSError, match="503"):
        rounds._insist(lambda: refuse(OSError("503")), 60.0)


def test_rows_that_went_with_their_process_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    days = Days()
    monkeypatch.setattr(rounds, "time", days)
    with pytest.raises(ActorDiedError):
        rounds._insist(lambda: refuse(ActorDiedError()), 600.0)
    assert days.now == 0


def refuse(error: Exception) -> None:
    raise error
