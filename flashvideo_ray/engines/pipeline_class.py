"""What the class of a diffusers pipeline tells of itself, and its configurations: no weight is read.

Nothing here knows a family. What is relied on are diffusers' own conventions: settings are arguments of `__call__`,
factors of the VAE are attributes of a pipeline, `encode_prompt` returns what `__call__` takes in the place of a prompt.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, cast

import diffusers
import torch

from flashvideo_ray.engines import weights
from flashvideo_ray.engines.weights import ModelNotFoundError, ModelStage
from flashvideo_ray.models import optimize

Parameters = Mapping[str, inspect.Parameter]
_SEEN = {"image", "images", "video", "control_video", "conditions", "image_embeds", "mask", "reference_images"}
# What pipelines call these, before the plain `vae_scale_factor`.
_SPATIAL = ("vae_scale_factor_spatial", "vae_spatial_scale_factor", "vae_spatial_compression_ratio", "vae_scale_factor")
_TEMPORAL = ("vae_scale_factor_temporal", "vae_temporal_scale_factor", "vae_temporal_compression_ratio")


def find(model: str, stage: ModelStage) -> type[Any]:
    """The class that does a stage's work with a pipeline folder's components: the folder's own, or its one sibling.

    A folder names the class that saved it; Wan's, say, is that of text to video, and another of the same package makes
    video of video from the same components. Raises ModelNotFoundError.
    """
    index = weights.index(model, "")
    name = index.get("_class_name")
    own = getattr(diffusers, str(name), None)
    if own is None or not hasattr(own, "from_pretrained"):
        raise ModelNotFoundError(
            f"{model}: its model_index.json names the pipeline {name}, which diffusers {diffusers.__version__} has not"
        )
    if _does(own, stage):
        return cast(type[Any], own)
    there = {*components(model)}
    fitting = [one for one in _siblings(own) if _does(one, stage) and _takes(one, there)]
    if len(fitting) == 1:
        return fitting[0]
    what = {
        "preview": "makes a video of a text alone",
        "refine": "takes `video` and `strength` and makes a video",
    }[stage]
    found = f"{', '.join(one.__name__ for one in fitting)} all do" if fitting else "nor does another with its parts"
    raise ModelNotFoundError(f"{model}: {name} is no pipeline that {what}, {found} (diffusers {diffusers.__version__})")


def components(model: str) -> list[str]:
    """What a pipeline folder is made of. Raises ModelNotFoundError."""
    index = weights.index(model, "")
    return [name for name, entry in index.items() if isinstance(entry, list) and entry[0] is not None]


def package(cls: type[Any]) -> str:
    """What diffusers calls the family of a pipeline: `wan` of `diffusers.pipelines.wan.pipeline_wan`."""
    return cls.__module__.split(".")[2]


def parameters(function: Any) -> Parameters:
    """The parameters of a function or method, by name, without `self`."""
    found = dict(inspect.signature(function).parameters)
    found.pop("self", None)
    return found


def embeddings(cls: type[Any]) -> tuple[str, ...]:
    """What `encode_prompt` returns, by the names by which `__call__` takes it; empty where texts cannot be split off.

    The names are those of its return statement: diffusers' own tests hold its pipelines to that.
    """
    encode = getattr(cls, "encode_prompt", None)
    call = parameters(cls.__call__)
    if encode is None or call["prompt"].default is inspect.Parameter.empty:
        return ()
    tree = ast.parse(textwrap.dedent(inspect.getsource(encode)))
    last = max((node for node in ast.walk(tree) if isinstance(node, ast.Return)), key=lambda node: node.lineno)
    items = last.value.elts if isinstance(last.value, ast.Tuple) else [last.value]
    names = tuple(item.id for item in items if isinstance(item, ast.Name))
    required = {name for name, one in parameters(encode).items() if one.default is inspect.Parameter.empty}
    return names if len(names) == len(items) and {*names} <= call.keys() and required <= {"prompt"} else ()


def guides_apart(cls: type[Any]) -> bool:
    """Whether a call evaluates the two branches of guidance one after the other, in contexts that it names so."""
    return 'cache_context("uncond"' in inspect.getsource(cls.__call__)


def is_text(component: str) -> bool:
    """Whether a component is there for `encode_prompt`, by its name."""
    return component.startswith(("text_encoder", "tokenizer"))


def empty(model: str, cls: type[Any]) -> Any:
    """A pipeline with networks that have no weights (on the meta device), and without text encoders.

    It can be asked for its factors, its checks and what its networks can do. Raises ModelNotFoundError.
    """
    index = weights.index(model, "")
    parts: dict[str, Any] = {}
    try:
        for name in parameters(cls.__init__):
            library, kind = index[name] if isinstance(index.get(name), list) else (None, None)
            if name in index and not isinstance(index[name], list):
                parts[name] = index[name]  # a setting of the pipeline
            elif library is not None and not is_text(name) and (part := _class(library, str(kind))) is not None:
                with torch.device("meta" if issubclass(part, torch.nn.Module) else "cpu"):
                    parts[name] = part.from_config(weights.config(model, "", name))
            else:
                parts[name] = None
        return cls(**parts)
    except ModelNotFoundError:
        raise
    except Exception as error:  # each class has its own
        raise ModelNotFoundError(
            f"{model}: {cls.__name__} cannot be made of its configurations: {type(error).__name__}: {error}"
        ) from error


@lru_cache(maxsize=8)
def factors(model: str, cls: type[Any]) -> tuple[int, int, dict[str, int]]:
    """Pixels of a patch on each axis, frames of a latent frame, and sizes where the signature has none.

    Those are the pipeline's own (`default_height`), or what the transformer was trained at (`sample_height`).

    A factor that nothing tells is 1. Raises ModelNotFoundError.
    """
    pipe = empty(model, cls)
    spatial = next((int(getattr(pipe, name)) for name in _SPATIAL if hasattr(pipe, name)), 1)
    temporal = next((int(getattr(pipe, name)) for name in _TEMPORAL if hasattr(pipe, name)), 1)
    network = next(optimize.denoisers(pipe), None)
    config = dict(network.config) if network is not None else {}
    patch = config.get("patch_size") or 1
    patch = patch[-1] if isinstance(patch, (list, tuple)) else patch
    trained = {"height": "sample_height", "width": "sample_width"}
    sizes = {name: config[key] * spatial for name, key in trained.items() if isinstance(config.get(key), int)}
    if isinstance(config.get("sample_frames"), int):
        sizes["num_frames"] = config["sample_frames"]
    own = {name: getattr(pipe, f"default_{name}", None) for name in ("height", "width", "num_frames")}
    sizes |= {name: value for name, value in own.items() if isinstance(value, int)}
    return spatial * int(patch), temporal, sizes


def _does(cls: type[Any], stage: ModelStage) -> bool:
    call = parameters(cls.__call__)
    required = {name for name, one in call.items() if one.default is inspect.Parameter.empty} - {"prompt", "video"}
    if required or "prompt" not in call:
        return False
    if stage == "refine":
        return {"video", "strength"} <= call.keys()
    return "num_frames" in call and not _SEEN & call.keys()


def _siblings(cls: type[Any]) -> Iterator[type[Any]]:
    """Other pipelines of the same package."""
    module = importlib.import_module(cls.__module__.rpartition(".")[0])
    for name in sorted(dir(module)):
        one = getattr(module, name) if name.endswith("Pipeline") and name != cls.__name__ else None
        if inspect.isclass(one) and issubclass(one, diffusers.DiffusionPipeline):
            yield one


def _takes(cls: type[Any], components: set[str]) -> bool:
    """Whether a pipeline is made of these components: of all, and of no others."""
    own = parameters(cls.__init__)
    needed = {name for name, one in own.items() if one.default is inspect.Parameter.empty}
    return components <= own.keys() and needed <= components


def _class(library: str, name: str) -> Any:
    """A component's class, where it is diffusers' own."""
    if library == "diffusers":
        return getattr(diffusers, name)
    try:
        return getattr(importlib.import_module(f"diffusers.pipelines.{library}"), name)
    except ImportError:
        return None
