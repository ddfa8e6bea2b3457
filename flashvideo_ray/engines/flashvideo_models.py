"""FlashVideo's models, loaded: stage 1 and stage 2 on an actor's card or CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import is_peft_available
from safetensors import SafetensorError, safe_open

from flashvideo_ray import models
from flashvideo_ray.engines import loading
from flashvideo_ray.engines.engine import NonFiniteError, StepTold, Text, check_finite
from flashvideo_ray.engines.flashvideo_text import PROMPT_EMBEDS
from flashvideo_ray.engines.memory_ladder import Ladder, Rung, notes
from flashvideo_ray.engines.weights import ModelStage
from flashvideo_ray.models import optimize
from flashvideo_ray.models.geometry import check_tiles
from flashvideo_ray.models.lora import adapter_tensors, check_adapter
from flashvideo_ray.settings import Pool, PreviewSettings, RefineSettings

_NO_TEXT: dict[str, None] = {"text_encoder": None, "tokenizer": None}  # embeddings are given


def problems(
    own: PreviewSettings | RefineSettings,
    stage: ModelStage,
    transformer: Mapping[str, Any],
    scheduler: Mapping[str, Any],
) -> list[str]:
    """Options that would do nothing and adapters that do not fit, as configurations alone show; one line each."""
    solver = models.FlashVideoDPMScheduler if stage == "preview" else models.FlashVideoFlowScheduler
    steps = solver.from_config(dict(scheduler))
    steps.set_timesteps(own.num_inference_steps)
    found = []
    try:
        optimize.check(
            layers=transformer["num_layers"],
            times=steps.timesteps.tolist(),
            guidance_batching=own.guidance_batching,
            **own.optimize.model_dump(),
        )
    except optimize.OptionError as error:
        found.append(f"{stage}.optimize.{error}")
    if own.adapters and not is_peft_available():
        return [*found, f"{stage}.adapters: adapters need peft: pip install 'flashvideo-ray[lora]'"]
    with torch.device("meta"):
        network = models.FlashVideoTransformer3DModel.from_config(dict(transformer)) if own.adapters else None
    for adapter in own.adapters:
        try:
            with safe_open(adapter.path, "pt") as file:
                shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118  no mapping
            check_adapter(
                adapter_tensors({key: torch.empty(shape, device="meta") for key, shape in shapes.items()}), network
            )
        except (OSError, SafetensorError, ValueError) as error:
            found.append(f"{stage}.adapters: {adapter.path}: {error}")
    return found


class Preview:
    """See `engine.PreviewModel`."""

    def __init__(self, folder: Path, own: PreviewSettings, pool: Pool):
        self._own = own
        self._pipe = loading.stage(models.FlashVideoPreviewPipeline, folder, own, pool, **_NO_TEXT)
        self.device_name = loading.device_name(self._pipe)
        helps = "a card with more memory, or pools.preview.offload: model,"
        self._denoise = Ladder("denoised", _denoise_rungs(own), helps)
        self._decode = Ladder("decoded", _decode_rungs(self._pipe, own, None, None), helps)

    def sample(self, text: Text, seed: int, told: StepTold) -> tuple[torch.Tensor, str | None]:
        """See PreviewModel. `[latent frames, channels, height, width]` float32."""
        own = self._own

        def denoise(**options: Any) -> torch.Tensor:
            return self._pipe(
                **_embeds(text),
                height=own.height,
                width=own.width,
                num_frames=own.num_frames,
                num_inference_steps=own.num_inference_steps,
                guidance_scale=own.guidance_scale,
                generator=loading.generator(seed, "preview"),
                output_type="latent",
                callback_on_step_end=loading.teller(told),
                **options,
            ).latents

        latents, note = self._denoise.run(denoise)
        check_finite(latents, "stage 1")
        return latents[0].cpu().contiguous(), note

    def decode(self, latents: torch.Tensor) -> tuple[np.ndarray, str | None]:
        """See PreviewModel."""
        return _decoded(self._pipe, self._decode, latents[None], "the preview decoder")


class Refine:
    """See `engine.RefineModel`."""

    def __init__(self, folder: Path, own: RefineSettings, pool: Pool):
        self._own = own
        self._pipe = loading.stage(models.FlashVideoRefinePipeline, folder, own, pool, **_NO_TEXT)
        self.device_name = loading.device_name(self._pipe)
        helps = "a card with more memory, or pools.refine.offload: model,"
        self._encode = Ladder("encoded", _encode_rungs(own, self._pipe), helps)
        self._denoise = Ladder("denoised", _denoise_rungs(own), helps)
        self._decode = Ladder("decoded", _decode_rungs(self._pipe, own, own.decode_tiling, own.decode_tiles), helps)

    def refine(
        self, preview: torch.Tensor | np.ndarray, text: Text, seed: int, told: StepTold
    ) -> tuple[np.ndarray, str | None]:
        """See RefineModel."""
        own, generator = self._own, loading.generator(seed, "refine")
        size = {"height": own.height, "width": own.width}

        def encode(**options: Any) -> torch.Tensor:
            generator.set_state(start)
            return self._pipe.encode_frames(self._frames(preview), generator=generator, **size, **options)

        def denoise(**options: Any) -> torch.Tensor:
            generator.set_state(start)
            return self._pipe(
                encoded=encoded,
                **_embeds(text),
                **size,
                num_inference_steps=own.num_inference_steps,
                guidance_scale=own.guidance_scale,
                noise_step=own.noise_step,
                generator=generator,
                output_type="latent",
                callback_on_step_end=loading.teller(told),
                **options,
            ).latents

        start = generator.get_state()  # a second attempt draws the same noise
        encoded, as_encoded = self._encode.run(encode)
        start = generator.get_state()
        latents, as_denoised = self._denoise.run(denoise)
        check_finite(latents, "stage 2")
        frames, as_decoded = _decoded(self._pipe, self._decode, latents, "the decoder")
        return frames, notes(as_encoded, as_denoised, as_decoded)

    def _frames(self, preview: torch.Tensor | np.ndarray) -> torch.Tensor:
        """`[1, frames, 3, height, width]` in [0, 1]."""
        if isinstance(preview, np.ndarray):
            return torch.from_numpy(preview)[None].permute(0, 1, 4, 2, 3).float() / 255
        scale = self._pipe.config.preview_scaling_factor
        return self._pipe.decode_latents(preview[None], scaling_factor=scale, tiling="none")


def _encode_rungs(own: RefineSettings, pipe: Any) -> list[Rung]:
    """Smaller chunks of frames and more tiles, each for half the memory or less."""
    chunk = own.encode_chunk_frames or pipe.config.encode_chunk_frames
    rows, columns = own.encode_tiles or pipe.config.encode_tiles
    ratio = int(pipe.vae.config["temporal_compression_ratio"])
    half, quarter = (max(chunk // part // ratio, 1) * ratio for part in (2, 4))
    asked: Rung = ("", {"chunk_frames": chunk, "tiles": (rows, columns)})
    less = [(chunk, (rows, 2 * columns)), (half, (2 * rows, 2 * columns)), (quarter, (2 * rows, 4 * columns))]
    return [
        asked,
        *(
            (f"by {frames} frames in {tiles[0]}x{tiles[1]} tiles", {"chunk_frames": frames, "tiles": tiles})
            for frames, tiles in less
            if _can_be_cut(pipe, own, tiles)
        ),
    ]


def _denoise_rungs(own: PreviewSettings | RefineSettings) -> list[Rung]:
    asked: Rung = ("", {"guidance_batching": own.guidance_batching})
    cache = own.optimize.cache
    if own.guidance_batching == "apart" or (cache is not None and cache.name == "pyramid_attention"):
        return [asked]  # a pyramid's cache does not tell the two branches apart
    return [asked, ("with guidance apart", {"guidance_batching": "apart"})]


def _decode_rungs(
    pipe: Any, own: PreviewSettings | RefineSettings, tiling: str | None, tiles: tuple[int, int] | None
) -> list[Rung]:
    """Twice as many tiles on each axis, twice: what was paid for is kept."""
    rows, columns = tiles or (1, 1)
    rungs: list[Rung] = [("", {"tiling": tiling, "tiles": tiles})]
    way = "reference" if tiling in (None, "none") else tiling
    for times in (2, 4):
        more = (times * rows, times * columns)
        if _can_be_cut(pipe, own, more, blend=way == "blend"):
            rungs.append((f"in {more[0]}x{more[1]} tiles", {"tiling": way, "tiles": more}))
    return rungs


def _can_be_cut(pipe: Any, own: PreviewSettings | RefineSettings, tiles: tuple[int, int], blend: bool = False) -> bool:
    height, width = (pixels // pipe.vae_scale_factor for pixels in pipe._floor_size(own.height, own.width))
    try:
        check_tiles(height, width, tiles, blend)
    except ValueError:
        return False
    return True


def _decoded(pipe: Any, ladder: Ladder, latents: torch.Tensor, source: str) -> tuple[np.ndarray, str | None]:
    """RGB uint8 `[frames, height, width, 3]`, rounded and checked on the device; and the ladder's note."""
    try:
        frames, note = ladder.run(lambda **options: pipe.decode_latents(latents, quantise=True, **options))
    except FloatingPointError as error:
        raise NonFiniteError(f"{source} gave {error}") from error
    return frames[0].numpy(), note


def _embeds(text: Text) -> Mapping[str, torch.Tensor]:
    embeds = {"prompt_embeds": text.embeds[PROMPT_EMBEDS][None]}
    if text.negative_embeds:
        embeds["negative_prompt_embeds"] = text.negative_embeds[PROMPT_EMBEDS][None]
    return embeds
