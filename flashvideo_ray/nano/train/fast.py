"""Make a training step of the transformers cheap on a CPU, without changing what it computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashvideo_ray.models import FlashVideoTransformer3DModel
from flashvideo_ray.models import transformer as module

from .common import Optimizers


def plain_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Attention as two products and a softmax: the backward of torch's fused CPU kernel takes half of a step."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return scores.softmax(-1).to(value.dtype) @ value


@contextmanager
def fast_attention() -> Iterator[None]:
    """Use `plain_attention` in the networks."""
    before = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = plain_attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before


@contextmanager
def positions(frames: Sequence[int], top: int = 0, left: int = 0) -> Iterator[None]:
    """Give the tokens the rotary positions of these frames (and of a crop at this row and column) of a longer video."""
    before = module.rotary_embedding

    def shifted(
        head_dim: int, count: int, height: int, width: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tables = before(head_dim, max(frames) + 1, top + height, left + width, device)
        shape = (max(frames) + 1, top + height, left + width)
        cos, sin = (t.unflatten(0, shape)[list(frames), top:, left:].flatten(0, 2) for t in tables)
        return cos, sin

    module.rotary_embedding = shifted  # type: ignore[assignment]
    try:
        yield
    finally:
        module.rotary_embedding = before


@torch.no_grad()
def init_transformer(model: Any) -> None:
    """Start with every block half open, no modulation, and a zero prediction."""
    width = model.config.num_attention_heads * model.config.attention_head_dim
    for block in model.transformer_blocks:
        for norm in (block.norm1, block.norm2):
            nn.init.zeros_(norm.linear.weight)
            nn.init.zeros_(norm.linear.bias)
            for gate in (2, 5):
                norm.linear.bias[gate * width : (gate + 1) * width] = 0.5
    for layer in (model.norm_out.linear, model.proj_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    for extra in (model.time_size_embedding, model.ref_step_time_embedding):
        if extra is not None:
            nn.init.zeros_(extra.linear_2.weight)
            nn.init.zeros_(extra.linear_2.bias)


def transformer_optimizers(model: FlashVideoTransformer3DModel, lrs: tuple[float, float]) -> Optimizers:
    """Muon for attention and feed-forward matrices, AdamW for all else."""
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and (".attn1.to_" in n or ".ff.net" in n)]
    chosen = {id(p) for p in hidden}
    return Optimizers(hidden, [p for p in model.parameters() if id(p) not in chosen], lrs)
