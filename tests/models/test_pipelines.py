"""The two pipelines, as someone with a notebook uses them. `tiny_model` is a model folder with random weights."""

from itertools import groupby

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDPMScheduler

from flashvideo_ray.models import FlashVideoPreviewPipeline, FlashVideoRefinePipeline
from flashvideo_ray.models.offload import place
from flashvideo_ray.models.pipeline_preview import dynamic_guidance_scale
from flashvideo_ray.models.text import TextEncoder
from flashvideo_ray.models.vae import decode_video

PROMPT = "the red circle moves slowly left over sand"


def load_preview(folder, **options) -> FlashVideoPreviewPipeline:
    pipeline = FlashVideoPreviewPipeline.from_pretrained(folder / "preview", **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_refine(folder, **options) -> FlashVideoRefinePipeline:
    pipeline = FlashVideoRefinePipeline.from_pretrained(folder / "refine", **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def preview(tiny_model) -> FlashVideoPreviewPipeline:
    return load_preview(tiny_model)


@pytest.fixture(scope="module")
def refine(tiny_model, preview) -> FlashVideoRefinePipeline:
    return load_refine(tiny_model, tokenizer=preview.tokenizer, text_encoder=preview.text_encoder)


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def test_text_to_preview_to_clip(preview, refine):
    first = preview(PROMPT, generator=seed(0))
    assert first.frames.shape == (1, 9, 3, 32, 48)
    assert first.latents.shape == (1, 3, 4, 4, 6)
    final = refine(PROMPT, preview_latents=first.latents, generator=seed(1))
    assert final.frames.shape == (1, 9, 3, 64, 96)
    assert final.frames.dtype == torch.float32
    assert final.frames.min() >= 0
    assert final.frames.max() <= 1


def test_a_clip_does_not_depend_on_its_batch(preview, refine):
    """A generator for each prompt: the second clip of a batch is the clip made alone, to rounding."""
    other = "a blue star"
    alone = preview(PROMPT, generator=seed(7))
    batch = preview([other, PROMPT], generator=[seed(3), seed(7)])
    torch.testing.assert_close(batch.latents[1:], alone.latents, atol=1e-4, rtol=1e-4)
    clip = refine(PROMPT, preview_latents=alone.latents, generator=seed(8), output_type="latent")
    clips = refine(
        [other, PROMPT],
        preview_latents=torch.cat([batch.latents[:1], alone.latents]),
        generator=[seed(4), seed(8)],
        output_type="latent",
    )
    torch.testing.assert_close(clips.latents[1:], clip.latents, atol=1e-3, rtol=1e-3)
    assert clip.frames is None


def test_the_same_seed_gives_the_same_clip_to_the_bit(preview):
    first, second = (preview(PROMPT, generator=seed(5)).frames for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, preview(PROMPT, generator=seed(6)).frames)


def test_guidance_together_or_apart_is_the_same(preview, refine):
    together, apart = (
        preview(PROMPT, generator=seed(0), guidance_batching=batching).latents for batching in ("together", "apart")
    )
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)
    together, apart = (
        refine(
            PROMPT, preview_latents=apart, generator=seed(0), guidance_batching=batching, output_type="latent"
        ).latents
        for batching in ("together", "apart")
    )
    torch.testing.assert_close(together, apart, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="guidance_batching"):
        preview(PROMPT, guidance_batching="twice")


def test_without_guidance_the_network_runs_once_a_step(preview):
    batches = []
    hook = preview.transformer.proj_out.register_forward_hook(lambda _, __, out: batches.append(len(out)))
    preview(PROMPT, guidance_scale=0.0, num_inference_steps=3, generator=seed(0))
    preview(PROMPT, guidance_scale=1.0, use_dynamic_cfg=False, num_inference_steps=3, generator=seed(0))
    preview(PROMPT, guidance_scale=1.0, num_inference_steps=3, generator=seed(0))
    hook.remove()
    assert batches == [1] * 6 + [2] * 3


def test_no_negative_prompt_is_a_zero_embedding(preview):
    embeds = preview.encode_prompt(PROMPT)
    latents = [
        preview(PROMPT, generator=seed(0), output_type="latent", **options).latents
        for options in (
            {},
            {"negative_prompt_embeds": torch.zeros_like(embeds)},
            {"negative_prompt": ""},
        )
    ]
    assert torch.equal(latents[0], latents[1])
    assert not torch.equal(latents[0], latents[2])


def test_prompts_are_encoded_once_and_elsewhere(preview, refine, tiny_model):
    embeds = preview.encode_prompt([PROMPT, "a blue star"])
    assert embeds.shape == (2, preview.config.max_sequence_length, preview.text_encoder.config.d_model)
    assert torch.equal(embeds[:1], preview.encode_prompt(f"  {PROMPT}\n"))
    assert torch.equal(refine.encode_prompt(PROMPT), preview.encode_prompt(PROMPT, prefix=refine.config.prompt_prefix))
    alone = TextEncoder.from_pretrained(tiny_model / "preview", torch.float32, preview.config.max_sequence_length)
    assert torch.equal(alone(f"{PROMPT}\n", "a quiet "), preview.encode_prompt(PROMPT, prefix="a quiet "))
    bare = load_preview(tiny_model, tokenizer=None, text_encoder=None)
    with pytest.raises(ValueError, match="no text encoder"):
        bare(PROMPT)
    given, named = bare(prompt_embeds=embeds[:1], generator=seed(0)), preview(PROMPT, generator=seed(0))
    assert torch.equal(given.latents, named.latents)
    with pytest.raises(ValueError, match="either"):
        preview(PROMPT, prompt_embeds=embeds)


def test_refine_takes_frames_of_any_size(refine):
    frames = torch.rand(1, 9, 3, 18, 31)
    result = refine(PROMPT, frames=frames, height=50, width=70, generator=seed(0))
    assert result.frames.shape == (1, 9, 3, 48, 64)  # floored to multiples of 16
    with pytest.raises(ValueError, match="either"):
        refine(PROMPT)
    with pytest.raises(ValueError, match="noise_step"):
        refine(PROMPT, frames=frames, noise_step=1000)
    with pytest.raises(ValueError, match="1 videos for 2 prompts"):
        refine([PROMPT, PROMPT], frames=frames)


def test_latents_and_their_frames_refine_to_the_same(preview, refine):
    first = preview(PROMPT, generator=seed(0))
    outputs = [
        refine(PROMPT, generator=seed(1), output_type="latent", **given).latents
        for given in ({"preview_latents": first.latents}, {"frames": first.frames})
    ]
    assert torch.equal(outputs[0], outputs[1])


def test_each_way_of_decoding_is_the_one_asked_for(refine):
    latents = torch.randn(1, 3, 4, 6, 50, generator=seed(0))
    scaled = latents / refine.vae.config.scaling_factor
    whole = decode_video(refine.vae, scaled)
    assert whole.shape == (1, 9, 3, 48, 400)
    ways = {tiling: refine.decode_latents(latents, tiling=tiling, tiles=(1, 2)) for tiling in ("reference", "blend")}
    assert torch.equal(refine.decode_latents(latents, tiling="none", tiles=(1, 2)), whole)
    assert torch.equal(ways["reference"], decode_video(refine.vae, scaled, tiles=(1, 2)))
    assert torch.equal(ways["blend"], decode_video(refine.vae, scaled, tiles=(1, 2), blend=True))
    assert not torch.equal(ways["reference"], ways["blend"])
    assert not torch.equal(ways["reference"], whole)


def test_output_types(preview):
    assert isinstance(preview(PROMPT, generator=seed(0), output_type="np").frames, np.ndarray)
    images = preview(PROMPT, generator=seed(0), output_type="pil").frames
    assert (len(images), len(images[0]), images[0][0].size) == (1, 9, (48, 32))
    frames, latents = preview(PROMPT, generator=seed(0), output_type="latent", return_dict=False)
    assert frames is None
    assert latents.shape == (1, 3, 4, 4, 6)


def test_a_callback_sees_every_step_and_may_replace_the_latents(preview):
    seen = []

    def callback(pipeline, step, timestep, tensors):
        seen.append((step, int(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 3 else None

    result = preview(PROMPT, num_inference_steps=4, callback_on_step_end=callback, output_type="latent")
    assert seen == [(0, 999), (1, 749), (2, 499), (3, 249)]
    assert not result.latents.any()


def test_a_callback_may_end_a_call_and_is_given_what_it_asks_for(preview, refine):
    """As in diffusers: `_interrupt` skips the steps that remain, and the call returns what it has."""
    seen = []

    def stop(pipeline, step, timestep, tensors):
        seen.append((step, sorted(tensors), pipeline.num_timesteps, pipeline.current_timestep == timestep))
        pipeline._interrupt = True
        return {}

    options = {"generator": seed(0), "callback_on_step_end": stop, "output_type": "latent"}
    first = preview(PROMPT, num_inference_steps=4, **options)
    refine(PROMPT, preview_latents=first.latents, callback_on_step_end_tensor_inputs=[], **options)
    assert seen == [(0, ["latents"], 4, True), (0, [], 2, True)]
    assert preview.interrupt
    preview(PROMPT, num_inference_steps=2, output_type="latent")
    assert not preview.interrupt


def test_the_transformer_is_moved_in_once_for_a_clip(tiny_model, preview, refine):
    """Model offload loads a network whenever it is asked for anything: text is projected right before the loop."""
    latents = preview(PROMPT, generator=seed(0), output_type="latent").latents
    pipeline = load_refine(tiny_model, tokenizer=preview.tokenizer, text_encoder=preview.text_encoder)
    pipeline.enable_model_cpu_offload(device="cpu")
    asked = []
    for name in ("text_encoder", "transformer", "vae"):
        hook = getattr(pipeline, name)._hf_hook
        hook.pre_forward = lambda module, *args, _name=name, **kwargs: asked.append(_name) or (args, kwargs)
    pipeline(PROMPT, preview_latents=latents, generator=seed(1))
    assert [name for name, _ in groupby(asked)] == ["text_encoder", "vae", "transformer", "vae"]


def test_what_cannot_be_made_is_refused(preview):
    for options, message in (
        ({"prompt": 3}, "a string or a list of strings, got int"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"negative_prompt": "a", "negative_prompt_embeds": torch.zeros(1, 16, 32)}, "not both"),
        ({"negative_prompt_embeds": torch.zeros(1, 15, 32)}, "a length of 15 tokens, the prompt's 16"),
        ({"negative_prompt_embeds": torch.zeros(1, 16, 31)}, r"must have the shape \[batch, length, 32\]"),
        ({"generator": [seed(0), seed(1)]}, "2 generators for 1 prompts"),
        ({"num_inference_steps": 0}, "num_inference_steps must be 1 to 1000, got 0"),
        ({"output_type": "mp4"}, "output_type must be one of 'pt', 'np', 'pil', 'latent', got 'mp4'"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, r"may hold \['latents'\], found \['noise'\]"),
        ({"step_noise": torch.zeros(1)}, "step_noise must have the shape"),
        ({"num_frames": 8}, r"8k \+ 1"),
        ({"num_frames": 5}, r"8k \+ 1"),
        ({"height": 8}, "smallest size"),
        ({"latents": torch.zeros(1, 3, 4, 4, 4)}, "shape"),
    ):
        with pytest.raises(ValueError, match=message):
            preview(**{"prompt": PROMPT, **options})


def test_the_scheduler_of_diffusers_works_approximately(tiny_model, preview):
    """At 50 steps, from the same noise, it comes to nearly the same latents as the reference's solver."""
    pipeline = load_preview(tiny_model)
    pipeline.scheduler = CogVideoXDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        snr_shift_scale=1.0,
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
    start = torch.randn(1, 3, 4, 4, 6, generator=seed(1))
    options = {"prompt": PROMPT, "num_inference_steps": 50, "latents": start, "output_type": "latent"}
    result = pipeline(**options, generator=seed(0)).latents
    generator = seed(0)
    # It draws twice in each step but the first, and uses what came last.
    drawn = torch.stack([torch.randn(start.shape, generator=generator) for _ in range(98)])
    ours = preview(**options, step_noise=drawn[::2]).latents
    assert 0 < (result - ours).norm() / ours.norm() < 0.01
    other = preview(**options, step_noise=drawn[1::2]).latents
    assert (result - other).norm() / other.norm() > 0.5


@pytest.mark.parametrize("offload", ["model", "group"])
def test_offloading_moves_each_network_and_changes_nothing(tiny_model, preview, offload):
    """By blocks all but the VAE, which computes by its parts where it is."""
    pipeline = load_preview(tiny_model)
    place(pipeline, "cpu", offload)
    networks = {"text_encoder", "transformer", "vae"}
    if offload == "model":
        assert {name for name in networks if hasattr(getattr(pipeline, name), "_hf_hook")} == networks
    else:
        hooked = {name for name in networks for each in getattr(pipeline, name).modules() if _is_hooked(each)}
        assert hooked == networks - {"vae"}
        assert all(map(_is_hooked, pipeline.transformer.transformer_blocks))
    for _ in range(2):
        assert torch.equal(pipeline(PROMPT, generator=seed(0)).frames, preview(PROMPT, generator=seed(0)).frames)


def _is_hooked(module: torch.nn.Module) -> bool:
    return hasattr(module, "_diffusers_hook")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tiny_model, preview, dtype):
    """The state stays in float32; the VAE may have a dtype of its own."""
    pipeline = load_preview(tiny_model, dtype={"default": dtype, "vae": torch.float32})
    assert (pipeline.transformer.dtype, pipeline.vae.dtype) == (dtype, torch.float32)
    half, full = pipeline(PROMPT, generator=seed(0)), preview(PROMPT, generator=seed(0))
    assert half.latents.dtype == torch.float32
    assert (half.latents - full.latents).norm() / full.latents.norm() < 0.1


def test_latents_are_scaled_in_float32_and_rounded_once_for_the_decoder(tiny_model):
    pipeline = load_preview(tiny_model, dtype={"default": torch.float32, "vae": torch.bfloat16})
    seen = []
    pipeline.vae.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].transpose(1, 2)))
    latents = torch.randn(1, 3, 4, 4, 6, generator=seed(0))
    pipeline.decode_latents(latents)
    assert torch.equal(torch.cat(seen, dim=1), (latents / 0.7).to(torch.bfloat16))
    assert not torch.equal(torch.cat(seen, dim=1), latents.to(torch.bfloat16) / 0.7)


def test_defaults_are_saved_with_the_model(tiny_model, tmp_path):
    pipeline = load_preview(tiny_model, num_inference_steps=2, guidance_scale=1.5)
    pipeline.save_pretrained(tmp_path / "preview")
    again = load_preview(tmp_path)
    assert (again.config.num_inference_steps, again.config.guidance_scale) == (2, 1.5)
    assert torch.equal(again(PROMPT, generator=seed(0)).frames, pipeline(PROMPT, generator=seed(0)).frames)


def test_dynamic_guidance_jumps_within_its_range():
    scales = [dynamic_guidance_scale(8.0, t, 51) for t in (999, 979, 959)]
    assert scales == pytest.approx([8.287, 4.004, 2.404], abs=1e-3)
    assert all(1 <= dynamic_guidance_scale(8.0, t, 51) <= 9 for t in range(1000))
