"""The nano model's scorer: a CLIP whose picture is a contact sheet of four frames, so that it can see motion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from . import clip_path

TILE = 64


def contact_sheet(frames: Tensor) -> Tensor:
    """Four frames spread over the clip as one picture.

    From [batch, frames, 3, h, w] in 0..1 to [batch, 3, 128, 128] in -1..1.

    Frames are resized to 64 x 64 and stand in reading order.
    """
    last = frames.shape[1] - 1
    chosen = frames[:, [0, round(last / 3), round(2 * last / 3), last]]
    size = (TILE, TILE)
    tiles = F.interpolate(chosen.flatten(0, 1), size=size, mode="bilinear", align_corners=False, antialias=True)
    tiles = tiles.unflatten(0, chosen.shape[:2]) * 2 - 1
    top, bottom = torch.cat([tiles[:, 0], tiles[:, 1]], dim=-1), torch.cat([tiles[:, 2], tiles[:, 3]], dim=-1)
    return torch.cat([top, bottom], dim=-2)


def image_features(model: Any, sheets: Tensor) -> Tensor:
    """Unit vectors [batch, 64] of contact sheets."""
    pooled = model.vision_model(pixel_values=sheets).pooler_output
    return F.normalize(model.visual_projection(pooled), dim=-1)


def text_features(model: Any, ids: Tensor) -> Tensor:
    """Unit vectors [batch, 64] of padded token ids [batch, length]."""
    pooled = model.text_model(input_ids=ids, attention_mask=(ids != 0).long()).pooler_output
    return F.normalize(model.text_projection(pooled), dim=-1)


class NanoClip:
    """How well clips follow prompts: the cosine similarity of contact sheet and caption, -1..1."""

    def __init__(self, folder: str | Path | None = None) -> None:
        folder = Path(folder or clip_path())
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def __call__(self, frames: Tensor, prompts: list[str]) -> Tensor:
        """Scores [batch] of clips [batch, frames, 3, h, w] float in 0..1 of any size against their prompts."""
        ids = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return (image_features(self.model, contact_sheet(frames)) * text_features(self.model, ids)).sum(-1)
