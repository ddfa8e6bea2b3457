"""Adapters: diffusers' files and the official trainer's, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flashvideo_ray.models import FlashVideoPreviewPipeline
from flashvideo_ray.models.lora import AdapterError, adapter_tensors
from flashvideo_ray.models.official import PREFIX, transformer_recipes

WIDTH, TIME, RANK = 32, 16, 3  # of the tiny model


def official_adapter() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    layers = {
        "transformer.layers.0.attention.query_key_value": (WIDTH, [WIDTH] * 3),
        "transformer.layers.1.attention.dense": (WIDTH, [WIDTH]),
        "mixins.adaln_layer.adaLN_modulations.1.1": (TIME, [12 * WIDTH]),
    }
    factors = {}
    for name, (inputs, outputs) in layers.items():
        for part, rows in enumerate(outputs):
            factors[f"{name}.matrix_A.{part}"] = torch.randn(RANK, inputs)
            factors[f"{name}.matrix_B.{part}"] = torch.randn(rows, RANK)
    return factors


def test_the_official_trainers_adapter_merges_as_its_checkpoints_do(tiny_model: Path) -> None:
    """`convert` merges the same factors into zeros: the reference's own arithmetic."""
    pytest.importorskip("peft")
    factors = official_adapter()
    pipe = FlashVideoPreviewPipeline.from_pretrained(tiny_model / "preview")
    before = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}
    pipe.load_lora_weights({PREFIX + key: value for key, value in factors.items()}, adapter_name="own")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    after = pipe.transformer.state_dict()
    rows = {"query_key_value": 3 * WIDTH, "dense": WIDTH, "1": 12 * WIDTH}
    tensors = dict(factors)
    for layer in {key.split(".matrix_")[0] for key in factors}:
        inputs = factors[f"{layer}.matrix_A.0"].shape[1]
        tensors[f"{layer}.original.weight"] = torch.zeros(rows[layer.split(".")[-1]], inputs)
    recipes = transformer_recipes(tensors, 2, 1)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == 6
    for name in changed:
        torch.testing.assert_close(after[name] - before[name], recipes[name].make(tensors), atol=1e-5, rtol=1e-4)


def test_names_with_and_without_prefixes_are_the_same_adapter() -> None:
    name = "transformer_blocks.0.attn1.to_q.lora_{}.weight"
    for prefix in ("", "transformer.", "base_model.model."):
        given = {prefix + name.format("A"): torch.zeros(2, 4), prefix + name.format("B"): torch.zeros(4, 2)}
        assert list(adapter_tensors(given)) == [f"transformer.{name.format(letter)}" for letter in "AB"]


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("transformer_blocks.0.attn1.to_q.lora_A.weight", (2, 32), "without transformer.*lora_B"),
        ("transformer_blocks.9.attn1.to_q.lora_A.weight", (2, 32), "no such layer"),
        ("lora_unet_blocks_0.lora_down.weight", (2, 32), "unknown keys in the adapter: lora_unet_blocks_0"),
        ("transformer.layers.0.mlp.dense_h_to_4h.matrix_A.0", (2, 32), "unknown keys.*dense_h_to_4h"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_with_its_keys(
    tiny_model: Path, key: str, shape: tuple[int, int], message: str
) -> None:
    pytest.importorskip("peft")
    pipe = FlashVideoPreviewPipeline.from_pretrained(tiny_model / "preview")
    with pytest.raises(AdapterError, match=message):
        pipe.load_lora_weights({key: torch.zeros(shape)})


def test_without_peft_the_error_names_the_extra(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashvideo_ray.models.lora.USE_PEFT_BACKEND", False)
    pipe = FlashVideoPreviewPipeline.from_pretrained(tiny_model / "preview")
    with pytest.raises(ImportError, match=r"pip install 'flashvideo-ray\[lora\]'"):
        pipe.load_lora_weights({"a": torch.zeros(1)})
