"""Stage 2: a low-resolution video to the same video at high resolution (paper §3.3), 49 frames of 1072x1920.

The preview is decoded, upsampled in pixels, encoded again, degraded with noise in latent space, and carried to
high-resolution latents along a nearly straight flow in a few Euler steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.utils.outputs import BaseOutput
from transformers import T5EncoderModel

from .noise import Generators, draw_noise
from .pipeline_base import (
    DecodeTiling,
    FlashVideoPipeline,
    GuidanceBatching,
    OutputType,
    StepCallback,
    convert_frames,
)
from .schedulers import FlashVideoFlowScheduler
from .transformer import FlashVideoTransformer3DModel
from .vae import encode_video, split_convolutions


@dataclass
class FlashVideoRefineOutput(BaseOutput):
    """Frames in the form of `output_type` (None for "latent"), and latents `[batch, frames, channels, h, w]`.

    The latents are float32 on the pipeline's device, in the refine stage's scale (x 1.15258426).
    """

    frames: Any
    latents: torch.Tensor


class FlashVideoRefinePipeline(FlashVideoPipeline):
    """Low-resolution video and its prompt to high resolution, by a flow from one to the other.

    Args:
        transformer: the stage-2 network, with both extra embeddings.
        vae: with `scaling_factor` 1.15258426 in the released weights.
        scheduler: `FlashVideoFlowScheduler`, which holds `shift` and `time_dtype`.
        tokenizer: T5 tokenizer, that of the preview pipeline; may be None where `prompt_embeds` are given.
        text_encoder: T5 encoder; likewise.
        height: default height in pixels. This and the rest can be overridden in a call.
        width: default width in pixels. The released weights know 1080p with 49 frames; the authors advise against
            other sizes and lengths, and with fewer frames a lower noise step is best (500 for 17, paper §5).
        num_inference_steps: network evaluations; the reference's script makes 5, the paper 4, and 4 to 6 is sensible.
        guidance_scale: the reference uses 13, and 10 to 13 is sensible.
        noise_step: training step (0 … 999) to which the input is degraded; 675, sensible from 650 to 750. Lower keeps
            more of the preview, higher lets the network redraw more.
        prompt_prefix: put before each prompt: the network was trained with a statement of motion in front.
        max_sequence_length: text tokens.
        preview_scaling_factor: that of the VAE of the preview pipeline whose latents are given.
        encode_chunk_frames: see `encode_video`; 16 is the reference.
        encode_tiles: see `encode_video`; (1, 1) is the reference.
        decode_tiling: see `decode_latents`; "reference" is the reference.
        decode_tiles: see `decode_latents`; (1, 2) is the reference.
    """

    def __init__(
        self,
        transformer: FlashVideoTransformer3DModel,
        vae: AutoencoderKLCogVideoX,
        scheduler: FlashVideoFlowScheduler,
        tokenizer: Any = None,
        text_encoder: T5EncoderModel | None = None,
        height: int = 1072,
        width: int = 1920,
        num_inference_steps: int = 5,
        guidance_scale: float = 13.0,
        noise_step: int = 675,
        prompt_prefix: str = "medium motion,",
        max_sequence_length: int = 226,
        preview_scaling_factor: float = 0.7,
        encode_chunk_frames: int = 16,
        encode_tiles: Sequence = (1, 1),
        decode_tiling: str = "reference",
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
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            noise_step=noise_step,
            prompt_prefix=prompt_prefix,
            max_sequence_length=max_sequence_length,
            preview_scaling_factor=preview_scaling_factor,
            encode_chunk_frames=encode_chunk_frames,
            encode_tiles=encode_tiles,
            decode_tiling=decode_tiling,
            decode_tiles=decode_tiles,
        )

    @torch.no_grad()
    def encode_frames(
        self,
        frames: torch.Tensor,
        *,
        height: int | None = None,
        width: int | None = None,
        generator: Generators = None,
        posterior_noise: torch.Tensor | None = None,
        chunk_frames: int | None = None,
        tiles: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        """Upsample low-resolution frames and encode them: the flow's starting point before it is degraded.

        Args:
            frames: `[batch, frames, 3, h, w]` float in [0, 1], on any device.
            height: pixels to upsample to, rounded down to a multiple of 16; default from `config`.
            width: likewise.
            generator: for the posterior, which is sampled, as in training, and not replaced by its mode.
            posterior_noise: standard normal of the shape of the result, instead of a draw.
            chunk_frames: see `encode_video`; default from `config`.
            tiles: likewise.

        Returns:
            Scaled latents `[batch, latent frames, channels, height / 8, width / 8]` float32.
        """
        device = self._execution_device
        moments = encode_video(
            self.vae,
            frames,
            self._floor_size(height, width),
            chunk_frames=chunk_frames or self.config.encode_chunk_frames,
            tiles=tiles or tuple(self.config.encode_tiles),
            device=device,
        ).to(device)
        mean, log_variance = moments.chunk(2, dim=2)
        if posterior_noise is None:
            posterior_noise = draw_noise(mean.shape, generator, device)
        deviation = torch.exp(0.5 * log_variance.clamp(-30, 20))
        return (mean + deviation * posterior_noise.to(device, torch.float32)) * self.vae.config["scaling_factor"]

    def check_inputs(
        self,
        prompt: str | list[str] | None,
        height: int | None,
        width: int | None,
        preview_latents: torch.Tensor | None = None,
        frames: torch.Tensor | None = None,
        encoded: torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        noise_step: int | None = None,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        generator: Generators = None,
        posterior_noise: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        guidance_batching: str = "together",
        decode_tiling: str | None = None,
        output_type: str = "pt",
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> None:
        """Raise ValueError, with what is wrong and what would be right, for a call that cannot be made."""
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        step = self.config.noise_step if noise_step is None else noise_step
        batch = self._check_text(prompt, prompt_embeds, negative_prompt, negative_prompt_embeds)
        self._check_options(
            batch,
            steps,
            generator,
            guidance_batching,
            output_type,
            callback_on_step_end_tensor_inputs,
            decode_tiling,
        )
        if not 0 <= step < self.scheduler.config.num_train_timesteps:
            raise ValueError(f"noise_step must be 0 to {self.scheduler.config.num_train_timesteps - 1}: {step}")
        given = {"preview_latents": preview_latents, "frames": frames, "encoded": encoded}
        ways = [(name, tensor) for name, tensor in given.items() if tensor is not None]
        if len(ways) != 1:
            raise ValueError("pass either preview_latents, or frames, or encoded")
        [(name, video)] = ways
        channels = 3 if name == "frames" else self.vae.config["latent_channels"]
        if video.ndim != 5 or video.shape[2] != channels:
            raise ValueError(
                f"{name} must have the shape [batch, frames, {channels}, height, width], got {list(video.shape)}"
            )
        if len(video) != batch:
            raise ValueError(f"{len(video)} videos for {batch} prompts")
        ratio = int(self.vae.config["temporal_compression_ratio"])
        num_frames = video.shape[1] if name == "frames" else (video.shape[1] - 1) * ratio + 1
        shape = self._latent_shape(batch, num_frames, *self._floor_size(height, width))
        self._check_shape("encoded", encoded, shape)
        self._check_shape("posterior_noise", posterior_noise, shape)
        self._check_shape("noise", noise, shape)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        preview_latents: torch.Tensor | None = None,
        frames: torch.Tensor | None = None,
        encoded: torch.Tensor | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        noise_step: int | None = None,
        generator: Generators = None,
        posterior_noise: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        guidance_batching: GuidanceBatching = "together",
        decode_tiling: DecodeTiling | None = None,
        decode_tiles: tuple[int, int] | None = None,
        output_type: OutputType = "pt",
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> FlashVideoRefineOutput:
        """Refine previews. Arguments left out take the pipeline's configured defaults.

        Args:
            prompt: one or several, without the prefix; or give `prompt_embeds`.
            preview_latents: latents that the preview pipeline returned; or give `frames` or `encoded`.
            frames: `[batch, frames, 3, h, w]` float in [0, 1], any low resolution; 4k + 1 frames.
            encoded: what `encode_frames` returned at this size.
            negative_prompt: None is the reference's behaviour: a zero embedding. A string is encoded, without the
                prefix, which the network was not trained for.
            height: pixels, rounded down to a multiple of 16.
            width: likewise.
            num_inference_steps: number of Euler steps.
            guidance_scale: 1 is no guidance.
            noise_step: 0 … 999; also told to the network.
            generator: CPU generator, or one for each sample, which makes a clip independent of its batch.
            posterior_noise: `[batch, latent frames, channels, h, w]`, for the VAE's posterior.
            noise: of the same shape, with which the encoded input is degraded.
            prompt_embeds: `[batch, length, text_embed_dim]` from `encode_prompt` of this pipeline (with its prefix).
            negative_prompt_embeds: likewise, of the batch or of one sample.
            guidance_batching: "together" or, in half the memory, "apart".
            decode_tiling: see `decode_latents`.
            decode_tiles: see `decode_latents`.
            output_type: "pt", "np", "pil", or "latent" to skip the decoder.
            callback_on_step_end: called as `(pipeline, step, timestep, {"latents": …})`; may return new latents,
                and set `_interrupt` of the pipeline to skip the steps that remain.
            callback_on_step_end_tensor_inputs: what of `_callback_tensor_inputs` the callback is given.
            return_dict: return `FlashVideoRefineOutput` instead of (frames, latents).
        """
        config, device = self.config, self._execution_device
        self.check_inputs(
            prompt,
            height,
            width,
            preview_latents,
            frames,
            encoded,
            num_inference_steps,
            noise_step,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            generator,
            posterior_noise,
            noise,
            guidance_batching,
            decode_tiling,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        steps = config.num_inference_steps if num_inference_steps is None else num_inference_steps
        scale = config.guidance_scale if guidance_scale is None else guidance_scale
        noise_step = config.noise_step if noise_step is None else noise_step

        # 1. Text
        self._begin(steps, scale)
        embeds = self._embed_text(prompt, prompt_embeds, negative_prompt, negative_prompt_embeds)

        # 2. The preview in pixels, upsampled, encoded and degraded: x at t = 0
        if encoded is None:
            if frames is None:
                assert preview_latents is not None
                frames = self.decode_latents(
                    preview_latents, scaling_factor=config.preview_scaling_factor, tiling="none"
                )
            encoded = self.encode_frames(
                frames, height=height, width=width, generator=generator, posterior_noise=posterior_noise
            )
        latents = encoded.to(device, torch.float32)
        if noise is None:
            noise = draw_noise(latents.shape, generator, device)
        latents = self.scheduler.add_noise(latents, noise.to(device, torch.float32), noise_step)

        # 3. Flow to the high-resolution latents
        self.scheduler.set_timesteps(steps, device=device)
        told_step = torch.tensor(self.scheduler.model_noise_step(noise_step), device=device)
        cond, uncond = self._project_text(*embeds)
        predict = self._guided(
            cond, uncond, guidance_batching, uncond_first=False, guided=scale != 1, ref_noise_step=told_step
        )
        with self.progress_bar(total=steps) as bar:
            times = self.scheduler.timesteps.tolist()
            for i, t in enumerate(self.scheduler.timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = times[i]
                velocity = predict(latents, t, scale)
                latents = self.scheduler.step(velocity, t, latents).prev_sample
                latents = self._after_step(callback_on_step_end, callback_on_step_end_tensor_inputs, i, t, latents)
                bar.update()
        self._current_timestep = None

        # 4. Decode
        final = None
        if output_type != "latent":
            final = convert_frames(self.decode_latents(latents, tiling=decode_tiling, tiles=decode_tiles), output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return final, latents  # type: ignore[return-value]
        return FlashVideoRefineOutput(frames=final, latents=latents)
