"""What the preview and the refine pipeline share: checks, text, guided prediction, decoding, sizes and output."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from .geometry import floor_size, generated_length
from .lora import FlashVideoLoraLoaderMixin
from .noise import Generators
from .text import encode_text
from .transformer import FlashVideoTransformer3DModel
from .vae import decode_video, spatial_factor

OutputType = Literal["pt", "np", "pil", "latent"]
GuidanceBatching = Literal["together", "apart"]
DecodeTiling = Literal["none", "reference", "blend"]
StepCallback = Callable[[DiffusionPipeline, int, torch.Tensor, dict[str, torch.Tensor]], dict[str, Any] | None]


class FlashVideoPipeline(DiffusionPipeline, FlashVideoLoraLoaderMixin):
    """Base of both stages. Sampling defaults are in `config`, which `model_index.json` stores."""

    _optional_components = ["tokenizer", "text_encoder"]  # noqa: RUF012
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012
    model_cpu_offload_seq = "text_encoder->transformer->vae"  # type: ignore[assignment]

    config: Any
    tokenizer: Any
    text_encoder: Any
    transformer: FlashVideoTransformer3DModel
    vae: AutoencoderKLCogVideoX

    # Of the call that runs, or that ran last.
    _guidance_scale = 1.0
    _num_timesteps = 0
    _current_timestep: float | None = None
    _interrupt = False

    @property
    def guidance_scale(self) -> float:
        """Strength of guidance in this step."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Steps of this call."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> float | None:
        """Model time of this step; None outside the loop."""
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` in a callback, and the call skips its remaining steps and returns what it has."""
        return self._interrupt

    @property
    def vae_scale_factor(self) -> int:
        """Pixels that a latent pixel spans on each axis (8)."""
        return spatial_factor(self.vae)

    def encode_prompt(
        self, prompt: str | list[str], *, prefix: str | None = None, max_sequence_length: int | None = None
    ) -> torch.Tensor:
        """Return text embeddings `[batch, max_sequence_length, text_embed_dim]` for one prompt or several.

        Args:
            prompt: stripped of surrounding white space, otherwise read as it is.
            prefix: put before every prompt; default is the pipeline's `prompt_prefix` (the refine stage of the
                released weights wants "medium motion,").
            max_sequence_length: tokens, default from the pipeline's configuration (226).
        """
        if self.tokenizer is None or self.text_encoder is None:
            raise ValueError(
                "no text encoder: pass tokenizer and text_encoder to from_pretrained, or prompt_embeds to the call"
            )
        prefix = self.config.prompt_prefix if prefix is None else prefix
        texts = [prefix + text.strip() for text in ([prompt] if isinstance(prompt, str) else prompt)]
        length = max_sequence_length or self.config.max_sequence_length
        return encode_text(self.tokenizer, self.text_encoder, texts, length)

    def _check_text(
        self,
        prompt: str | list[str] | None,
        prompt_embeds: torch.Tensor | None,
        negative_prompt: str | list[str] | None,
        negative_prompt_embeds: torch.Tensor | None,
    ) -> int:
        """Raise ValueError unless prompts are given in one way and fit together. Return how many there are."""
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("pass either prompt or prompt_embeds")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("pass either negative_prompt or negative_prompt_embeds, not both")
        for name, texts in (("prompt", prompt), ("negative_prompt", negative_prompt)):
            if texts is not None and not isinstance(texts, (str, list)):
                raise ValueError(f"{name} must be a string or a list of strings, got {type(texts).__name__}")
        width = self.transformer.config.text_embed_dim
        for name, embeds in (("prompt_embeds", prompt_embeds), ("negative_prompt_embeds", negative_prompt_embeds)):
            if embeds is not None and (embeds.ndim != 3 or embeds.shape[-1] != width):
                raise ValueError(f"{name} must have the shape [batch, length, {width}], got {list(embeds.shape)}")
        if prompt_embeds is not None:
            batch, length = prompt_embeds.shape[:2]
        else:
            batch, length = len(prompt) if isinstance(prompt, list) else 1, self.config.max_sequence_length
        if negative_prompt_embeds is not None:
            negatives, negative_length = negative_prompt_embeds.shape[:2]
            if negative_length != length:
                raise ValueError(
                    f"negative_prompt_embeds have a length of {negative_length} tokens, the prompt's {length}"
                )
        else:
            negatives = len(negative_prompt) if isinstance(negative_prompt, list) else 1
        if negatives not in (1, batch):
            raise ValueError(f"{negatives} negative prompts for {batch} prompts")
        return batch

    def _check_options(
        self,
        batch: int,
        steps: int,
        generator: Generators,
        batching: str,
        output_type: str,
        tensor_inputs: Sequence[str],
        tiling: str | None = None,
    ) -> None:
        """Raise ValueError for an option that both calls have and that is not one of its values."""
        choices = {
            "guidance_batching": (batching, get_args(GuidanceBatching)),
            "output_type": (output_type, get_args(OutputType)),
            "decode_tiling": (tiling or self.config.decode_tiling, get_args(DecodeTiling)),
        }
        for name, (value, known) in choices.items():
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
        most = self.scheduler.config.num_train_timesteps
        if not 1 <= steps <= most:
            raise ValueError(f"num_inference_steps must be 1 to {most}, got {steps}")
        if isinstance(generator, list) and len(generator) != batch:
            raise ValueError(f"{len(generator)} generators for {batch} prompts")
        if unknown := [name for name in tensor_inputs if name not in self._callback_tensor_inputs]:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs may hold {self._callback_tensor_inputs}, found {unknown}"
            )

    def _check_shape(self, name: str, tensor: torch.Tensor | None, shape: tuple[int, ...]) -> None:
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have the shape {shape}, got {tuple(tensor.shape)}")

    def _begin(self, steps: int, scale: float) -> None:
        """Forget the call before: also what a cache still holds of one that failed."""
        self._num_timesteps, self._guidance_scale, self._interrupt = steps, scale, False
        if self.transformer.is_cache_enabled:
            self.transformer._reset_stateful_cache()

    def _embed_text(
        self,
        prompt: str | list[str] | None,
        prompt_embeds: torch.Tensor | None,
        negative_prompt: str | list[str] | None,
        negative_prompt_embeds: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return conditional and unconditional text embeddings, `[batch or 1, length, text_embed_dim]`.

        Without a negative prompt the unconditional embedding is zero, as both stages were trained.
        """
        if prompt_embeds is None:
            assert prompt is not None
            prompt_embeds = self.encode_prompt(prompt)
        if negative_prompt_embeds is None and negative_prompt is not None:
            negative_prompt_embeds = self.encode_prompt(negative_prompt, prefix="")
        if negative_prompt_embeds is None:
            negative_prompt_embeds = torch.zeros_like(prompt_embeds[:1])
        return prompt_embeds, negative_prompt_embeds

    def _project_text(self, prompt_embeds: torch.Tensor, negative_embeds: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return text tokens, conditional and unconditional, each `[batch, length, width]`.

        Right before the loop and not earlier: under model offload this one layer brings in the whole transformer.
        """
        device = self._execution_device
        cond = self.transformer.project_text(prompt_embeds.to(device))
        uncond = self.transformer.project_text(negative_embeds.to(device))
        return cond, uncond.expand_as(cond)

    def _latent_shape(self, batch: int, num_frames: int, height: int, width: int) -> tuple[int, int, int, int, int]:
        """Shape of the latents of a video: `[batch, latent frames, channels, height, width]`."""
        ratio, scale = int(self.vae.config["temporal_compression_ratio"]), self.vae_scale_factor
        return (
            batch,
            generated_length(num_frames, ratio),
            self.transformer.config.in_channels,
            height // scale,
            width // scale,
        )

    def _guided(
        self,
        cond: torch.Tensor,
        uncond: torch.Tensor,
        batching: GuidanceBatching,
        uncond_first: bool,
        guided: bool,
        **extra: Any,
    ) -> Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]:
        """Return `predict(latents, timestep, scale)`: the velocity under classifier-free guidance, float32.

        `together` runs both branches as one batch; `apart` runs them one after the other in half the memory. What
        does not change between steps is made here, once.
        """
        both = torch.cat([uncond, cond] if uncond_first else [cond, uncond])

        def velocity(latents: torch.Tensor, text: torch.Tensor, timestep: torch.Tensor, branch: str) -> torch.Tensor:
            with self.transformer.cache_context(branch):
                return self.transformer(latents, text, timestep, text_is_projected=True, return_dict=False, **extra)[
                    0
                ].float()

        def predict(latents: torch.Tensor, timestep: torch.Tensor, scale: float) -> torch.Tensor:
            self._guidance_scale = scale
            latents = latents.to(cond.dtype)
            if not guided:
                return velocity(latents, cond, timestep, "cond")
            if batching == "together":
                first, second = velocity(torch.cat([latents, latents]), both, timestep, "cond_uncond").chunk(2)
                v_uncond, v_cond = (first, second) if uncond_first else (second, first)
            else:
                v_uncond = velocity(latents, uncond, timestep, "uncond")
                v_cond = velocity(latents, cond, timestep, "cond")
            return v_uncond + scale * (v_cond - v_uncond)

        return predict

    def _after_step(
        self,
        callback: StepCallback | None,
        tensor_inputs: Sequence[str],
        index: int,
        timestep: torch.Tensor,
        latents: torch.Tensor,
    ) -> torch.Tensor:
        """Run the caller's callback, which may replace the latents."""
        if callback is None:
            return latents
        tensors = {"latents": latents} if "latents" in tensor_inputs else {}
        return (callback(self, index, timestep, tensors) or {}).get("latents", latents)

    @torch.no_grad()
    def decode_latents(
        self,
        latents: torch.Tensor,
        *,
        scaling_factor: float | None = None,
        tiling: DecodeTiling | None = None,
        tiles: tuple[int, int] | None = None,
        quantise: bool = False,
    ) -> torch.Tensor:
        """Decode scaled latents `[batch, latent frames, channels, height, width]` into frames.

        Args:
            latents: as a pipeline of this class returns them.
            scaling_factor: the latents are divided by this; default is the VAE's own.
            tiling: "none" decodes whole frames; "reference" cuts them into `tiles` with an overlap and a hard border,
                which is exact for the refine stage; "blend" cross-fades the overlap instead. Default from `config`.
            tiles: (rows, columns) when tiling; the reference uses (1, 2), more tiles need less memory.
            quantise: see `decode_video`: 8 bits, rounded and checked on the device.

        Returns:
            Frames `[batch, frames, 3, height, width]` float32 in [0, 1], on the CPU, not rounded to 8 bits; with
            `quantise` `[batch, frames, height, width, 3]` uint8.
        """
        tiling = tiling or self.config.decode_tiling
        if tiling not in ("none", "reference", "blend"):
            raise ValueError(f"tiling must be 'none', 'reference' or 'blend', got {tiling!r}")
        rows, columns = (1, 1) if tiling == "none" else (tiles or self.config.decode_tiles)
        factor = scaling_factor or self.vae.config["scaling_factor"]
        return decode_video(
            self.vae,
            latents / factor,
            tiles=(rows, columns),
            blend=tiling == "blend",
            device=self._execution_device,
            quantise=quantise,
        )

    def _floor_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Round a size down to what latents and patches can hold: 270 x 480 becomes 256 x 480, as in the reference."""
        multiple = self.vae_scale_factor * self.transformer.config.patch_size
        return floor_size(height or self.config.height, width or self.config.width, multiple)


def convert_frames(frames: torch.Tensor, output_type: OutputType) -> torch.Tensor | np.ndarray | list:
    """Give frames `[batch, frames, 3, height, width]` in [0, 1] the form a caller asked for.

    "pt" leaves them, "np" moves channels last, "pil" gives a list of images for each sample.
    """
    if output_type == "pt":
        return frames
    array = frames.permute(0, 1, 3, 4, 2).cpu().numpy()
    return array if output_type == "np" else [VaeImageProcessor.numpy_to_pil(video) for video in array]
