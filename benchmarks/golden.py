"""A folder of golden vectors: tiny official-layout checkpoints, and what the reference computed with them."""

import json
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file

from flashvideo_ray.models import FlashVideoPreviewPipeline, FlashVideoRefinePipeline
from flashvideo_ray.models.convert import convert
from flashvideo_ray.models.schedulers import FlashVideoFlowScheduler


class MissingError(Exception):
    """The folder does not hold what a group needs."""


class Golden:
    """A folder of golden vectors, and the pipelines converted from its checkpoints."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.meta = json.loads((folder / "meta.json").read_text())
        self.config = self.meta["config"]

    def file(self, name: str) -> "Tensors":
        """Load a safetensors file of the folder, in float32."""
        path = self.folder / name
        if not path.is_file():
            raise MissingError(name)
        tensors = load_file(path)
        return Tensors(
            name, {key: value if value.dtype == torch.int64 else value.float() for key, value in tensors.items()}
        )

    @cached_property
    def preview(self) -> FlashVideoPreviewPipeline:
        """The preview pipeline, with this folder's text length."""
        if not (self.model / "preview").exists():
            convert(self.folder, self.model, text_encoder=str(self.folder / "t5"), dtype="float32", verify=True)
        length = self.config["max_len"]
        pipeline = FlashVideoPreviewPipeline.from_pretrained(self.model / "preview", max_sequence_length=length)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @cached_property
    def refine(self) -> FlashVideoRefinePipeline:
        """The refine pipeline, with this folder's text length and shift."""
        pipeline = FlashVideoRefinePipeline.from_pretrained(
            self.model / "refine",
            max_sequence_length=self.config["max_len"],
            tokenizer=self.preview.tokenizer,
            text_encoder=self.preview.text_encoder,
        )
        pipeline.scheduler = FlashVideoFlowScheduler.from_config(pipeline.scheduler.config, shift=self.config["shift"])
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @cached_property
    def low_resolution_frames(self) -> torch.Tensor:
        """The reference's stage-1 pixels as frames `[1, frames, 3, height, width]` in [0, 1]."""
        return self.file("stage1_pixels.safetensors")["pixels_0_255"].permute(0, 3, 1, 2)[None] / 255


class Tensors(dict):
    """The tensors of a file; asking for one that is not there says where it should have been."""

    def __init__(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__(tensors)
        self.name = name

    def __missing__(self, key: str) -> torch.Tensor:
        raise MissingError(f"{key} in {self.name}")


def to_255(frames: torch.Tensor) -> torch.Tensor:
    """Frames `[1, frames, 3, height, width]` in [0, 1] in the layout and range of the golden pixels."""
    return frames[0].permute(0, 2, 3, 1) * 255
