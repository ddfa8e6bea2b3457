"""The stages that run models: what they have their card for, and which weights they take."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from s3fs import S3FileSystem
from support import PROMPTS, S3, Link, tiny_overrides, write_prompts

import flashvideo_ray
from flashvideo_ray import Settings
from flashvideo_ray.graph import rescore, scoring, stage_base, stages
from flashvideo_ray.graph.publishing import Publisher
from flashvideo_ray.graph.recipe import recipe_of
from flashvideo_ray.graph.stage_base import LoadError, StageBase
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.settings import ScorerSettings


@pytest.mark.usefixtures("inline")
def test_no_card_waits_for_an_encoder_or_the_store(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding: list[str] = []
    done: list[tuple[str, bool]] = []
    device = StageBase.device

    @contextmanager
    def held(stage: StageBase, row: dict[str, Any]) -> Iterator[None]:
        with device(stage, row):
            holding.append(stage.name)
            try:
                yield
            finally:
                holding.pop()

    def noted(kind: type, name: str) -> None:
        method: Callable[..., Any] = getattr(kind, name)

        def calling(*arguments: Any, **options: Any) -> Any:
            done.append((name, bool(holding)))
            return method(*arguments, **options)

        monkeypatch.setattr(kind, name, calling)

    monkeypatch.setattr(StageBase, "device", held)
    noted(Publisher, "preview")
    noted(Publisher, "clip")
    noted(Store, "put")
    prompts = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:1])
    settings = Settings.load("nano", tiny_overrides(tiny_model))
    assert flashvideo_ray.render(prompts, str(tmp_path / "run"), settings).ended == {"rendered": 1}
    assert {*done} == {("put", False), ("preview", False), ("clip", False)}


class Dismissing:
    """Events of a stage that may end as soon as it cannot be loaded."""

    def __getattr__(self, name: str) -> Any:
        answers = {"starting": 0.0, "dismissed": True}
        return lambda *_: answers.get(name)


@pytest.mark.parametrize("stage", [stages.EncodeText, stages.Preview, stages.Refine])
def test_no_stage_loads_other_weights_than_the_runs(
    stage: Any, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node with last week's folder must not render under this week's clip_id."""
    monkeypatch.setattr(stage_base, "LOAD_PAUSES", ())
    settings = Settings.load("nano", tiny_overrides(tiny_model))
    prints = {"preview": "last week's", "refine": "last week's"}
    own: dict[str, Any] = {"fingerprints": prints}
    if stage is not stages.EncodeText:
        own["store"] = Store(str(tmp_path))
    if stage is stages.Refine:
        own = {"store": own["store"], "fps": 8, "provenance": {"model_fingerprints": json.dumps(prints)}}
    with pytest.raises(LoadError, match="weights are not those of the run"):
        stage(settings, Dismissing(), **own)


def test_a_preview_whose_latents_were_removed_fails_by_that_name(tmp_path: Path, tiny_model: Path) -> None:
    settings = Settings.load("nano", tiny_overrides(tiny_model))
    prints = recipe_of(settings)["fingerprints"]
    provenance = {"model_fingerprints": json.dumps(prints)}
    refine = stages.Refine(settings, Dismissing(), Store(str(tmp_path)), 8, provenance)
    row = {**dict.fromkeys(stage_base.row_schema().names), "clip_id": "ab", "status": "previewed"}
    with pytest.raises(stages.RemovedError, match="its latents were removed: `render` makes them anew"):
        refine.process(row)


@pytest.fixture
def link(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    """The way from this process to the store. Its connections are of no other test."""
    link = Link(int(s3.endpoint.rpartition(":")[2]))
    monkeypatch.setenv("AWS_ENDPOINT_URL", link.endpoint)
    S3FileSystem.clear_instance_cache()
    yield link
    S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("stage", [stages.Preview, scoring.Score, stages.Refine])
def test_a_loaded_stage_has_its_store_open(stage: Any, s3: S3, link: Link, tmp_path: Path, tiny_model: Path) -> None:
    """Its first call, with a card that waits, would import a client's libraries and open a connection otherwise."""
    settings = Settings.load("nano", tiny_overrides(tiny_model))
    prints = recipe_of(settings)["fingerprints"]
    own: dict[str, Any] = {"fps": 8, "provenance": {"model_fingerprints": json.dumps(prints)}}
    if stage is stages.Preview:
        own = {"fingerprints": prints}
    stage(settings, Dismissing(), store=Store(f"s3://{s3.bucket}/{tmp_path.name}"), **own)
    assert link.passed


def test_the_actors_that_add_scores_have_it_open_likewise(s3: S3, link: Link, tmp_path: Path) -> None:
    rescore.Rescore([ScorerSettings(name="motion")], Store(f"s3://{s3.bucket}/{tmp_path.name}"), 8)
    assert link.passed


def test_a_store_that_is_away_keeps_no_stage_from_loading(
    s3: S3, link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashvideo_ray.ledger.store._OPEN_SECONDS", 0.1)
    link.cut()
    store = Store(f"s3://{s3.bucket}/{tmp_path.name}")
    assert scoring.Score(Settings.load("nano"), Dismissing(), store, 8, {}).panel
    assert not link.passed
