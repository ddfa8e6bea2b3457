"""Where a pipeline's weights are while it runs."""

from __future__ import annotations

from typing import Literal

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

Offload = Literal["none", "model", "group"]


def place(pipeline: DiffusionPipeline, device: torch.device | str, offload: Offload = "none") -> None:
    """Put a pipeline on a device: whole, one network at a time, or one transformer block at a time.

    With "group" the next block is copied while one computes. The VAE, small and called by its parts, stays on the
    device: hooks on its root would see neither its encoder nor its decoder.
    """
    device = torch.device(device)
    if offload == "none":
        pipeline.to(device)
    elif offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.enable_group_offload(
            onload_device=device,
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=device.type == "cuda",
            exclude_modules=["vae"],
        )
