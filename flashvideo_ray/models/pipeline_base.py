"""What the preview and the refine pipeline share: text, guided prediction, decoding, sizes and output."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from .geometry import floor_size, generated_length
from .text import encode_text
from .transformer import FlashVideoTransformer3DModel
from .vae import decode_video, spatial_factor

OutputType = Literal["pt", "np", "pil", "latent"]
GuidanceBatching = Literal["together", "apart"]
DecodeTiling = Literal["none", "reference", "blend"]
StepCallback = Callable[[DiffusionPipeline, int, torch.Tensor, dict[str, torch.Tensor]], dict[str, Any] | None]


class FlashVideoPipeline(DiffusionPipeline):
    """Base of both stages. Sampling defaults are in `config`, which `model_index.json` stores."""

    _optional_components = ["tokenizer", "text_encoder"]  # noqa: RUF012
    model_cpu_offload_seq = "text_encoder->transformer->vae"  # type: ignore[assignment]

    config: Any
    tokenizer: Any
    text_encoder: Any
    transformer: FlashVideoTransformer3DModel
    vae: AutoencoderKLCogVideoX

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

    def _text_tokens(
        self,
        prompt: str | list[str] | None,
        prompt_embeds: torch.Tensor | None,
        negative_prompt: str | list[str] | None,
        negative_prompt_embeds: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return conditional and unconditional text tokens, projected, each `[batch, length, width]`.

        Without a negative prompt the unconditional embedding is zero, as both stages were trained.
        """
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("pass either prompt or prompt_embeds")
        if prompt_embeds is None:
            assert prompt is not None
            prompt_embeds = self.encode_prompt(prompt)
        if negative_prompt_embeds is None and negative_prompt is not None:
            negative_prompt_embeds = self.encode_prompt(negative_prompt, prefix="")
        if negative_prompt_embeds is None:
            negative_prompt_embeds = torch.zeros_like(prompt_embeds[:1])
        device = self._execution_device
        cond = self.transformer.project_text(prompt_embeds.to(device))
        uncond = self.transformer.project_text(negative_prompt_embeds.to(device))
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
        if batching not in ("together", "apart"):
            raise ValueError(f"guidance_batching must be 'together' or 'apart', got {batching!r}")
        both = torch.cat([uncond, cond] if uncond_first else [cond, uncond])

        def velocity(latents: torch.Tensor, text: torch.Tensor, timestep: torch.Tensor, branch: str) -> torch.Tensor:
            with self.transformer.cache_context(branch):
                return self.transformer(latents, text, timestep, text_is_projected=True, return_dict=False, **extra)[
                    0
                ].float()

        def predict(latents: torch.Tensor, timestep: torch.Tensor, scale: float) -> torch.Tensor:
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
        self, callback: StepCallback | None, index: int, timestep: torch.Tensor, latents: torch.Tensor
    ) -> torch.Tensor:
        """Run the caller's callback, which may replace the latents."""
        if callback is None:
            return latents
        return (callback(self, index, timestep, {"latents": latents}) or {}).get("latents", latents)

    @torch.no_grad()
    def decode_latents(
        self,
        latents: torch.Tensor,
        *,
        scaling_factor: float | None = None,
        tiling: DecodeTiling | None = None,
        tiles: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        """Decode scaled latents `[batch, latent frames, channels, height, width]` into frames.

        Args:
            latents: as a pipeline of this class returns them.
            scaling_factor: the latents are divided by this; default is the VAE's own.
            tiling: "none" decodes whole frames; "reference" cuts them into `tiles` with an overlap and a hard border,
                which is exact for the refine stage; "blend" cross-fades the overlap instead. Default from `config`.
            tiles: (rows, columns) when tiling; the reference uses (1, 2), more tiles need less memory.

        Returns:
            Frames `[batch, frames, 3, height, width]` float32 in [0, 1], on the CPU, not rounded to 8 bits.
        """
        tiling = tiling or self.config.decode_tiling
        if tiling not in ("none", "reference", "blend"):
            raise ValueError(f"tiling must be 'none', 'reference' or 'blend', got {tiling!r}")
        rows, columns = (1, 1) if tiling == "none" else (tiles or self.config.decode_tiles)
        factor = scaling_factor or self.vae.config["scaling_factor"]
        return decode_video(
            self.vae, latents / factor, tiles=(rows, columns), blend=tiling == "blend", device=self._execution_device
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
