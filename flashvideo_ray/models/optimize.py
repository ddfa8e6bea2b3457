"""Speed and memory options of a pipeline's transformer, by name: compiled blocks, kernels, caches, smaller weights.

All of them are diffusers'. What is added is that none of them can be asked for in vain: `check` refuses what would do
nothing with a network and its steps before anything is loaded, and `apply` what has done nothing once it is loaded.

>>> apply(pipeline, attention="flash", cache={"name": "first_block", "options": {"threshold": 0.08}})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

import torch
from diffusers.hooks import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
)
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, dispatch_attention_fn

from .pipeline_base import FlashVideoPipeline

CacheName = Literal["first_block", "mag", "pyramid_attention"]
_CACHES: dict[str, type] = {
    "first_block": FirstBlockCacheConfig,
    "mag": MagCacheConfig,
    "pyramid_attention": PyramidAttentionBroadcastConfig,
}
_OPTIONS: dict[str, tuple[str, ...]] = {
    "first_block": ("threshold",),
    "mag": ("mag_ratios", "threshold", "max_skip_steps", "retention_ratio"),
    "pyramid_attention": ("spatial_attention_block_skip_range", "spatial_attention_timestep_skip_range"),
}


class OptionError(ValueError):
    """An option that is unknown, cannot be had here, or would silently do nothing. The message names it."""


def check(
    *,
    layers: int,
    times: Sequence[float],
    guidance_batching: str = "together",
    attention: str | None = None,
    cache: Mapping[str, Any] | None = None,
    compile: bool = False,
    quantization: str | None = None,
) -> None:
    """Raise OptionError for options that can be seen to be wrong without a network or a card.

    Args:
        layers: transformer blocks of the network.
        times: model time of every step.
        guidance_batching: as in the call.
        attention: a name that `set_attention_backend` takes.
        cache: `{"name": …, "options": {…}}`, see `apply`.
        compile: whether blocks are compiled.
        quantization: see `apply`.
    """
    known = sorted(backend.value for backend in AttentionBackendName)
    if attention is not None and attention not in known:
        raise OptionError(f"attention: no kernel is called {attention!r}; there are {', '.join(known)}")
    if attention == AttentionBackendName.FLEX and not compile:
        raise OptionError(
            "attention: flex is one kernel within compiled blocks alone, and without it all scores of 100,000 tokens "
            "would be in memory; set compile, too"
        )
    if quantization not in (None, "fp8"):
        raise OptionError(f"quantization: {quantization!r} is not known; there is fp8")
    if compile and quantization is not None:
        raise OptionError(
            f"quantization: {quantization} changes the type of each layer's weights in every call, which cannot be "
            "compiled; leave out quantization or compile"
        )
    if compile and cache is not None and cache["name"] == "mag":
        raise OptionError(
            "compile: the mag cache keeps the compiler out of every block; leave out compile or the cache"
        )
    if cache is not None:
        _check_cache(cache["name"], cache.get("options") or {}, layers, times, guidance_batching)


def apply(
    pipeline: FlashVideoPipeline,
    *,
    compile: bool = False,
    attention: str | None = None,
    cache: Mapping[str, Any] | None = None,
    quantization: str | None = None,
    num_inference_steps: int | None = None,
    guidance_batching: str = "together",
) -> None:
    """Apply options to a loaded pipeline, before it is moved or offloaded; `finish` does what must come after that.

    Args:
        pipeline: of either stage.
        compile: checked here and done by `finish`.
        attention: kernel of the attention: `native`, `flash`, `_flash_3`, `sage`, …; its package must be installed.
        cache: what is reused from step to step: `{"name": "first_block", "options": {"threshold": 0.08}}`, `mag` (with
            `mag_ratios` that were calibrated for this network) or `pyramid_attention`.
        quantization: `fp8` keeps the blocks' matrices in 8 bits and computes in the dtype they were loaded in.
        num_inference_steps: of the calls to come; default the pipeline's.
        guidance_batching: of the calls to come.

    Raises:
        OptionError: for what `check` refuses, and for an option that had no effect on this network.
    """
    transformer = pipeline.transformer
    steps = num_inference_steps or pipeline.config.num_inference_steps
    pipeline.scheduler.set_timesteps(steps)
    times = pipeline.scheduler.timesteps.tolist()
    check(
        layers=len(transformer.transformer_blocks),
        times=times,
        guidance_batching=guidance_batching,
        attention=attention,
        cache=cache,
        compile=compile,
        quantization=quantization,
    )
    if compile and torch._dynamo.config.disable:
        raise OptionError("compile: TORCH_COMPILE_DISABLE is set here, so nothing would be compiled")
    if quantization == "fp8":
        before = weight_bytes(transformer)
        transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=transformer.dtype)
        if weight_bytes(transformer) >= before:
            raise OptionError("quantization: fp8 has made no weight of this network smaller")
    if attention is not None:
        _set_attention(transformer, attention)
    if cache is not None:
        transformer.enable_cache(_cache_config(pipeline, cache["name"], cache.get("options") or {}, steps))


def finish(pipeline: FlashVideoPipeline, *, compile: bool = False, attention: str | None = None) -> None:
    """What must be done where the pipeline has been placed: try the kernel once, and compile the blocks.

    Raises OptionError for a kernel that does not run on this device.
    """
    transformer = pipeline.transformer
    if attention is not None:
        _try_attention(transformer, attention, pipeline._execution_device)
    if compile:
        transformer.compile_repeated_blocks(fullgraph=not _is_hooked(transformer))


def _is_hooked(transformer: Any) -> bool:
    """Whether a cache or group offload acts within the blocks: in Python, which no single graph can hold."""
    return any(hasattr(module, "_diffusers_hook") for module in transformer.transformer_blocks.modules())


def weight_bytes(network: torch.nn.Module) -> int:
    """Bytes of a network's parameters as they are kept."""
    return sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())


def skipped_steps(times: Sequence[float], every: int, within: Sequence[float]) -> int:
    """How many steps pyramid attention broadcast takes from the step before: all but each `every`th, within a range."""
    low, high = within
    return sum(index % every != 0 and low < time < high for index, time in enumerate(times))


def _check_cache(
    name: str, options: Mapping[str, Any], layers: int, times: Sequence[float], guidance_batching: str
) -> None:
    if name not in _CACHES:
        raise OptionError(f"cache: {name!r} is not known; there are {', '.join(_CACHES)}")
    if unknown := sorted(options.keys() - {*_OPTIONS[name]}):
        raise OptionError(f"cache: {name} has no option {', '.join(unknown)}; there are {', '.join(_OPTIONS[name])}")
    defaults = {field.name: field.default for field in fields(_CACHES[name])}
    if name == "pyramid_attention":
        every = options.get("spatial_attention_block_skip_range", 2)
        within = options.get("spatial_attention_timestep_skip_range", defaults["spatial_attention_timestep_skip_range"])
        if guidance_batching == "apart":
            raise OptionError(
                "cache: pyramid_attention would give one branch of guidance the other's attention; "
                "it needs guidance_batching: together"
            )
        if not skipped_steps(times, every, within):
            raise OptionError(
                f"cache: pyramid_attention would skip nothing: none of the {len(times)} steps lies between "
                f"{within[0]} and {within[1]} and is not every {every}th"
            )
        return
    if layers < 2:
        raise OptionError(f"cache: {name} would skip nothing: the network has one block")
    if options.get("threshold", defaults["threshold"]) <= 0:
        raise OptionError(f"cache: {name} would skip nothing with a threshold of {options['threshold']}")
    if name == "mag":
        if options.get("mag_ratios") is None:
            raise OptionError(
                "cache: mag needs mag_ratios that were calibrated for this network (see docs/flashvideo.md)"
            )
        kept = int(options.get("retention_ratio", defaults["retention_ratio"]) * len(times) + 0.5)
        if max(kept, 1) >= len(times):
            raise OptionError(f"cache: mag would skip nothing: it keeps the first {max(kept, 1)} of {len(times)} steps")


def _cache_config(pipeline: FlashVideoPipeline, name: str, options: Mapping[str, Any], steps: int) -> Any:
    given = dict(options)
    if name == "mag":
        given["num_inference_steps"] = steps
    if name == "pyramid_attention":
        given.setdefault("spatial_attention_block_skip_range", 2)
        given["current_timestep_callback"] = lambda: pipeline.current_timestep
    return _CACHES[name](**given)


def _set_attention(transformer: Any, attention: str) -> None:
    before, _ = _AttentionBackendRegistry.get_active_backend()
    try:
        transformer.set_attention_backend(attention)
    except (RuntimeError, ImportError) as error:
        raise OptionError(f"attention: {error}") from error
    finally:
        # diffusers also makes it the choice of every other network of the process, which nobody has asked for.
        _AttentionBackendRegistry.set_active_backend(before)
    chosen = {getattr(block.attn1.processor, "_attention_backend", None) for block in transformer.transformer_blocks}
    if chosen != {AttentionBackendName(attention)}:
        raise OptionError(f"attention: the processors of this network ignore {attention}")


def _try_attention(transformer: Any, attention: str, device: torch.device) -> None:
    config = transformer.config
    shape = (1, 128, config.num_attention_heads, config.attention_head_dim)
    states = torch.zeros(shape, dtype=transformer.dtype, device=device)
    try:
        dispatch_attention_fn(states, states, states, backend=AttentionBackendName(attention))
    except Exception as error:  # each kernel has its own
        raise OptionError(
            f"attention: {attention} does not run on {device.type} in {str(transformer.dtype).removeprefix('torch.')}: "
            f"{type(error).__name__}: {error}"
        ) from error
