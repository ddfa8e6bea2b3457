"""Joint attention over text and video, on whichever kernel is asked for."""

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb


class FlashVideoAttnProcessor:
    """`CogVideoXAttnProcessor2_0` on diffusers' dispatch of attention: `set_attention_backend` chooses its kernel.

    diffusers' own processor calls PyTorch's attention itself, and would ignore the choice without a word. Tensors stay
    `[batch, tokens, heads, channels]`, as the projections give them and as flash kernels read them.
    """

    _attention_backend: Any = None  # an AttentionBackendName, by `set_attention_backend`; None: the environment's
    _parallel_config: Any = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,  # (cos, sin) of the video tokens
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the video tokens and the text tokens took from one another, each `[batch, length, width]`."""
        if attention_mask is not None:
            raise ValueError("FlashVideo attends to every token, padding too: there is no attention mask")
        text_length = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)

        query, key, value = (
            projection(tokens).unflatten(2, (attn.heads, -1)) for projection in (attn.to_q, attn.to_k, attn.to_v)
        )
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        if image_rotary_emb is not None:
            for states in (query, key):
                states[:, text_length:] = apply_rotary_emb(states[:, text_length:], image_rotary_emb, sequence_dim=1)

        out = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        out = out.flatten(2, 3).to(query.dtype)
        for layer in attn.to_out:  # a projection, and dropout
            out = layer(out)
        text, video = out.split([text_length, out.shape[1] - text_length], dim=1)
        return video, text
