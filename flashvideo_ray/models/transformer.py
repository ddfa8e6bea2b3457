"""The diffusion transformer of both stages: CogVideoX blocks, integer 3D RoPE and two optional embeddings.

Both stages share one architecture (paper §3.2, figure 3). Stage 1 is the plain network; stage 2 adds two embeddings
to the time embedding: the number of latent frames, and the noise step to which its low-resolution input was degraded.

Against `CogVideoXTransformer3DModel`: the two embeddings, `norm_out` with an epsilon of its own, rotary positions that
are whole numbers at every resolution (the diffusers pipeline rescales them to a base grid), and a text projection that
a sampler can do once instead of at every step. Weight names are the same.
"""

from functools import lru_cache
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.attention_processor import Attention
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import CogVideoXPatchEmbed, TimestepEmbedding, Timesteps, get_1d_rotary_pos_embed
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import AdaLayerNorm
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from diffusers.utils.accelerate_utils import apply_forward_hook
from diffusers.utils.peft_utils import apply_lora_scale
from torch import nn
from torch.nn import functional as F

from .attention import FlashVideoAttnProcessor


@lru_cache(maxsize=8)
def rotary_embedding(
    head_dim: int, frames: int, height: int, width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (cos, sin), each `[frames * height * width, head_dim]` float32, for tokens ordered frame, row, column.

    Positions are 0, 1, 2, … on each axis, at every resolution. A quarter of the channel pairs turns with time, the
    rest is shared by height and width (16 + 24 + 24 of 64 channels). The last few shapes are kept.
    """
    pairs = head_dim // 2
    dim_t = pairs // 4 * 2
    dim_h = (pairs - pairs // 4) // 2 * 2
    dim_w = head_dim - dim_t - dim_h

    def positions(size: int) -> Any:
        return torch.arange(size, dtype=torch.float32, device=device)

    # A table made under inference_mode could not be used in training later.
    with torch.inference_mode(False), torch.no_grad():
        axes = [
            get_1d_rotary_pos_embed(dim, positions(size), use_real=True)
            for dim, size in ((dim_t, frames), (dim_h, height), (dim_w, width))
        ]
        cos, sin = (
            torch.cat(
                [
                    table_t[:, None, None].expand(-1, height, width, -1),
                    table_h[None, :, None].expand(frames, -1, width, -1),
                    table_w[None, None].expand(frames, height, -1, -1),
                ],
                dim=-1,
            ).flatten(0, 2)
            for table_t, table_h, table_w in zip(*axes, strict=True)
        )
    return cos, sin


class FlashVideoTransformer3DModel(  # type: ignore[misc]
    ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin, CacheMixin
):
    """Predict a velocity for video latents from text, a time and (stage 2) the noise step of the input.

    Stage 1 of the released weights has 48 heads and 42 layers (5.6 B parameters), stage 2 has 30 and 30 (1.7 B) and
    both embeddings.

    Args:
        num_attention_heads: heads in each layer; the width is `num_attention_heads * attention_head_dim`.
        attention_head_dim: channels in each head, an even number.
        in_channels: latent channels, in and out.
        num_layers: transformer blocks.
        patch_size: side in latent pixels of the square that becomes one token.
        time_embed_dim: channels of the conditioning vector that modulates every block.
        text_embed_dim: channels of the text encoder's output.
        size_embedding: add an embedding of the number of latent frames (stage 2).
        ref_step_embedding: add an embedding of `ref_noise_step` (stage 2).
        dropout: after the patch embedding and in the feed-forwards.
        attention_bias: whether the query, key and value projections have a bias.
        norm_eps: epsilon of the layer norms in and after the blocks (1e-5 in the reference).
        out_norm_eps: epsilon of the last, modulated layer norm (1e-6 in the reference).
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["CogVideoXBlock"]  # type: ignore[assignment]  # noqa: RUF012
    _repeated_blocks = ["CogVideoXBlock"]  # noqa: RUF012
    _skip_layerwise_casting_patterns = ["patch_embed", "norm"]  # type: ignore[assignment]  # noqa: RUF012
    config: Any
    _gradient_checkpointing_func: Any

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 30,
        attention_head_dim: int = 64,
        in_channels: int = 16,
        num_layers: int = 30,
        patch_size: int = 2,
        time_embed_dim: int = 512,
        text_embed_dim: int = 4096,
        size_embedding: bool = False,
        ref_step_embedding: bool = False,
        dropout: float = 0.0,
        attention_bias: bool = True,
        norm_eps: float = 1e-5,
        out_norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if attention_head_dim % 2:
            raise ValueError(f"attention_head_dim must be even for rotary embeddings, got {attention_head_dim}")
        inner_dim = num_attention_heads * attention_head_dim

        self.patch_embed = CogVideoXPatchEmbed(
            patch_size=patch_size,
            in_channels=in_channels,
            embed_dim=inner_dim,
            text_embed_dim=text_embed_dim,
            use_positional_embeddings=False,
            use_learned_positional_embeddings=False,
        )
        self.embedding_dropout = nn.Dropout(dropout)

        self.time_proj = Timesteps(inner_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(inner_dim, time_embed_dim)
        self.time_size_embedding = TimestepEmbedding(inner_dim, time_embed_dim) if size_embedding else None
        self.ref_step_time_embedding = TimestepEmbedding(inner_dim, time_embed_dim) if ref_step_embedding else None

        self.transformer_blocks = nn.ModuleList(
            CogVideoXBlock(
                dim=inner_dim,
                num_attention_heads=num_attention_heads,
                attention_head_dim=attention_head_dim,
                time_embed_dim=time_embed_dim,
                dropout=dropout,
                attention_bias=attention_bias,
                norm_eps=norm_eps,
            )
            for _ in range(num_layers)
        )
        for module in self.transformer_blocks.modules():
            if isinstance(module, Attention):
                module.set_processor(FlashVideoAttnProcessor())  # type: ignore[arg-type]
        self.norm_final = nn.LayerNorm(inner_dim, norm_eps)
        self.norm_out = AdaLayerNorm(
            embedding_dim=time_embed_dim,
            output_dim=2 * inner_dim,
            norm_elementwise_affine=True,
            norm_eps=out_norm_eps,
            chunk_dim=1,
        )
        self.proj_out = nn.Linear(inner_dim, patch_size * patch_size * in_channels)
        self.gradient_checkpointing = False

    @apply_forward_hook
    def project_text(self, prompt_embeds: torch.Tensor) -> torch.Tensor:
        """Map text embeddings `[batch, length, text_embed_dim]` to text tokens `[batch, length, width]`.

        The tokens do not change while sampling: project once, then call the model with `text_is_projected=True`.
        Works wherever an offloading hook has left the weights; the result is on the device of the input.
        """
        linear, embeds = self.patch_embed.text_proj, prompt_embeds.to(self.dtype)
        if linear.weight.is_meta or linear.weight.device == embeds.device:
            return linear(embeds)
        # Group offload has left this layer behind: its weights go where all else is computed, not the other way round.
        return F.linear(embeds, linear.weight.to(embeds.device), linear.bias.to(embeds.device))

    def condition(
        self,
        timestep: torch.Tensor,
        num_frames: int,
        ref_noise_step: torch.Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """Return the conditioning vector `[batch, time_embed_dim]`: time + number of latent frames + noise step.

        Args:
            timestep: `[batch]` model time, 0 (clean) … 1000 (noise), need not be whole.
            num_frames: latent frames; used if the model has a `size_embedding`.
            ref_noise_step: `[batch]` training step (0 … 999) whose noise level the low-resolution latents carry;
                required if the model has a `ref_step_embedding`.
            dtype: in which the sinusoids, made in float32, enter the embedding layers.
        """
        embedding = self.time_embedding(self.time_proj(timestep).to(dtype))
        if self.time_size_embedding is not None:
            sizes = torch.full_like(timestep, num_frames, dtype=torch.float32)
            embedding = embedding + self.time_size_embedding(self.time_proj(sizes).to(dtype))
        if self.ref_step_time_embedding is not None:
            if ref_noise_step is None:
                raise ValueError("this transformer has a ref_step_embedding: pass ref_noise_step")
            embedding = embedding + self.ref_step_time_embedding(self.time_proj(ref_noise_step).to(dtype))
        return embedding

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep: torch.Tensor | float,
        ref_noise_step: torch.Tensor | float | None = None,
        text_is_projected: bool = False,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict the velocity of `hidden_states`.

        Args:
            hidden_states: latents `[batch, frames, channels, height, width]`; height and width are multiples of
                `patch_size`, any number of frames.
            encoder_hidden_states: text embeddings `[batch, length, text_embed_dim]`, or with `text_is_projected`
                what `project_text` made of them. Every position takes part in attention, padding too.
            timestep: `[batch]` or a number; see `condition`.
            ref_noise_step: `[batch]` or a number; see `condition`.
            text_is_projected: `encoder_hidden_states` comes from `project_text`.
            attention_kwargs: for the attention processors; `scale` is the LoRA scale.
            return_dict: return `Transformer2DModelOutput` instead of a tuple.

        Returns:
            The prediction, of the shape of `hidden_states`.
        """
        batch, frames, channels, height, width = hidden_states.shape
        patch = self.config.patch_size
        if height % patch or width % patch:
            raise ValueError(f"latents of {height}x{width} cannot be cut into patches of {patch}x{patch}")
        rows, columns = height // patch, width // patch
        device, dtype = hidden_states.device, hidden_states.dtype

        def per_sample(value: torch.Tensor | float) -> torch.Tensor:
            return torch.as_tensor(value, device=device).expand(batch)

        # 1. What every block is modulated by, and where its tokens stand
        emb = self.condition(
            per_sample(timestep), frames, None if ref_noise_step is None else per_sample(ref_noise_step), dtype
        )
        rotary = rotary_embedding(self.config.attention_head_dim, frames, rows, columns, device)

        # 2. Tokens: text, and patches ordered frame, row, column
        text = encoder_hidden_states if text_is_projected else self.patch_embed.text_proj(encoder_hidden_states)
        video = self.patch_embed.proj(hidden_states.reshape(-1, channels, height, width))
        video = video.view(batch, frames, -1, rows * columns).transpose(2, 3).flatten(1, 2)
        text, video = self.embedding_dropout(text), self.embedding_dropout(video)

        # 3. Blocks: joint attention over text and video
        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                video, text = self._gradient_checkpointing_func(block, video, text, emb, rotary, attention_kwargs)
            else:
                video, text = block(
                    hidden_states=video,
                    encoder_hidden_states=text,
                    temb=emb,
                    image_rotary_emb=rotary,
                    attention_kwargs=attention_kwargs,
                )

        # 4. Video tokens back to latents
        video = self.proj_out(self.norm_out(self.norm_final(video), temb=emb))
        video = video.view(batch, frames, rows, columns, channels, patch, patch)
        sample = video.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, frames, channels, height, width)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)
