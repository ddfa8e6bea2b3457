"""The stages that run models: what they have their card for, and which weights they take."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import PROMPTS, tiny_overrides, write_prompts

import flashvideo_ray
from flashvideo_ray import Settings
from flashvideo_ray.graph import stage_base, stages
from flashvideo_ray.graph.publishing import Publisher
from flashvideo_ray.graph.stage_base import LoadError, StageBase
from flashvideo_ray.ledger.store import Store


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
