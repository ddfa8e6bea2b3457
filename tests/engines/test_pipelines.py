"""Any pipeline of diffusers behind the engine: what its folder and its signature say, and what it draws."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from flashvideo_ray import engines
from flashvideo_ray.engines import families, loading
from flashvideo_ray.engines.engine import Text
from flashvideo_ray.engines.weights import ModelNotFoundError
from flashvideo_ray.models.optimize import weight_bytes
from flashvideo_ray.settings import Settings

Folders = Callable[[str], Path]
RED = "a red circle moves left"
SMALL: dict[str, Any] = {"height": 32, "width": 64, "num_frames": 9, "num_inference_steps": 2}
CALL = {"max_sequence_length": 16}  # as many tokens as the tiny networks know


def settings_for(folder: Path, *overrides: str, **preview: Any) -> Settings:
    own = {"model": str(folder), **SMALL, "call": CALL, **preview}
    return engines.with_model_defaults(Settings.of_tree({"preview": own, "refine": {"model": "none"}}, overrides))


def problems(folder: Path, *overrides: str, **preview: Any) -> list[str]:
    return engines.of(settings_for(folder, *overrides, **preview), "preview").problems()


@pytest.mark.parametrize("family", ["wan", "ltx", "cogvideo", "hunyuan_video", "mochi"])
def test_a_stage_draws_what_a_call_by_hand_draws(family: str, pipelines: Folders) -> None:
    folder, size = pipelines(family), {**SMALL, "num_frames": 7 if family == "mochi" else 9}
    by_hand = diffusers.DiffusionPipeline.from_pretrained(folder)
    video = by_hand(prompt=RED, **size, **CALL, generator=loading.generator(7, "preview"), output_type="np").frames[0]

    engine = engines.of(settings_for(folder, **size), "preview")
    assert engine.problems() == []
    told = engine.describe()
    encoder = engine.load_text()  # in the shared pool, apart from the networks
    negative = {} if told.default_negative is None else encoder.encode(told.default_negative)
    steps: list[tuple[int, int]] = []
    model = engine.load_preview()
    frames, _ = model.sample(Text(RED, None, encoder.encode(RED), negative), 7, lambda *step: steps.append(step))
    assert frames.shape == (told.num_frames, told.height, told.width, 3)
    assert np.array_equal(frames, (video * 255).round().astype(np.uint8))
    assert steps == [(1, 2), (2, 2)]


def test_what_settings_leave_open_is_as_the_signature_has_it(pipelines: Folders) -> None:
    wan = engines.of(settings_for(pipelines("wan"), **dict.fromkeys(SMALL)), "preview").describe()
    assert (wan.height, wan.width, wan.num_frames, wan.fps) == (480, 832, 81, 16)
    # Where the signature says nothing, the transformer says at what it was trained.
    cogvideo = engines.of(settings_for(pipelines("cogvideo"), **dict.fromkeys(SMALL)), "preview").describe()
    assert (cogvideo.height, cogvideo.width, cogvideo.num_frames, cogvideo.fps) == (32, 48, 9, 8)
    assert engines.of(settings_for(pipelines("ltx")), "preview").describe().fps == 25  # `frame_rate` of its call


def test_an_argument_that_the_call_has_not_is_refused_with_the_nearest_one(pipelines: Folders) -> None:
    call = {**CALL, "guidence_scale_2": 3, "guidance_scael": 2, "height": 32, "prompt_embeds": [1], "fps": 8}
    assert problems(pipelines("wan"), call=call) == [
        "preview.call.guidence_scale_2: WanPipeline takes no such argument; did you mean guidance_scale_2?",
        "preview.call.guidance_scael: WanPipeline takes no such argument; did you mean preview.guidance_scale?",
        "preview.call.height: set preview.height in its place",
        "preview.call.prompt_embeds: the stage itself gives it; leave it out",
        "preview.call.fps: WanPipeline takes no such argument; it takes guidance_scale_2, attention_kwargs, "
        "max_sequence_length",
    ]


def test_sizes_and_lengths_that_do_not_fit_are_refused_with_those_that_do(pipelines: Folders) -> None:
    assert problems(pipelines("wan"), height=40, num_frames=10) == [
        "preview.height: 40 is no multiple of 16; set 32 or 48",
        "preview.num_frames: WanPipeline takes 4k + 1 frames, and not 10; 9 or 13 would do",
    ]
    # What no factor tells, the pipeline's own check does.
    [line] = problems(pipelines("ltx"), height=48)
    assert line.startswith("preview: LTXPipeline refuses: `height` and `width` have to be divisible by 32")


@pytest.mark.parametrize(
    ("family", "option", "refusal"),
    [
        ("wan", {"compile": True}, None),
        ("cogvideo", {"compile": True}, "compile: diffusers names no blocks of CogVideoXTransformer3DModel to compile"),
        ("hunyuan_video", {"attention": "native"}, None),
        ("cogvideo", {"attention": "native"}, "attention: the processors of this network ignore native"),
        ("ltx", {"quantization": "fp8"}, None),
        ("ltx", {"cache": {"name": "first_block", "options": {"threshold": 0.1}}}, None),
        ("ltx", {"cache": {"name": "pyramid_attention", "options": {}}}, None),
        ("wan", {"cache": {"name": "pyramid_attention", "options": {}}}, "cache: WanPipeline evaluates the branches"),
    ],
)
def test_options_that_would_do_nothing_or_harm_are_refused(
    family: str, option: dict[str, Any], refusal: str | None, pipelines: Folders
) -> None:
    found = problems(pipelines(family), num_inference_steps=20, optimize=option)
    assert len(found) == (refusal is not None)
    assert all(line.startswith(f"preview.optimize.{refusal}") for line in found)


def test_a_cache_and_smaller_weights_do_less(pipelines: Folders) -> None:
    def drawn(**optimize: Any) -> tuple[int, int]:
        engine = engines.of(settings_for(pipelines("ltx"), num_inference_steps=6, optimize=optimize), "preview")
        model, encoder, worked = engine.load_preview(), engine.load_text(), []
        network = model._pipe.transformer
        network.transformer_blocks[1].attn1.to_q.register_forward_hook(lambda *_: worked.append(1))
        model.sample(Text(RED, None, encoder.encode(RED), encoder.encode("")), 7, lambda *_: None)
        return len(worked), weight_bytes(network)

    calls, size = drawn()
    assert drawn(cache={"name": "first_block", "options": {"threshold": 0.5}})[0] < calls == 6
    assert drawn(quantization="fp8")[1] < size / 2


@pytest.mark.parametrize("family", ["wan", "ltx", "cogvideo", "hunyuan_video"])
def test_adapters_are_merged_as_by_hand(family: str, pipelines: Folders, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    trained = diffusers.DiffusionPipeline.from_pretrained(pipelines(family))
    torch.manual_seed(0)
    trained.transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers = peft.get_peft_model_state_dict(trained.transformer)
    trained.save_lora_weights(tmp_path, transformer_lora_layers=layers, weight_name="style.safetensors")
    adapter = {"path": str(tmp_path / "style.safetensors"), "weight": 0.5}

    by_hand = diffusers.DiffusionPipeline.from_pretrained(pipelines(family))
    by_hand.load_lora_weights(adapter["path"], adapter_name="style")
    by_hand.set_adapters("style", 0.5)
    video = by_hand(prompt=RED, **SMALL, **CALL, generator=loading.generator(7, "preview"), output_type="np").frames[0]
    merged, plain = drawn(pipelines(family), adapters=[adapter]), drawn(pipelines(family))
    assert np.abs(merged.astype(int) - (video * 255).round().astype(int)).max() <= 1  # merged, it is rounded elsewhere
    assert not np.array_equal(merged, plain)


def test_compiled_blocks_draw_the_same(pipelines: Folders) -> None:
    torch._dynamo.utils.counters.clear()
    compiled = drawn(pipelines("ltx"), optimize={"compile": True}).astype(int)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert np.abs(compiled - drawn(pipelines("ltx"))).max() <= 1


def drawn(folder: Path, **preview: Any) -> np.ndarray:
    engine = engines.of(settings_for(folder, **preview), "preview")
    assert engine.problems() == []
    default, encoder = engine.describe().default_negative, engine.load_text()
    negative = {} if default is None else encoder.encode(default)
    return engine.load_preview().sample(Text(RED, None, encoder.encode(RED), negative), 7, lambda *_: None)[0]


def test_a_setting_that_the_pipeline_has_not_is_refused(pipelines: Folders) -> None:
    assert problems(pipelines("wan"), guidance_batching="apart") == [
        "preview.guidance_batching: WanPipeline has no such setting; leave it out"
    ]


def test_a_family_that_nothing_is_known_of_is_asked_for_its_frame_rate(
    pipelines: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "of", lambda package: families.Family())
    folder = pipelines("wan")
    assert problems(folder) == ["video.fps: WanPipeline does not say how many frames a second it draws; set it"]
    assert problems(folder, "video.fps=12") == []


def test_a_folder_whose_pipeline_makes_no_video_of_a_text_is_refused(tmp_path: Path, pipelines: Folders) -> None:
    index = json.loads((pipelines("wan") / "model_index.json").read_text())
    for name, message in (
        ("NoSuchPipeline", "which diffusers .* has not"),
        ("FluxPipeline", "makes a video of a text"),
    ):
        (tmp_path / "model_index.json").write_text(json.dumps({**index, "_class_name": name}))
        with pytest.raises(ModelNotFoundError, match=message):
            settings_for(tmp_path)


def test_negative_prompts_that_are_not_heeded_are_told_of(pipelines: Folders) -> None:
    def told(family: str, **preview: Any) -> str | None:
        return engines.of(settings_for(pipelines(family), **preview), "preview").on_negative_prompts()

    assert told("wan") is None
    assert told("wan", guidance_scale=1.0) == "WanPipeline heeds them with preview.guidance_scale > 1"
    assert told("hunyuan_video") == "HunyuanVideoPipeline heeds them with preview.call.true_cfg_scale > 1"
    assert told("hunyuan_video", call={**CALL, "true_cfg_scale": 2.0}) is None


def test_another_seed_or_text_is_another_video(pipelines: Folders) -> None:
    engine = engines.of(settings_for(pipelines("ltx")), "preview")
    model, encoder = engine.load_preview(), engine.load_text()
    none = encoder.encode("")

    def draw(text: str, seed: int) -> np.ndarray:
        return model.sample(Text(text, None, encoder.encode(text), none), seed, lambda *_: None)[0]

    first = draw(RED, 1)
    assert np.array_equal(first, draw(RED, 1))
    assert not np.array_equal(first, draw(RED, 2))
    assert not np.array_equal(first, draw("a blue square", 1))


def test_a_network_that_gives_no_numbers_is_an_error_and_no_video(pipelines: Folders) -> None:
    engine = engines.of(settings_for(pipelines("ltx")), "preview")
    model = engine.load_preview()
    with torch.no_grad():
        next(model._pipe.transformer.parameters()).fill_(float("nan"))
    text = Text(RED, None, engine.load_text().encode(RED), engine.load_text().encode(""))
    with pytest.raises(ValueError, match="stage 1 gave NaN or infinite values"):
        model.sample(text, 7, lambda *_: None)
