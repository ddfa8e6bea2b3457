"""FlashVideo's models, loaded: a text encoder, stage 1 and stage 2 on an actor's card or CPU."""

from __future__ import annotations

import hashlib
import logging
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flashvideo_ray import models, video
from flashvideo_ray.engines.engine import NonFiniteError, StepTold
from flashvideo_ray.engines.weights import ModelStage
from flashvideo_ray.models.text import TextEncoder
from flashvideo_ray.settings import Pool, PreviewSettings, RefineSettings

_NO_TEXT: dict[str, None] = {"text_encoder": None, "tokenizer": None}  # embeddings are given


class Text:
    """See `engine.TextModel`."""

    def __init__(self, folder: Path, dtype: str, max_tokens: int, pool: Pool):
        # The driver has said which prompts are cut.
        logging.getLogger("flashvideo_ray.models.text").setLevel(logging.ERROR)
        self._encoder = _load_text_encoder(folder, dtype, max_tokens, pool)

    def encode(self, text: str, prefix: str = "") -> torch.Tensor:
        """See TextModel."""
        embeds = self._encoder(text, prefix)
        _check_finite(embeds, "the text encoder")
        return embeds[0].cpu().contiguous()


class Preview:
    """See `engine.PreviewModel`."""

    def __init__(self, folder: Path, own: PreviewSettings, pool: Pool):
        self._own = own
        self._pipe = _load(models.FlashVideoPreviewPipeline, folder, own, pool, **_NO_TEXT)
        self.device_name = _device_name(self._pipe)

    def sample(
        self, prompt_embeds: torch.Tensor, negative_embeds: torch.Tensor | None, seed: int, told: StepTold
    ) -> torch.Tensor:
        """See PreviewModel. `[latent frames, channels, height, width]`, in the transformer's dtype."""
        own = self._own
        latents = self._pipe(
            **_embeds(prompt_embeds, negative_embeds),
            height=own.height,
            width=own.width,
            num_frames=own.num_frames,
            num_inference_steps=own.num_inference_steps,
            guidance_scale=own.guidance_scale,
            generator=_generator(seed, "preview"),
            output_type="latent",
            guidance_batching=own.guidance_batching,
            callback_on_step_end=_teller(told),
        ).latents.to(self._pipe.transformer.dtype)
        _check_finite(latents, "stage 1")
        return latents[0].cpu().contiguous()

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """See PreviewModel."""
        frames = self._pipe.decode_latents(latents[None])
        _check_finite(frames, "the preview decoder")
        return video.to_uint8(frames[0].float().cpu())


class Refine:
    """See `engine.RefineModel`."""

    def __init__(self, folder: Path, own: RefineSettings, pool: Pool):
        self._own = own
        asked = {"encode_chunk_frames": own.encode_chunk_frames, "encode_tiles": own.encode_tiles}
        encoding = {name: value for name, value in asked.items() if value is not None}
        self._pipe = _load(models.FlashVideoRefinePipeline, folder, own, pool, **_NO_TEXT, **encoding)
        self.device_name = _device_name(self._pipe)

    def refine(
        self,
        preview_latents: torch.Tensor,
        prompt_embeds: torch.Tensor,
        negative_embeds: torch.Tensor | None,
        seed: int,
        told: StepTold,
    ) -> tuple[np.ndarray, str | None]:
        """See RefineModel."""
        own = self._own
        latents = self._pipe(
            preview_latents=preview_latents[None],
            **_embeds(prompt_embeds, negative_embeds),
            height=own.height,
            width=own.width,
            num_inference_steps=own.num_inference_steps,
            guidance_scale=own.guidance_scale,
            noise_step=own.noise_step,
            generator=_generator(seed, "refine"),
            guidance_batching=own.guidance_batching,
            output_type="latent",
            callback_on_step_end=_teller(told),
        ).latents
        _check_finite(latents, "stage 2")
        note = None
        try:
            frames = self._pipe.decode_latents(latents, tiling=own.decode_tiling, tiles=own.decode_tiles)
        except (torch.OutOfMemoryError, MemoryError):
            # Four times as many tiles fit a quarter of the memory; what was paid for is kept.
            torch.cuda.empty_cache()
            rows, columns = own.decode_tiles or (1, 1)
            tiles = (2 * rows, 2 * columns)
            tiling = "reference" if own.decode_tiling in (None, "none") else own.decode_tiling
            frames = self._pipe.decode_latents(latents, tiling=tiling, tiles=tiles)
            note = f"decoded in {tiles[0]}x{tiles[1]} tiles after running out of memory"
        _check_finite(frames, "the decoder")
        return video.to_uint8(frames[0].float().cpu()), note


def _load_text_encoder(folder: Path, dtype: str, length: int, pool: Pool) -> TextEncoder:
    """The text encoder on the actor's card or on the CPU. It is one model: to move it whole would leave it nowhere."""
    import transformers.utils.logging

    transformers.utils.logging.disable_progress_bar()
    encoder = TextEncoder.from_pretrained(folder, getattr(torch, dtype), length)
    if not torch.cuda.is_available():
        return encoder
    if pool.offload == "group":
        from diffusers.hooks import apply_group_offloading

        device = torch.device("cuda")
        apply_group_offloading(encoder.text_encoder, onload_device=device, offload_type="leaf_level", use_stream=True)
    else:
        encoder.text_encoder.to("cuda")
    return encoder


def _load(pipeline: Any, folder: Path, own: PreviewSettings | RefineSettings, pool: Pool, **parts: Any) -> Any:
    """Load a pipeline onto the actor's card, or on the CPU where Ray gave it none.

    `parts` are components, or settings of the pipeline, that are not to be as its folder has them.
    """
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    dtypes = {"vae": getattr(torch, own.vae_dtype or own.dtype), "default": getattr(torch, own.dtype)}
    pipe = pipeline.from_pretrained(folder, dtype=dtypes, **parts)
    pipe.set_progress_bar_config(disable=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if pool.offload == "none" or device == "cpu":
        pipe.to(device)
    elif pool.offload == "model":
        pipe.enable_model_cpu_offload()
    else:
        pipe.enable_group_offload(onload_device=torch.device(device), offload_type="leaf_level", use_stream=True)
    return pipe


def _device_name(pipe: Any) -> str:
    device = pipe._execution_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


def _generator(seed: int, stage: ModelStage) -> torch.Generator:
    """The candidate's own noise for one stage, drawn on the CPU: the same whatever runs it, and when."""
    own = int.from_bytes(hashlib.sha256(f"{seed}/{stage}".encode()).digest()[:8], "big") >> 1
    return torch.Generator("cpu").manual_seed(own)


def _embeds(prompt: torch.Tensor, negative: torch.Tensor | None) -> Mapping[str, torch.Tensor]:
    embeds = {"prompt_embeds": prompt[None]}
    if negative is not None:
        embeds["negative_prompt_embeds"] = negative[None]
    return embeds


def _teller(told: StepTold) -> Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]:
    """A `callback_on_step_end` for a diffusers pipeline."""

    def after(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        told(step + 1, len(pipe.scheduler.timesteps))
        return tensors

    return after


def _check_finite(values: torch.Tensor, source: str) -> None:
    if not torch.isfinite(values).all():
        bad = (~torch.isfinite(values)).float().mean().item()
        raise NonFiniteError(f"{source} gave NaN or infinite values ({bad:.1%} of them)")
