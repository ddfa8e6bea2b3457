"""Stage 1: text to a low-resolution video (paper §3.2), 49 frames of 256x480 with the released weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler
from diffusers.utils.outputs import BaseOutput
from transformers import T5EncoderModel

from .noise import Generators, draw_noise, draw_noises
from .pipeline_base import (
    FlashVideoPipeline,
    GuidanceBatching,
    OutputType,
    StepCallback,
    convert_frames,
)
from .schedulers import FlashVideoDPMScheduler
from .transformer import FlashVideoTransformer3DModel
from .vae import split_convolutions


def dynamic_guidance_scale(scale: float, timestep: int, num_inference_steps: int) -> float:
    """Guidance at a step: 1 + scale (1 - cos(pi ((N - t) / N)^5)) / 2, with t the raw training step (0 … 999).

    The base is far below zero, so the values jump within [1, 1 + scale] from step to step. That is how the reference
    (and `use_dynamic_cfg` in diffusers) computes it.
    """
    progress = (num_inference_steps - timestep) / num_inference_steps
    return 1 + scale * (1 - math.cos(math.pi * progress**5)) / 2


@dataclass
class FlashVideoPreviewOutput(BaseOutput):
    """Frames in the form of `output_type` (None for "latent"), and latents `[batch, frames, channels, h, w]`.

    The latents are float32 on the pipeline's device, in the preview's scale (x 0.7), and are what the refine pipeline
    takes as `preview_latents`.
    """

    frames: Any
    latents: torch.Tensor


class FlashVideoPreviewPipeline(FlashVideoPipeline):
    """Text to low-resolution video by SDE-DPM++(2M) under dynamic guidance.

    `CogVideoXDPMScheduler` (betas .00085 to .012, snr_shift_scale 1, zero terminal SNR, trailing, v_prediction) also
    works as the scheduler. With 50 steps it comes close (relative difference 3e-3 on a small random network), with
    the reference's 51 it does not.

    Args:
        tokenizer: T5 tokenizer; may be None where `prompt_embeds` are given.
        text_encoder: T5 encoder; may be None likewise.
        transformer: the stage-1 network.
        vae: with `scaling_factor` 0.7 in the released weights.
        scheduler: `FlashVideoDPMScheduler`.
        height: default height in pixels. This and the rest can be overridden in a call.
        width: default width in pixels.
        num_frames: default length, 4k + 1 with the released VAE.
        fps: at which the frames are meant to be played.
        num_inference_steps: network evaluations; the reference makes 51.
        guidance_scale: strength of guidance; the reference uses 8, and 6 to 8 is sensible.
        use_dynamic_cfg: vary guidance from step to step (see `dynamic_guidance_scale`), or keep it constant.
        prompt_prefix: put before each prompt.
        max_sequence_length: text tokens.
        decode_tiling: see `decode_latents`.
        decode_tiles: see `decode_latents`.
    """

    def __init__(
        self,
        transformer: FlashVideoTransformer3DModel,
        vae: AutoencoderKLCogVideoX,
        scheduler: FlashVideoDPMScheduler,
        tokenizer: Any = None,
        text_encoder: T5EncoderModel | None = None,
        height: int = 256,
        width: int = 480,
        num_frames: int = 49,
        fps: int = 8,
        num_inference_steps: int = 51,
        guidance_scale: float = 8.0,
        use_dynamic_cfg: bool = True,
        prompt_prefix: str = "",
        max_sequence_length: int = 226,
        decode_tiling: str = "none",
        decode_tiles: Sequence = (1, 2),
    ) -> None:
        super().__init__()
        if vae is not None:
            split_convolutions(vae)
        self.register_modules(
            tokenizer=tokenizer, text_encoder=text_encoder, transformer=transformer, vae=vae, scheduler=scheduler
        )
        self.register_to_config(
            height=height,
            width=width,
            num_frames=num_frames,
            fps=fps,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            use_dynamic_cfg=use_dynamic_cfg,
            prompt_prefix=prompt_prefix,
            max_sequence_length=max_sequence_length,
            decode_tiling=decode_tiling,
            decode_tiles=decode_tiles,
        )

    def check_inputs(
        self,
        prompt: str | list[str] | None,
        height: int | None,
        width: int | None,
        num_frames: int | None,
        num_inference_steps: int | None = None,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        step_noise: torch.Tensor | None = None,
        guidance_batching: str = "together",
        output_type: str = "pt",
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> None:
        """Raise ValueError, with what is wrong and what would be right, for a call that cannot be made."""
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        batch = self._check_text(prompt, prompt_embeds, negative_prompt, negative_prompt_embeds)
        self._check_options(batch, steps, generator, guidance_batching, output_type, callback_on_step_end_tensor_inputs)
        shape = self._latent_shape(batch, num_frames or self.config.num_frames, *self._floor_size(height, width))
        self._check_shape("latents", latents, shape)
        self._check_shape("step_noise", step_noise, (steps - 1, *shape))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        use_dynamic_cfg: bool | None = None,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        step_noise: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        guidance_batching: GuidanceBatching = "together",
        output_type: OutputType = "pt",
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> FlashVideoPreviewOutput:
        """Generate previews. Arguments left out take the pipeline's configured defaults.

        Args:
            prompt: one or several; or give `prompt_embeds`.
            negative_prompt: what to move away from. None is the reference's behaviour: a zero embedding (its script
                builds a negative string but discards it). A string is encoded, which the network was not trained for.
            height: pixels, rounded down to a multiple of 16.
            width: likewise.
            num_frames: 4k + 1.
            num_inference_steps: number of network evaluations.
            guidance_scale: 0 is no guidance when dynamic, 1 when constant.
            use_dynamic_cfg: see the class.
            generator: CPU generator, or one for each prompt, which makes a clip independent of its batch.
            latents: initial noise `[batch, latent frames, channels, height, width]`.
            step_noise: `[num_inference_steps - 1, *latents.shape]`, the noise that each step but the last adds.
            prompt_embeds: `[batch, length, text_embed_dim]` from `encode_prompt`.
            negative_prompt_embeds: likewise, of the batch or of one sample.
            guidance_batching: "together" or, in half the memory, "apart".
            output_type: "pt", "np", "pil", or "latent" to skip the decoder.
            callback_on_step_end: called as `(pipeline, step, timestep, {"latents": …})`; may return new latents,
                and set `_interrupt` of the pipeline to skip the steps that remain.
            callback_on_step_end_tensor_inputs: what of `_callback_tensor_inputs` the callback is given.
            return_dict: return `FlashVideoPreviewOutput` instead of (frames, latents).
        """
        config, device = self.config, self._execution_device
        self.check_inputs(
            prompt,
            height,
            width,
            num_frames,
            num_inference_steps,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            generator,
            latents,
            step_noise,
            guidance_batching,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        height, width = self._floor_size(height, width)
        num_frames = num_frames or config.num_frames
        steps = config.num_inference_steps if num_inference_steps is None else num_inference_steps
        scale = config.guidance_scale if guidance_scale is None else guidance_scale
        dynamic = config.use_dynamic_cfg if use_dynamic_cfg is None else use_dynamic_cfg

        # 1. Text
        self._begin(steps, scale)
        embeds = self._embed_text(prompt, prompt_embeds, negative_prompt, negative_prompt_embeds)
        cond, uncond = self._project_text(*embeds)

        # 2. Time and guidance of every step
        self.scheduler.set_timesteps(steps, device=device)
        timesteps = self.scheduler.timesteps
        times = timesteps.tolist()
        scales = [dynamic_guidance_scale(scale, t, steps) if dynamic else scale for t in times]

        # 3. All noise at once: nothing is copied to the device while the loop runs
        shape = self._latent_shape(len(cond), num_frames, height, width)
        if latents is None:
            latents = draw_noise(shape, generator, device)
        latents = latents.to(device, torch.float32)
        approximate = isinstance(self.scheduler, CogVideoXDPMScheduler)  # draws its own noise
        if step_noise is None:
            step_noise = draw_noises(0 if approximate else steps - 1, shape, generator)
        step_noise = step_noise.to(device, torch.float32)

        # 4. Denoise
        guided = scale > 0 if dynamic else scale != 1
        predict = self._guided(cond, uncond, guidance_batching, uncond_first=True, guided=guided)
        previous_x0 = None
        with self.progress_bar(total=steps) as bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = times[i]
                velocity = predict(latents, t, scales[i])
                if approximate:
                    before = timesteps[i - 1] if i else None
                    latents, previous_x0 = self.scheduler.step(
                        velocity, previous_x0, t, before, latents, generator=generator
                    )
                else:
                    noise = step_noise[i] if i < steps - 1 else None
                    latents = self.scheduler.step(velocity, t, latents, noise=noise).prev_sample
                latents = self._after_step(callback_on_step_end, callback_on_step_end_tensor_inputs, i, t, latents)
                bar.update()
        self._current_timestep = None

        # 5. Decode
        frames = None
        if output_type != "latent":
            frames = convert_frames(self.decode_latents(latents), output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return frames, latents  # type: ignore[return-value]
        return FlashVideoPreviewOutput(frames=frames, latents=latents)
