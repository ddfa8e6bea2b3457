"""FlashVideo behind the engine: a card that is too small, weights that are not the run's, options and adapters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from safetensors.torch import save_file

from flashvideo_ray import engines
from flashvideo_ray.engines import weights
from flashvideo_ray.engines.engine import NonFiniteError, Text
from flashvideo_ray.settings import Settings

RED = "a red circle moves left"


def settings_for(model: Path, *overrides: str) -> Settings:
    return engines.with_model_defaults(
        Settings.of_tree({"preview": {"model": str(model)}, "refine": {"model": str(model)}}, overrides)
    )


def quiet(done: int, total: int) -> None:
    """Nobody is told."""


@pytest.fixture(scope="module")
def made(tiny_model: Path) -> dict[str, Any]:
    """Embeddings, latents and a clip, as an actor with enough memory makes them."""
    settings = settings_for(tiny_model)
    text = Text(RED, embeds=engines.of(settings, "preview").load_text().encode(RED))
    preview = engines.of(settings, "preview").load_preview()
    latents, note = preview.sample(text, 7, quiet)
    clip, clip_note = engines.of(settings, "refine").load_refine().refine(latents, text, 7, quiet)
    assert (note, clip_note) == (None, None)
    return {"settings": settings, "text": text, "latents": latents, "clip": clip}


def small_card(network: Any, most: int) -> list[int]:
    """Let a network fail for want of memory on inputs of more elements; returns the sizes that it was called with."""
    sizes: list[int] = []

    def before(_: Any, args: tuple[Any, ...]) -> None:
        sizes.append(args[0].numel())
        if args[0].numel() > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    network.register_forward_pre_hook(before)
    return sizes


def test_latents_are_kept_in_float32_whatever_the_network_computes_in(tiny_model: Path, made: dict[str, Any]) -> None:
    settings = settings_for(tiny_model, "preview.dtype=bfloat16")
    latents, _ = engines.of(settings, "preview").load_preview().sample(made["text"], 7, quiet)
    assert latents.dtype == torch.float32
    assert not torch.equal(latents, latents.to(torch.bfloat16).float())


def test_latents_of_older_runs_are_taken_up_as_they_are(made: dict[str, Any]) -> None:
    refine = engines.of(made["settings"], "refine").load_refine()
    clip, _ = refine.refine(made["latents"].to(torch.bfloat16), made["text"], 7, quiet)
    assert clip.shape == made["clip"].shape


def on_the_cpu(frames: torch.Tensor) -> np.ndarray:
    """Float frames in [0, 1], [frames, 3, height, width], as RGB uint8 [frames, height, width, 3]."""
    return np.rint(frames.numpy().clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)


def test_frames_are_rounded_on_the_device_as_on_the_cpu(made: dict[str, Any]) -> None:
    pipe = engines.of(made["settings"], "refine").load_refine()._pipe
    latents = torch.randn(1, 3, 4, 8, 36)
    for tiling, tiles in (("none", None), ("reference", (1, 2)), ("blend", (1, 2))):
        frames = pipe.decode_latents(latents, tiling=tiling, tiles=tiles)
        rounded = pipe.decode_latents(latents, tiling=tiling, tiles=tiles, quantise=True)
        assert np.array_equal(rounded[0].numpy(), on_the_cpu(frames[0]))


def test_infinite_values_of_the_decoder_are_refused(made: dict[str, Any]) -> None:
    preview = engines.of(made["settings"], "preview").load_preview()
    with torch.no_grad():
        preview._pipe.vae.decoder.conv_out.conv.bias.fill_(float("inf"))
    with pytest.raises(NonFiniteError, match="the preview decoder gave NaN or infinite values"):
        preview.decode(made["latents"])


def test_each_phase_that_runs_out_of_memory_takes_its_own_next_rung_and_stays_there(made: dict[str, Any]) -> None:
    refine = engines.of(made["settings"], "refine").load_refine()
    pipe, text, latents = refine._pipe, made["text"], made["latents"]
    encoded = small_card(pipe.vae.encoder, 3 * 9 * 64 * 64)  # half the width fits
    note = "encoded by 16 frames in 1x2 tiles for want of memory; denoised with guidance apart for want of memory"
    batches = []

    def one_sample(_: Any, args: tuple[Any, ...]) -> None:
        batches.append(len(args[0]))
        if len(args[0]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    pipe.transformer.proj_out.register_forward_pre_hook(one_sample)
    first, said = refine.refine(latents, text, 7, quiet)
    assert said == note
    calls, tried = len(encoded), batches.count(2)
    again, said = refine.refine(latents, text, 7, quiet)
    assert said == note
    assert np.array_equal(first, again)
    assert (len(encoded) - calls, batches.count(2)) == (calls - 1, tried)  # not what failed


def test_a_decode_that_runs_out_of_memory_keeps_what_was_denoised(made: dict[str, Any]) -> None:
    refine = engines.of(made["settings"], "refine").load_refine()
    steps: list[int] = []
    failed = small_card(refine._pipe.vae.decoder, 4 * 3 * 4 * 6)
    clip, note = refine.refine(made["latents"], made["text"], 7, lambda done, total: steps.append(done))
    assert note == "decoded in 2x4 tiles for want of memory"
    assert steps == [1, 2]
    assert max(failed) > 4 * 3 * 4 * 6
    assert clip.shape == made["clip"].shape


def test_weights_that_are_not_the_runs_are_refused_on_the_node(tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    engine = engines.of(settings_for(model), "preview")
    of_the_run = engine.fingerprint()
    engine.verify(of_the_run)
    config = model / "preview" / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(weights.WeightsError, match="this node's preview weights are not those of the run"):
        engine.verify(of_the_run)


def test_a_hub_model_is_pinned_to_the_commit_that_was_seen_first(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, old, new = tmp_path / "models--org--video", "a" * 40, "b" * 40
    shutil.copytree(tiny_model, repo / "snapshots" / old)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(old)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    settings = engines.with_model_defaults(Settings.of_tree({"preview": {"model": "org/video"}}))
    assert settings.preview.model == f"org/video@{old}"
    told = engines.of(settings, "preview").fingerprint()
    shutil.copytree(tiny_model, repo / "snapshots" / new)
    (repo / "refs" / "main").write_text(new)  # main moves on
    assert engines.of(settings, "preview").fingerprint() == told
    assert weights.locate(settings.preview.model, "preview").parent.name == old
    assert weights.pinned("org/video") == f"org/video@{new}"


def adapter(model: Path, file: Path, names: tuple[str, ...] = ("transformer_blocks.0.attn1.to_q",)) -> str:
    width = json.loads((model / "preview" / "transformer" / "config.json").read_text())
    inner = width["num_attention_heads"] * width["attention_head_dim"]
    torch.manual_seed(1)
    factors = {}
    for name in names:
        factors[f"transformer.{name}.lora_A.weight"] = torch.randn(2, inner)
        factors[f"transformer.{name}.lora_B.weight"] = torch.randn(inner, 2)
    save_file(factors, file)
    return str(file)


def test_an_adapter_changes_the_previews_the_fingerprint_and_nothing_of_the_recipe(
    tiny_model: Path, tmp_path: Path, made: dict[str, Any]
) -> None:
    pytest.importorskip("peft")
    path = adapter(tiny_model, tmp_path / "style.safetensors")
    plain, half, whole = (
        settings_for(tiny_model, *([f"preview.adapters=[{{path: {path}, weight: {weight}}}]"] if weight else []))
        for weight in (0, 0.5, 1)
    )
    prints = [engines.of(settings, "preview").fingerprint() for settings in (plain, half, whole)]
    assert len({*prints}) == 3
    assert plain.recipe() == half.recipe()
    network = engines.of(whole, "preview").load_preview()._pipe.transformer
    layer = network.transformer_blocks[0].attn1.to_q
    assert type(layer) is torch.nn.Linear  # merged: no layer beside it costs time
    before = engines.of(plain, "preview").load_preview()._pipe.transformer.transformer_blocks[0].attn1.to_q
    torch.manual_seed(1)
    a, b = torch.randn(2, 32), torch.randn(32, 2)
    torch.testing.assert_close(layer.weight, before.weight + b @ a)


def test_an_adapter_that_does_not_fit_is_refused_with_its_keys(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    path = adapter(tiny_model, tmp_path / "other.safetensors", ("transformer_blocks.7.attn1.to_q",))
    settings = settings_for(tiny_model, f"preview.adapters=[{{path: {path}}}]")
    [problem] = engines.of(settings, "preview").problems()
    assert problem.startswith(f"preview.adapters: {path}: the adapter does not fit")
    assert "transformer_blocks.7.attn1.to_q.lora_A.weight" in problem


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimize={attention: fash}", "no kernel is called 'fash'"),
        ("optimize.cache={name: first_block, options: {threshold: 0}}", "would skip nothing"),
        ("optimize.cache={name: first_block, options: {treshold: 1}}", "no option treshold"),
        ("optimize.cache={name: mag}", "needs mag_ratios"),
        ("optimize.cache={name: pyramid_attention, options: {spatial_attention_block_skip_range: 1}}", "skip nothing"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused_before_anything_starts(
    tiny_model: Path, override: str, message: str
) -> None:
    [problem] = engines.of(settings_for(tiny_model, f"preview.{override}"), "preview").problems()
    assert problem.startswith("preview.optimize.")
    assert message in problem


def test_a_recipe_holds_options_only_where_some_are_asked_for(tiny_model: Path) -> None:
    plain, cached = settings_for(tiny_model), settings_for(tiny_model, "preview.optimize={quantization: fp8}")
    assert "optimize" not in plain.recipe()["preview"]
    assert cached.recipe()["preview"]["optimize"]["quantization"] == "fp8"
    assert plain.stage1_recipe() != cached.stage1_recipe()
    assert isinstance(engines.of(cached, "preview").load_preview()._pipe.vae, AutoencoderKLCogVideoX)
