"""Speed and memory options of a pipeline's transformer, by name: compiled blocks, kernels, caches, smaller weights.

All of them are diffusers'. What is added is that none of them can be asked for in vain: `check` refuses what would do
nothing with a network and its steps before anything is loaded, and `apply` what has done nothing once it is loaded.

>>> apply(pipeline, attention="flash", cache={"name": "first_block", "options": {"threshold": 0.08}})
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

import torch
from diffusers.hooks import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
)
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, dispatch_attention_fn
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

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
    pipeline: DiffusionPipeline,
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
        pipeline: of either stage, or any other of diffusers.
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
    networks = [*denoisers(pipeline)]
    steps = num_inference_steps or int(pipeline.config["num_inference_steps"])
    check(
        layers=min((len(blocks(network)) for network in networks), default=0),
        times=_times(pipeline, steps),
        guidance_batching=guidance_batching,
        attention=attention,
        cache=cache,
        compile=compile,
        quantization=quantization,
    )
    if compile and torch._dynamo.config.disable:
        raise OptionError("compile: TORCH_COMPILE_DISABLE is set here, so nothing would be compiled")
    for network in networks:
        _apply(network, pipeline, compile, attention, cache, quantization, steps)


def _apply(
    network: Any,
    pipeline: DiffusionPipeline,
    compile: bool,
    attention: str | None,
    cache: Mapping[str, Any] | None,
    quantization: str | None,
    steps: int,
) -> None:
    name = type(network).__name__
    if compile and not getattr(network, "_repeated_blocks", None):
        raise OptionError(f"compile: diffusers names no blocks of {name} to compile")
    if quantization == "fp8":
        before = weight_bytes(network)
        network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=network.dtype)
        if weight_bytes(network) >= before:
            raise OptionError("quantization: fp8 has made no weight of this network smaller")
    if attention is not None:
        _set_attention(network, attention)
    if cache is not None:
        if not hasattr(network, "enable_cache"):
            raise OptionError(f"cache: diffusers has none for {name}")
        try:
            network.enable_cache(_cache_config(pipeline, cache["name"], cache.get("options") or {}, steps))
        except (ValueError, KeyError, AttributeError) as error:  # a kind of block that diffusers does not know
            raise OptionError(f"cache: {cache['name']} cannot be had with {name}: {error}") from error


def finish(pipeline: DiffusionPipeline, *, compile: bool = False, attention: str | None = None) -> None:
    """What must be done where the pipeline has been placed: try the kernel once, and compile the blocks.

    Raises OptionError for a kernel that does not run on this device.
    """
    for network in denoisers(pipeline):
        if attention is not None:
            _try_attention(network, attention, pipeline._execution_device)
        if compile:
            network.compile_repeated_blocks(fullgraph=not _is_hooked(network))


def denoisers(pipeline: Any) -> Iterator[Any]:
    """The networks of a pipeline that are evaluated in each step."""
    for name in ("transformer", "transformer_2", "unet"):
        if getattr(pipeline, name, None) is not None:
            yield getattr(pipeline, name)


def blocks(network: Any) -> Sequence[Any]:
    """A transformer's blocks, as most in diffusers call them; empty where it has none of that name."""
    return getattr(network, "transformer_blocks", None) or getattr(network, "blocks", None) or ()


def _times(pipeline: Any, steps: int) -> list[float]:
    """Model time of every step; of a schedule that depends on a call's size, no more than how many there are."""
    try:
        pipeline.scheduler.set_timesteps(steps)
        return list(pipeline.scheduler.timesteps.tolist())
    except ValueError:
        return [1000 * (1 - step / steps) for step in range(steps)]


def _is_hooked(transformer: Any) -> bool:
    """Whether a cache or group offload acts within the blocks: in Python, which no single graph can hold."""
    return any(hasattr(module, "_diffusers_hook") for block in blocks(transformer) for module in block.modules())


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


def _cache_config(pipeline: Any, name: str, options: Mapping[str, Any], steps: int) -> Any:
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
    modules = [module for block in blocks(transformer) for module in block.modules()]
    processors = [module.processor for module in modules if hasattr(module, "processor")]
    chosen = {getattr(processor, "_attention_backend", None) for processor in processors}
    if chosen != {AttentionBackendName(attention)}:
        raise OptionError(f"attention: the processors of this network ignore {attention}")


def _try_attention(transformer: Any, attention: str, device: torch.device) -> None:
    heads = transformer.config.get("num_attention_heads", 1), transformer.config.get("attention_head_dim", 64)
    shape = (1, 128, *heads)
    states = torch.zeros(shape, dtype=transformer.dtype, device=device)
    try:
        dispatch_attention_fn(states, states, states, backend=AttentionBackendName(attention))
    except Exception as error:  # each kernel has its own
        raise OptionError(
            f"attention: {attention} does not run on {device.type} in {str(transformer.dtype).removeprefix('torch.')}: "
            f"{type(error).__name__}: {error}"
        ) from error
