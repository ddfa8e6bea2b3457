"""Rounds of a job: what broke off is begun again where another try can help."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from support import PROMPTS, Days, tiny_overrides, write_prompts

import flashvideo_ray
from flashvideo_ray import Settings
from flashvideo_ray.graph import cluster, pipeline, rounds
from flashvideo_ray.graph.stage_base import StageBase
from flashvideo_ray.ledger import decisions, tables
from flashvideo_ray.ledger.store import Store

FULL = "OSError: [Errno 28] No space left on device"
NO_START = ActorDiedError(RayTaskError("__init__", FULL, OSError(28, "No space left on device"), actor_id="0"))


class Begins:
    """A dataset of which one row comes out before a worker cannot begin."""

    def __init__(self, dataset: Any):
        self._dataset = dataset

    def iter_batches(self, **options: Any) -> Iterator[Any]:
        yield next(self._dataset.iter_batches(**options))
        raise NO_START


@pytest.mark.usefixtures("inline")
def test_a_worker_that_cannot_begin_for_a_while_ends_no_job(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's part of a worker writes files before ours begins: its host's disk may be full."""
    build_graph = pipeline.build_graph
    rounds_: Iterator[str] = iter(())

    def graph(*arguments: Any) -> Any:
        what = next(rounds_)
        if what == "no start":
            raise NO_START
        dataset = build_graph(*arguments)
        return dataset if what == "all" else Begins(dataset)

    monkeypatch.setattr(pipeline, "build_graph", graph)
    monkeypatch.setattr(rounds, "_START_PAUSES", (0.0, 0.0))
    prompts = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:2])
    settings = Settings.load("nano", tiny_overrides(tiny_model))
    # Two tries, and as many again once something came of one: a night is long.
    rounds_ = iter(["no start", "no start", "one", "no start", "all"])
    assert flashvideo_ray.render(prompts, str(tmp_path / "run"), settings).ended == {"rendered": 2}
    assert next(rounds_, None) is None

    rounds_ = iter(["no start"] * 3)
    with pytest.raises(ActorDiedError, match="No space left"):
        flashvideo_ray.render(prompts, str(tmp_path / "other"), settings)
    assert next(rounds_, None) is None


@pytest.mark.usefixtures("inline")
def test_a_job_opens_only_the_pools_that_its_rows_need(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cards that nobody needs are neither asked for nor held, and no model is loaded in vain."""
    opened, asked = [], []
    init, connect = StageBase.__init__, cluster.connect

    def opening(stage: StageBase, *arguments: Any) -> None:
        opened.append(stage.name)
        init(stage, *arguments)

    def connecting(pools: Any, stages: Any) -> None:
        asked.append(stages)
        connect(pools, stages)

    monkeypatch.setattr(StageBase, "__init__", opening)
    monkeypatch.setattr(cluster, "connect", connecting)
    prompts, output = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:2]), str(tmp_path / "run")
    settings = Settings.load("nano", [*tiny_overrides(tiny_model), "select.require=motion > 1e9"])

    flashvideo_ray.preview(prompts, output, settings)
    assert opened == [*asked.pop()] == ["text", "preview", "score"]
    opened.clear()
    first = tables.read(Store(output), "previews")["clip_id"][0].as_py()
    decisions.write(Store(output), [decisions.Decision(first, "approved", "ann")])
    assert flashvideo_ray.refine(output).ended == {"rendered": 1}
    assert opened == [*asked.pop()] == ["text", "refine"]
    opened.clear()
    assert flashvideo_ray.refine(output).ended == {}
    assert (opened, asked) == ([], [])

    # A prompt more, and an approval: the new one needs all of them.
    more = write_prompts(tmp_path / "more.parquet", PROMPTS[:3])
    assert flashvideo_ray.render(more, output, settings).ended == {"rejected": 1}
    assert opened == [*asked.pop()] == ["text", "preview", "score", "refine"]


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
