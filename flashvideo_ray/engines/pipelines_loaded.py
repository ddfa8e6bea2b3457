"""Pipelines of diffusers, loaded: their text encoders, stage 1 and stage 2, each on an actor's card or CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from flashvideo_ray.engines import loading, pipeline_class
from flashvideo_ray.engines.engine import StepTold, Text, check_finite
from flashvideo_ray.settings import Pool, PreviewSettings, RefineSettings


class PipelineText:
    """See `engine.TextModel`. Nothing else of the pipeline is loaded."""

    def __init__(
        self,
        cls: type[Any],
        folder: Path,
        names: Sequence[str],
        arguments: Mapping[str, Any],
        dtype: str,
        pool: Pool,
    ):
        self._names = names
        others = {
            name: None
            for name in pipeline_class.parameters(cls.__init__)
            if not pipeline_class.is_text(name) and name != "scheduler"
        }
        self._pipe = loading.pipeline(cls, folder, {"default": dtype}, **others)
        loading.place(self._pipe, pool)
        taken = pipeline_class.parameters(cls.encode_prompt)
        apart = {"do_classifier_free_guidance": False}  # a negative prompt is a text like another
        self._arguments = {**arguments, **{name: value for name, value in apart.items() if name in taken}}

    @torch.no_grad()
    def encode(self, text: str, prefix: str = "") -> dict[str, torch.Tensor]:
        """See TextModel. By the names of the call's arguments, for a batch of one."""
        made = self._pipe.encode_prompt(prompt=prefix + text, **self._arguments)
        named = zip(self._names, made if isinstance(made, tuple) else (made,), strict=True)
        embeds = {name: value for name, value in named if value is not None and not name.startswith("negative_")}
        for value in embeds.values():
            check_finite(value, "the text encoder")
        return {name: value.cpu().contiguous() for name, value in embeds.items()}


class _Pipeline:
    """What both stages share: one call, with a prompt or with what a text encoder has made of it."""

    def __init__(
        self,
        cls: type[Any],
        folder: Path,
        own: PreviewSettings | RefineSettings,
        pool: Pool,
        told: Mapping[str, Any],
        text_elsewhere: bool,
    ):
        none = {name: None for name in pipeline_class.parameters(cls.__init__) if pipeline_class.is_text(name)}
        self._pipe = loading.stage(cls, folder, own, pool, **(none if text_elsewhere else {}))
        self._call, self._told, self._own = pipeline_class.parameters(cls.__call__), dict(told), own
        self.device_name = loading.device_name(self._pipe)

    def _frames(self, text: Text, generator: torch.Generator, told: StepTold, source: str, **given: Any) -> np.ndarray:
        """RGB uint8 `[frames, height, width, 3]`."""
        if "callback_on_step_end" in self._call:
            given["callback_on_step_end"] = loading.teller(told)
        with torch.no_grad():
            made = self._pipe(**self._told, **given, **self._texts(text), generator=generator, output_type="pt")
        video = made.frames[0]
        if not isinstance(video, torch.Tensor) or video.ndim != 4 or video.shape[1] != 3:
            raise TypeError(f"{type(self._pipe).__name__} gave no frames of three colours")
        check_finite(video, source)
        pixels = (video.float().clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def _texts(self, text: Text) -> dict[str, Any]:
        if text.embeds:
            pairs = [*text.embeds.items(), *((f"negative_{name}", one) for name, one in text.negative_embeds.items())]
            return {name: self._placed(one) for name, one in pairs if name in self._call}
        negative = {"negative_prompt": text.negative_prompt} if text.negative_prompt else {}
        return {"prompt": text.prompt, **{name: one for name, one in negative.items() if name in self._call}}

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        """Masks keep their type."""
        kind = getattr(torch, self._own.dtype) if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self._pipe._execution_device, kind)


class Drawn(_Pipeline):
    """See `engine.PreviewModel`."""

    def sample(self, text: Text, seed: int, told: StepTold) -> tuple[np.ndarray, str | None]:
        """See PreviewModel. Frames."""
        frames = self._frames(text, loading.generator(seed, "preview"), told, "stage 1")
        asked = tuple(self._told[name] for name in ("num_frames", "height", "width"))
        if frames.shape[:3] != asked:
            raise ValueError(
                f"{type(self._pipe).__name__} gave {_shown(frames.shape)}, and was asked for {_shown(asked)}"
            )
        return frames, None

    def decode(self, latents: torch.Tensor) -> tuple[np.ndarray, str | None]:
        """See PreviewModel. There are no latents of it to decode."""
        raise NotImplementedError("frames are kept of this model, and no latents")


class Redrawn(_Pipeline):
    """See `engine.RefineModel`."""

    def refine(
        self, preview: torch.Tensor | np.ndarray, text: Text, seed: int, told: StepTold
    ) -> tuple[np.ndarray, str | None]:
        """See RefineModel. It is given frames."""
        assert isinstance(preview, np.ndarray)
        given: dict[str, Any] = {"video": [Image.fromarray(frame) for frame in preview]}
        if "num_frames" in self._call:
            given["num_frames"] = len(preview)
        frames = self._frames(text, loading.generator(seed, "refine"), told, "stage 2", **given)
        if len(frames) != len(preview):
            raise ValueError(f"{type(self._pipe).__name__} made {len(frames)} frames of {len(preview)}")
        return frames, None


def _shown(shape: Sequence[int]) -> str:
    frames, height, width = shape[:3]
    return f"{frames} frames of {height}x{width}"
