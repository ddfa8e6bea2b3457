"""Any text-to-video or video-to-video pipeline of diffusers as an engine, by its folder and its signature."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import json
import socket
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from flashvideo_ray.engines import families, pipeline_class, shapes, weights
from flashvideo_ray.engines.engine import Description, Vocabulary
from flashvideo_ray.engines.pipelines_loaded import Drawn, PipelineText, Redrawn
from flashvideo_ray.models import optimize
from flashvideo_ray.settings import OptimizeSettings, PreviewSettings, RefineSettings, Settings

_SETTINGS = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale")
_ELSEWHERE = {"frame_rate": "video.fps", "generator": "seed"}
_GIVEN = frozenset({
    "prompt", "negative_prompt", "video", "latents", "generator", "output_type", "return_dict", "frame_rate",
    "num_videos_per_prompt", "callback_on_step_end", "callback_on_step_end_tensor_inputs", *_SETTINGS,
})  # fmt: skip
"""Arguments that are the stage's to give, or have a setting of their own."""


def _is_free(argument: str) -> bool:
    """Whether an argument is a user's to give."""
    return argument not in _GIVEN and not argument.endswith(("_embeds", "_mask", "_latents"))


class Pipeline:
    """See `engine.Engine`."""

    vocabulary: Vocabulary | None = None

    def __init__(self, settings: Settings, stage: weights.ModelStage):
        self.settings = settings
        self.stage = stage

    def resolved(self) -> PreviewSettings | RefineSettings:
        """See Engine."""
        own = self._own.model_copy(update={"model": weights.pinned(self._model)})
        return own.model_copy(update={"vae_dtype": own.vae_dtype or own.dtype, **self._sizes()})

    def describe(self) -> Description:
        """See Engine."""
        sizes = self._sizes()
        is_split = bool(self._embeddings)
        length = self.arguments().get("max_sequence_length")
        return Description(
            height=sizes.get("height"),
            width=sizes.get("width"),
            num_frames=sizes.get("num_frames"),
            fps=self._fps() if self.stage == "preview" else None,
            max_tokens=length if isinstance(length, int) else None,
            default_negative="" if is_split and self._encodes_negatives else None,
            text_space=self._text_space() if is_split else None,
        )

    def problems(self) -> list[str]:
        """See Engine."""
        name, call, own = self._class.__name__, self._call, self._own
        plain = type(own)()
        known = {*_SETTINGS, "model", "dtype", "vae_dtype", "call", "optimize", "adapters"}
        found = [
            f"{self.stage}.{key}: {name} has no such setting; leave it out"
            for key in type(own).model_fields
            if getattr(own, key) != getattr(plain, key) and (key not in known or key in {*_SETTINGS} - call.keys())
        ]
        missing = self._family.needs.get(name)
        if missing is not None and importlib.util.find_spec(missing) is None:
            found.append(f"{self.stage}.model: {name} needs {missing}: pip install {missing}, on every node")
        found += [line for key in own.call if (line := self._call_problem(key)) is not None]
        sizes = self._sizes()
        for key in ("height", "width", "num_frames"):
            if key in type(own).model_fields and key in call and sizes.get(key) is None:
                found.append(f"{self.stage}.{key}: {name} does not say it; set it")
        found += self._size_problems()
        if self.stage == "preview" and self.settings.video.fps is None and self._fps() is None:
            found.append(f"video.fps: {name} does not say how many frames a second it draws; set it")
        return found or self._complaints(sizes) or self._option_problems()

    def refusal(self, num_frames: int | None, height: int | None, width: int | None) -> str | None:
        """See Engine."""
        if num_frames is not None and (line := self._length_problem(num_frames)) is not None:
            return line
        sizes = self._sizes()
        return shapes.refusal((height, width), (sizes.get("height"), sizes.get("width")))

    def on_negative_prompts(self) -> str | None:
        """See Engine."""
        name = self._class.__name__
        if not {"negative_prompt", "negative_prompt_embeds"} & self._call.keys():
            return f"{name} takes none"
        key = "call.true_cfg_scale" if "true_cfg_scale" in self._call else "guidance_scale"
        return None if self._guides() else f"{name} heeds them with {self.stage}.{key} > 1"

    def source(self) -> weights.Source:
        """See Engine."""
        return weights.Source(self._model, "", self._own.adapters, self._class.__name__)

    def fingerprint(self) -> str:
        """See Engine."""
        return weights.fingerprint(self._model, "", self._own.adapters, cls=self._class.__name__)

    def text_fingerprint(self) -> str:
        """See Engine. It is among those."""
        return self.fingerprint()

    def verify(self, fingerprint: str) -> None:
        """See Engine."""
        found = self.fingerprint()
        if found != fingerprint:
            raise weights.WeightsError(
                f"{self._model}: this node's weights are not those of the run (fingerprint {found}, the run has "
                f"{fingerprint}); bring the folder up to date on {socket.gethostname()}"
            )

    def networks(self) -> None:
        """See Engine. Not known."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """See Engine."""
        return weights.count_tokens(self._model, "", texts)

    def load_text(self) -> PipelineText:
        """See Engine."""
        own, folder = self.settings, self._folder(text=True)
        return PipelineText(self._class, folder, self._embeddings, self._encoding(), own.text.dtype, own.pools.text)

    def load_preview(self) -> Drawn:
        """See Engine."""
        assert isinstance(self._own, PreviewSettings)
        return Drawn(self._class, self._folder(text=False), self._own, self._pool, self._told(), self._split)

    def load_refine(self) -> Redrawn:
        """See Engine."""
        assert isinstance(self._own, RefineSettings)
        return Redrawn(self._class, self._folder(text=False), self._own, self._pool, self._told(), self._split)

    def _folder(self, text: bool) -> Path:
        """Of a hub model, no more than what is loaded: text encoders or networks, where those are split off."""
        if not self._split:
            return weights.locate(self._model, "")
        parts = [name for name in pipeline_class.components(self._model) if pipeline_class.is_text(name) == text]
        return weights.locate(self._model, "", [*parts, "scheduler"] if text else parts)

    def arguments(self) -> dict[str, Any]:
        """All further arguments of the call: as set, or as the signature has them."""
        stated = {
            key: one.default
            for key, one in self._call.items()
            if _is_free(key) and one.default is not inspect.Parameter.empty
        }
        return {**stated, **self._own.call}

    def _guides(self) -> bool:
        """Whether guidance evaluates the network twice in a step. Where a scale is its own, the other is embedded."""
        scale = {**self._sizes(), **self.arguments()}.get(
            "true_cfg_scale" if "true_cfg_scale" in self._call else "guidance_scale"
        )
        return scale is None or scale > 1

    def _told(self) -> dict[str, Any]:
        """What each call is told beside text and noise, by the names of the signature."""
        told = {**self._own.call, **{key: value for key, value in self._sizes().items() if key in self._call}}
        if "frame_rate" in self._call and self.settings.video.fps is not None:
            told["frame_rate"] = self.settings.video.fps
        return told

    def _sizes(self) -> dict[str, Any]:
        """The settings that most models have: as set, as the signature has them, or as the network was trained."""
        found: dict[str, Any] = {}
        for key in _SETTINGS:
            if key not in type(self._own).model_fields:
                continue
            value = getattr(self._own, key)
            if value is None and key in self._call:
                stated = self._call[key].default
                if stated is None or stated is inspect.Parameter.empty:
                    stated = self._factors[2].get(key)
                value = stated
            if value is not None:
                found[key] = value
        return found

    def _fps(self) -> float | None:
        stated = self._call["frame_rate"].default if "frame_rate" in self._call else None
        return stated if isinstance(stated, int | float) else self._family.fps

    def _call_problem(self, key: str) -> str | None:
        where = f"{self.stage}.call.{key}"
        if key in _SETTINGS or key in _ELSEWHERE:
            return f"{where}: set {_ELSEWHERE.get(key, f'{self.stage}.{key}')} in its place"
        if not _is_free(key):
            return f"{where}: the stage itself gives it; leave it out"
        if key in self._call:
            return None
        free = [name for name in self._call if _is_free(name)]
        near = next(
            iter(difflib.get_close_matches(key, [*free, *({*_SETTINGS} & self._call.keys())], n=1, cutoff=0.5)), None
        )
        hint = f"it takes {', '.join(free)}"
        if near is not None:
            hint = f"did you mean {near if near in free else f'{self.stage}.{near}'}?"
        return f"{where}: {self._class.__name__} takes no such argument; {hint}"

    def _size_problems(self) -> list[str]:
        found, sizes, unit = [], self._sizes(), self._factors[0]
        for key in ("height", "width"):
            value = sizes.get(key)
            if value is not None and value % unit:
                below = value // unit * unit
                near = f"{below} or {below + unit}" if below else f"{unit}"
                found.append(f"{self.stage}.{key}: {value} is no multiple of {unit}; set {near}")
        if "num_frames" in sizes and (line := self._length_problem(sizes["num_frames"])) is not None:
            found.append(f"{self.stage}.num_frames: {line}")
        return found

    def _length_problem(self, num_frames: int) -> str | None:
        """A latent frame stands for several; how many are left over is as in the length that the model was made for."""
        ratio = self._factors[1]
        stated = self._call["num_frames"].default if "num_frames" in self._call else None
        rest = (stated if isinstance(stated, int) else self._factors[2].get("num_frames") or 1) % ratio
        if (num_frames - rest) % ratio == 0:
            return None
        below = (num_frames - rest) // ratio * ratio + rest
        near = f"{below} or {below + ratio}" if below > 0 else f"{below + ratio}"
        plus = f" + {rest}" if rest else ""
        return f"{self._class.__name__} takes {ratio}k{plus} frames, and not {num_frames}; {near} would do"

    def _complaints(self, sizes: Mapping[str, Any]) -> list[str]:
        """What the pipeline's own check says, as far as it can be asked without weights."""
        check = getattr(pipeline_class.empty(self._model, self._class), "check_inputs", None)
        if check is None:
            return []
        told = {"prompt": "a text", "callback_on_step_end_tensor_inputs": ["latents"], **self.arguments(), **sizes}
        try:
            check(**{key: told.get(key) for key in pipeline_class.parameters(check)})
        except ValueError as error:
            return [f"{self.stage}: {self._class.__name__} refuses: {error}"]
        except Exception:
            return []  # it looks at what is not there before weights are
        return []

    def _option_problems(self) -> list[str]:
        """Options that this pipeline cannot do, tried on networks without weights."""
        own, name = self._own, self._class.__name__
        found = []
        if own.adapters and not hasattr(self._class, "load_lora_weights"):
            found.append(f"{self.stage}.adapters: diffusers loads none into {name}; leave them out")
        cache = own.optimize.cache
        if (
            cache is not None
            and cache.name == "pyramid_attention"
            and self._guides()
            and pipeline_class.guides_apart(self._class)
        ):
            found.append(
                f"{self.stage}.optimize.cache: {name} evaluates the branches of guidance one after the other, and "
                "pyramid_attention would give one the other's attention; leave it out"
            )
        elif own.optimize != OptimizeSettings():
            options = own.optimize.model_dump()
            steps = self._sizes().get("num_inference_steps")
            try:
                optimize.apply(pipeline_class.empty(self._model, self._class), **options, num_inference_steps=steps)
            except optimize.OptionError as error:
                found.append(f"{self.stage}.optimize.{error}")
        return found

    def _text_space(self) -> str:
        return json.dumps([self._model, pipeline_class.package(self._class), self._encoding()], default=str)

    def _encoding(self) -> dict[str, Any]:
        """The arguments of `encode_prompt` that the call passes on to it."""
        taken = pipeline_class.parameters(self._class.encode_prompt)
        return {key: value for key, value in self.arguments().items() if key in taken}

    @property
    def _family(self) -> families.Family:
        return families.of(pipeline_class.package(self._class))

    @property
    def _encodes_negatives(self) -> bool:
        return "negative_prompt" in pipeline_class.parameters(self._class.encode_prompt)

    @property
    def _split(self) -> bool:
        return bool(self._embeddings)

    @cached_property
    def _embeddings(self) -> tuple[str, ...]:
        return pipeline_class.embeddings(self._class)

    @cached_property
    def _class(self) -> Any:
        return pipeline_class.find(self._model, self.stage)

    @cached_property
    def _call(self) -> Mapping[str, inspect.Parameter]:
        return pipeline_class.parameters(self._class.__call__)

    @property
    def _factors(self) -> tuple[int, int, dict[str, int]]:
        return pipeline_class.factors(self._model, self._class)

    @property
    def _own(self) -> PreviewSettings | RefineSettings:
        return getattr(self.settings, self.stage)

    @property
    def _pool(self) -> Any:
        return getattr(self.settings.pools, self.stage)

    @property
    def _model(self) -> str:
        return self._own.model
