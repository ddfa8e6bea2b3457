"""Text: what candidates of a prompt share is made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load as unpack

from flashvideo_ray import engines
from flashvideo_ray.graph.bundles import bundled, unbundled
from flashvideo_ray.graph.events import Attempt, Begin
from flashvideo_ray.graph.stage_base import row_schema
from flashvideo_ray.graph.stages import EncodeText, EncodeTexts
from flashvideo_ray.settings import Settings


class Alone:
    """Events of a stage that nobody watches."""

    def __getattr__(self, name: str) -> Any:
        answers = {"starting": 0.0, "begin": Begin(1), "attempt": Attempt(1, overdue=False), "admit": "go"}
        return lambda *_: answers.get(name)


def test_a_text_that_both_stages_read_alike_is_there_for_each_of_them() -> None:
    settings = Settings.load("nano")  # its stages have no prefixes
    stage = EncodeText(settings, Alone(), {"preview": engines.of(settings, "preview").fingerprint()})  # type: ignore[arg-type]
    one = {"clip_id": "a", "id": "a", "prompt": "A red star.", "negative_prompt": "", "status": "open"}
    made = unpack(stage.process(one)["prompt_embeds"])
    assert set(made) == {"preview.prompt.prompt_embeds", "refine.prompt.prompt_embeds"}
    assert torch.equal(made["preview.prompt.prompt_embeds"], made["refine.prompt.prompt_embeds"])


def row(prompt: str, number: int, **columns: Any) -> dict[str, Any]:
    clip_id = f"{prompt} {number}"
    own = {"clip_id": clip_id, "id": prompt, "prompt": prompt, "seed": number, "candidate": number, "status": "open"}
    return {**dict.fromkeys(row_schema().names), **own, "group": 0, **columns}


@pytest.fixture(scope="module")
def settings(tiny_model: Path) -> Settings:
    return engines.with_model_defaults(
        Settings.of_tree({"preview": {"model": str(tiny_model)}, "refine": {"model": str(tiny_model)}})
    )


def counting(settings: Settings, encoded: list[int], **options: Any) -> EncodeTexts:
    """An actor's stage; each work of its encoder is noted."""
    prints = {"preview": engines.of(settings, "preview").fingerprint()}
    stage = EncodeTexts(settings, Alone(), prints, **options)  # type: ignore[arg-type]
    # All that it encodes goes through this model's one encoder.
    encoder = next(iter(stage._encoders.values()))[0].prompt.__wrapped__.__self__._encoder.text_encoder  # type: ignore[attr-defined]
    encoder.register_forward_hook(lambda *_: encoded.append(1))
    return stage


def test_distinct_prompts_are_encoded_once_whatever_actors_take_their_candidates(settings: Settings) -> None:
    encoded: list[int] = []
    actors = [counting(settings, encoded) for _ in range(2)]
    texts = [f"a red circle moves {way}" for way in ("left", "right", "up", "down")]
    # As they may come: a prompt's candidates are not side by side, and two prompts have the same text.
    rows = [row(text, number) for number in range(3) for text in texts] + [row(texts[0], 9, id="the same again")]
    [bundles] = bundled(pa.Table.from_pylist(rows, schema=row_schema()), "prompt")
    done = [
        one for index in range(bundles.num_rows) for one in actors[index % 2](bundles.slice(index, 1))
    ]  # each bundle is a block: whoever is free takes the next
    assert len(encoded) == len(texts) * 2  # once with each stage's prefix
    assert {one.num_rows for one in done} == {1}
    made = pa.concat_tables(done).to_pylist()
    assert [one["clip_id"] for one in made[:4]] == [*(f"{texts[0]} {number}" for number in (0, 1, 2, 9))]
    assert {one["clip_id"] for one in made} == {one["clip_id"] for one in rows}
    # What it took is told once, too.
    assert len([one for one in made if one["text_seconds"] is not None]) == len(texts)
    by_id = {one["clip_id"]: unpack(one["prompt_embeds"]) for one in made}
    for stage in ("preview.prompt.prompt_embeds", "refine.prompt.prompt_embeds"):
        assert torch.equal(by_id[f"{texts[0]} 0"][stage], by_id[f"{texts[0]} 9"][stage])
        assert not torch.equal(by_id[f"{texts[0]} 0"][stage], by_id[f"{texts[1]} 0"][stage])


def test_a_negative_prompt_is_encoded_once_by_each_actor_however_many_there_are(settings: Settings) -> None:
    encoded: list[int] = []
    actors = [counting(settings, encoded) for _ in range(2)]
    negatives = [f"over {number} moves" for number in range(15)]
    rows = [row(f"the {number}", 0, negative_prompt=negatives[number % 15]) for number in range(60)]
    [bundles] = bundled(pa.Table.from_pylist(rows, schema=row_schema()), "prompt")
    made = [one for index in range(60) for one in actors[index % 2](bundles.slice(index, 1))]
    assert len(encoded) == 60 * 2 + 15 * len(actors)  # a prompt's text for each stage
    assert "refine.negative.prompt_embeds" in unpack(made[0]["prompt_embeds"][0].as_py())


def test_the_first_row_of_a_bundle_goes_on_before_the_next_is_looked_at(settings: Settings) -> None:
    rows = pa.Table.from_pylist([row("a red circle", number) for number in range(2)], schema=row_schema())
    going = counting(settings, [])(next(bundled(rows, "prompt")))
    assert next(going).to_pylist()[0]["clip_id"] == "a red circle 0"


def test_a_text_is_encoded_for_the_stages_that_are_to_come(settings: Settings) -> None:
    encoded: list[int] = []
    stage = counting(settings, encoded, readers=("preview",))
    [bundle] = bundled(pa.Table.from_pylist([row("a red star", 0)], schema=row_schema()), "prompt")
    [made] = stage(bundle)
    assert unpack(made["prompt_embeds"][0].as_py()).keys() == {"preview.prompt.prompt_embeds"}
    assert len(encoded) == 1


def test_bundles_come_in_tables_of_some_and_in_the_order_of_their_first_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashvideo_ray.graph.bundles._AT_ONCE", 2)
    for texts in ("aabbbc", "abcab", "a", "abcd"):
        rows = pa.table({"prompt": [*texts], "number": [*range(len(texts))]})
        chunks = pa.concat_tables([rows.slice(0, 2), rows.slice(2)])
        tables = [*bundled(chunks, "prompt")]
        assert [table.num_rows for table in tables] == [2] * (len({*texts}) // 2) + [1] * (len({*texts}) % 2)
        found = [one.to_pylist()[0] for table in tables for one in unbundled(table)]
        assert found == sorted(rows.to_pylist(), key=lambda row: texts.index(row["prompt"]))
