"""Text: what candidates of a prompt share is made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as unpack

from flashvideo_ray import engines
from flashvideo_ray.engines import weights
from flashvideo_ray.graph.events import Attempt
from flashvideo_ray.graph.stages import EncodeText
from flashvideo_ray.settings import Settings


class Alone:
    """Events of a stage that nobody watches."""

    def __getattr__(self, name: str) -> Any:
        answers = {"starting": 0.0, "begin": 1, "attempt": Attempt(1, overdue=False), "admit": "go"}
        return lambda *_: answers.get(name)


def test_a_text_that_both_stages_read_alike_is_there_for_each_of_them() -> None:
    settings = Settings.load("nano")  # its stages have no prefixes
    stage = EncodeText(settings, Alone(), {"preview": engines.of(settings, "preview").fingerprint()})  # type: ignore[arg-type]
    row = {"clip_id": "a", "id": "a", "prompt": "A red star.", "negative_prompt": "", "status": "open"}
    made = unpack(stage.process(row)["prompt_embeds"])
    assert set(made) == {"preview", "refine"}
    assert torch.equal(made["preview"], made["refine"])


def test_distinct_prompts_are_encoded_once_however_many_candidates_they_have(tiny_model: Path) -> None:
    settings = weights.with_model_defaults(
        Settings.of_tree({"preview": {"model": str(tiny_model)}, "refine": {"model": str(tiny_model)}})
    )
    prints = {"preview": engines.of(settings, "preview").fingerprint()}
    stage = EncodeText(settings, Alone(), prints)  # type: ignore[arg-type]
    encoded = []
    # All that it encodes goes through this model's one encoder.
    encode = stage._encode.__wrapped__.__self__._encoder.text_encoder  # type: ignore[attr-defined]
    encode.register_forward_hook(lambda *_: encoded.append(1))
    rows = [
        {"clip_id": f"{prompt}{number}", "id": prompt, "prompt": prompt, "negative_prompt": "blue", "status": "open"}
        for prompt in ("a red circle", "a green star")
        for number in range(4)
    ]
    made = [unpack(stage.process(dict(row))["prompt_embeds"]) for row in rows]
    assert len(encoded) == 2 * 2 + 1  # each prompt with each stage's prefix, and the negative prompt
    assert all(torch.equal(made[0][name], made[3][name]) for name in made[0])
    assert not torch.equal(made[0]["preview"], made[4]["preview"])
