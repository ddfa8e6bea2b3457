"""Official FlashVideo checkpoints to a model folder of this package, in safetensors.

Reads `stage1.pt`, `stage2.pt` and `3d-vae.pt` as released, and the T5 encoder that goes with them. Files are mapped,
not loaded, and written shard by shard: converting the 11.8 GB of stage 1 takes some 3 GB of memory, the T5 encoder
its own size in `dtype` (9.5 GB in bfloat16).
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from flashvideo_ray.models import (
    FlashVideoDPMScheduler,
    FlashVideoFlowScheduler,
    FlashVideoPreviewPipeline,
    FlashVideoRefinePipeline,
)
from flashvideo_ray.models.checkpoints import Component, ConversionError, listing, read_components

__all__ = ["Conversion", "ConversionError", "convert"]

PREVIEW_SCALING_FACTOR = 0.7
REFINE_SCALING_FACTOR = 1.15258426
SHARD_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Conversion:
    """What was converted: where it is, and the parameters of each network."""

    dest: Path
    parameters: Mapping[str, int]
    verified: bool


def convert(
    checkpoints: str | Path,
    dest: str | Path,
    *,
    text_encoder: str,
    dtype: str | torch.dtype = "bfloat16",
    verify: bool = False,
) -> Conversion:
    """Convert official checkpoints into `dest/preview` and `dest/refine`.

    LoRA factors are merged in float32 and the result is rounded to `dtype` once. The refine folder holds no text
    encoder: pass the preview pipeline's to `FlashVideoRefinePipeline.from_pretrained`.

    Args:
        checkpoints: folder with `stage1.pt`, `stage2.pt` and `3d-vae.pt`.
        dest: folder to make; it must not exist, or be empty. It appears whole or not at all.
        text_encoder: hub id ("google/t5-v1_1-xxl") or folder of the T5 encoder and its tokenizer.
        dtype: "bfloat16", "float16" or "float32", of all weights written.
        verify: read every tensor back and compare it with what the checkpoints give.

    Raises:
        ConversionError: a file is missing or is not weights; keys are missing, unknown or of the wrong shape; the text
            encoder does not fit; the folder exists; or a tensor read back differs.
    """
    checkpoints, dest = Path(checkpoints), Path(dest)
    torch_dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if torch_dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ConversionError(f"dtype must be bfloat16, float16 or float32, got {dtype}")
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise ConversionError(f"{dest} exists: convert into a new folder")

    # 1. Check everything before anything is written
    stage1, stage2, vae = read_components(checkpoints)
    check_text_encoder(text_encoder, stage1, stage2)

    # 2. Write beside the destination, then rename
    dest.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{dest.name}-", dir=dest.parent))
    try:
        temporary.chmod(0o755)
        for folder, transformer in (("preview", stage1), ("refine", stage2)):
            for name, component in (("transformer", transformer), ("vae", vae)):
                write_component(component, temporary / folder / name, torch_dtype, verify)
        write_text_encoder(text_encoder, temporary / "preview", torch_dtype, verify)
        write_pipelines(temporary, stage1.model, stage2.model, vae.model)
        for file in temporary.rglob("*.safetensors"):
            file.chmod(0o644)  # safetensors makes them private
        if dest.exists():
            dest.rmdir()
        temporary.rename(dest)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    parameters = {"preview": stage1.parameters, "refine": stage2.parameters, "vae": vae.parameters}
    return Conversion(dest=dest, parameters=parameters, verified=verify)


def check_text_encoder(name: str, stage1: Component, stage2: Component) -> None:
    """Refuse a text encoder whose width the transformers do not read."""
    try:
        width = T5Config.from_pretrained(name).d_model
    except (OSError, ValueError) as error:
        raise ConversionError(f"no T5 encoder at {name!r} ({str(error).splitlines()[0]})") from error
    for file, component in (("stage1.pt", stage1), ("stage2.pt", stage2)):
        expected = component.model.config.text_embed_dim
        if width != expected:
            raise ConversionError(f"{file} reads text embeddings of {expected} channels, {name!r} makes {width}")


def write_component(component: Component, folder: Path, dtype: torch.dtype, verify: bool) -> None:
    """Write one network in the layout of `save_pretrained`, one shard in memory at a time."""
    shards: list[list[str]] = [[]]
    room = SHARD_BYTES
    for target, tensor in component.model.state_dict().items():
        needed = tensor.numel() * dtype.itemsize
        if needed > room and shards[-1]:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(target)
        room -= needed

    component.model.save_config(folder)
    name = "diffusion_pytorch_model"
    if len(shards) == 1:
        files = [f"{name}.safetensors"]
    else:
        files = [f"{name}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
        index = {
            "metadata": {"total_size": component.parameters * dtype.itemsize},
            "weight_map": {target: file for file, targets in zip(files, shards, strict=True) for target in targets},
        }
        (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    for file, targets in zip(files, shards, strict=True):
        save_file(
            {target: component.make(target, dtype) for target in targets}, folder / file, metadata={"format": "pt"}
        )
    if verify:
        verify_component(component, folder, dtype)


def verify_component(component: Component, folder: Path, dtype: torch.dtype) -> None:
    """Read every tensor back and compare it, bit by bit, with what the checkpoint gives."""
    missing = set(component.recipes)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as written:
            for target in written.keys():  # noqa: SIM118
                if not torch.equal(written.get_tensor(target), component.make(target, dtype)):
                    raise ConversionError(f"{target} in {file.name} is not what was written")
                missing.discard(target)
    if missing:
        raise ConversionError(f"not found again in {folder.name}: {listing(sorted(missing))}")


def write_text_encoder(name: str, folder: Path, dtype: torch.dtype, verify: bool) -> None:
    """Write the T5 encoder and its tokenizer, in transformers' layout."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        encoder = T5EncoderModel.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError, ImportError) as error:
        raise ConversionError(f"no T5 encoder and tokenizer at {name!r} ({str(error).splitlines()[0]})") from error
    tokenizer.save_pretrained(folder / "tokenizer")
    encoder.save_pretrained(folder / "text_encoder", max_shard_size="2GB")
    if verify:
        again = T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=dtype).state_dict()
        if any(not torch.equal(value, again[key]) for key, value in encoder.state_dict().items()):
            raise ConversionError("the text encoder read back is not what was written")


def write_pipelines(folder: Path, stage1: Any, stage2: Any, vae: Any) -> None:
    """Write the schedulers and the two `model_index.json`, around networks that are already there."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "preview" / "tokenizer")
    with torch.device("meta"):
        encoder = T5EncoderModel(T5Config.from_pretrained(folder / "preview" / "text_encoder"))
    preview = FlashVideoPreviewPipeline(stage1, vae, FlashVideoDPMScheduler(), tokenizer, encoder)
    refine = FlashVideoRefinePipeline(stage2, vae, FlashVideoFlowScheduler())
    for name, pipeline in (("preview", preview), ("refine", refine)):
        pipeline.save_config(folder / name)
        pipeline.scheduler.save_pretrained(folder / name / "scheduler")
    for name, factor in (("preview", PREVIEW_SCALING_FACTOR), ("refine", REFINE_SCALING_FACTOR)):
        vae.register_to_config(scaling_factor=factor)
        vae.save_config(folder / name / "vae")
