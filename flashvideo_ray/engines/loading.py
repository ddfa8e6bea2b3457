"""A pipeline's weights onto an actor's card, or onto the CPU where Ray gave it none, with what settings ask of it."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from flashvideo_ray.engines.engine import StepTold
from flashvideo_ray.engines.weights import ModelStage
from flashvideo_ray.models import offload, optimize
from flashvideo_ray.settings import AdapterSettings, Pool, PreviewSettings, RefineSettings


def pipeline(cls: Any, folder: Path, dtypes: Mapping[str, str], **parts: Any) -> Any:
    """A pipeline on the CPU. `parts` are components, or settings of it, that are not to be as its folder has them."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    kinds = {name: getattr(torch, dtype) for name, dtype in dtypes.items()}
    pipe = cls.from_pretrained(folder, dtype=kinds, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stage(cls: Any, folder: Path, own: PreviewSettings | RefineSettings, pool: Pool, **parts: Any) -> Any:
    """One stage's pipeline, ready to be called: with its adapters, its options, in its place."""
    pipe = pipeline(cls, folder, {"vae": own.vae_dtype or own.dtype, "default": own.dtype}, **parts)
    _merge_adapters(pipe, own.adapters)
    optimize.apply(
        pipe,
        **own.optimize.model_dump(),
        num_inference_steps=own.num_inference_steps,
        guidance_batching=own.guidance_batching,
    )
    place(pipe, pool)
    optimize.finish(pipe, compile=own.optimize.compile, attention=own.optimize.attention)
    return pipe


def place(pipe: Any, pool: Pool) -> None:
    """Put a pipeline where its pool has it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    offload.place(pipe, device, "none" if device == "cpu" else pool.offload)


def device_name(pipe: Any) -> str:
    """What it runs on, as the ledger has it."""
    device = pipe._execution_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


def generator(seed: int, stage: ModelStage) -> torch.Generator:
    """The candidate's own noise for one stage, drawn on the CPU: the same whatever runs it, and when."""
    own = int.from_bytes(hashlib.sha256(f"{seed}/{stage}".encode()).digest()[:8], "big") >> 1
    return torch.Generator("cpu").manual_seed(own)


def teller(told: StepTold) -> Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]:
    """A `callback_on_step_end` for a diffusers pipeline."""

    def after(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        told(step + 1, len(pipe.scheduler.timesteps))
        return tensors

    return after


def _merge_adapters(pipe: Any, adapters: Sequence[AdapterSettings]) -> None:
    """Merge adapters into the transformer: then they cost nothing, and all options work as without them."""
    if not adapters:
        return
    names = [f"adapter_{number}" for number in range(len(adapters))]
    for name, adapter in zip(names, adapters, strict=True):
        pipe.load_lora_weights(adapter.path, adapter_name=name)
    pipe.set_adapters(names, [adapter.weight for adapter in adapters])
    pipe.fuse_lora(adapter_names=names)
    pipe.unload_lora_weights()
