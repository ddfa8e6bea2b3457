"""Collect what has been trained so far into a model folder: `python -m flashvideo_ray.nano.train export`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from .. import path
from ..config import NANO, NanoConfig
from ..networks import build_clip, build_text_encoder, build_transformer, build_vae, save_folder


def export(work: Path, dest: Path | None = None, config: NanoConfig = NANO, dtype: torch.dtype = torch.float16) -> Path:
    """Write the averaged weights of every part's last checkpoint; a part not yet begun stays random (seed 0)."""
    torch.manual_seed(0)
    parts: dict[str, nn.Module] = {
        "vae": build_vae(config),
        "text": build_text_encoder(config),
        "stage1": build_transformer(1, config),
        "stage2": build_transformer(2, config),
        "clip": build_clip(config),
    }
    for name, module in parts.items():
        file = work / name / "checkpoint.pt"
        if file.is_file():
            module.load_state_dict(torch.load(file, weights_only=False)["average"])
        else:
            print(f"{name}: no checkpoint, random weights")
    return save_folder(
        dest or path(),
        vae=parts["vae"],  # type: ignore[arg-type]
        text_encoder=parts["text"],  # type: ignore[arg-type]
        preview=parts["stage1"],  # type: ignore[arg-type]
        refine=parts["stage2"],  # type: ignore[arg-type]
        clip=parts["clip"],
        config=config,
        dtype=dtype,
    )
