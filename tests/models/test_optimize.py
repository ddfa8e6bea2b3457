"""Options by name: each saves work that can be counted, and none is silently nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName

from flashvideo_ray.models import FlashVideoPreviewPipeline
from flashvideo_ray.models.offload import place
from flashvideo_ray.models.optimize import OptionError, apply, check, finish, weight_bytes

PROMPT = "the red circle moves slowly left over sand"
STEPS = 4


def load(folder: Path, **options: Any) -> FlashVideoPreviewPipeline:
    pipe = FlashVideoPreviewPipeline.from_pretrained(folder / "preview", **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: FlashVideoPreviewPipeline) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe(PROMPT, generator=generator, num_inference_steps=STEPS, output_type="latent").latents


def calls_of(module: Any) -> list[int]:
    """Grows by one whenever the module computes."""
    calls: list[int] = []
    forward = module.forward
    module.forward = lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    return calls


@pytest.mark.parametrize(
    ("cache", "computed"),
    [
        ({"name": "first_block", "options": {"threshold": 100.0}}, 1),
        ({"name": "mag", "options": {"mag_ratios": [1.0] * STEPS, "retention_ratio": 0.25}}, 1),
        ({"name": "pyramid_attention", "options": {"spatial_attention_timestep_skip_range": [0, 1000]}}, 2),
    ],
)
def test_a_cache_computes_less_and_begins_anew_with_every_clip(
    tiny_model: Path, cache: dict[str, Any], computed: int
) -> None:
    pipe = load(tiny_model)
    calls = calls_of(pipe.transformer.transformer_blocks[-1].attn1.to_q)
    apply(pipe, cache=cache, num_inference_steps=STEPS)
    first = run(pipe)
    assert len(calls) == computed
    assert torch.equal(run(pipe), first)
    assert len(calls) == 2 * computed


def test_a_call_that_failed_leaves_nothing_in_the_cache(tiny_model: Path) -> None:
    pipe = load(tiny_model)
    apply(pipe, cache={"name": "first_block", "options": {"threshold": 100.0}}, num_inference_steps=STEPS)
    expected = run(pipe)

    def stop(*_: Any) -> dict[str, Any]:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        pipe("a blue star", generator=torch.Generator().manual_seed(1), callback_on_step_end=stop)
    assert torch.equal(run(pipe), expected)


def test_fp8_keeps_the_blocks_in_a_quarter_of_float32(tiny_model: Path) -> None:
    pipe = load(tiny_model)
    feed_forward = pipe.transformer.transformer_blocks[0].ff
    before, full = weight_bytes(feed_forward), run(pipe)
    apply(pipe, quantization="fp8")
    assert weight_bytes(feed_forward) == before / 4
    eighth = run(pipe)
    assert eighth.dtype == torch.float32
    assert 0 < (eighth - full).norm() / full.norm() < 0.5


def test_the_kernel_that_is_asked_for_is_the_one_that_is_called(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, seen = attention_dispatch._AttentionBackendRegistry, []
    native = registry._backends[AttentionBackendName.NATIVE]

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(kwargs["query"].shape)
        return native(*args, **kwargs)

    monkeypatch.setitem(registry._backends, AttentionBackendName._NATIVE_MATH, counted)
    plain = load(tiny_model)
    expected = run(plain)
    pipe = load(tiny_model)
    apply(pipe, attention="_native_math")
    finish(pipe, attention="_native_math")
    seen.clear()
    assert torch.equal(run(pipe), expected)
    assert len(seen) == STEPS * len(pipe.transformer.transformer_blocks)


def test_a_kernel_that_is_not_here_is_refused(tiny_model: Path) -> None:
    pipe = load(tiny_model)
    with pytest.raises(OptionError, match="flash-attn"):
        apply(pipe, attention="flash")
    apply(pipe, attention="_native_cudnn")
    with pytest.raises(OptionError, match="_native_cudnn does not run on cpu"):
        finish(pipe, attention="_native_cudnn")


def test_compiling_is_refused_where_it_is_switched_off(tiny_model: Path) -> None:
    pipe = load(tiny_model)
    with torch._dynamo.config.patch(disable=True), pytest.raises(OptionError, match="nothing would be compiled"):
        apply(pipe, compile=True)


def test_compiled_blocks_are_one_graph_for_all_of_them(tiny_model: Path) -> None:
    torch._dynamo.reset()
    pipe = load(tiny_model)
    graphs = torch._dynamo.utils.counters["stats"]
    apply(pipe, compile=True)
    pipe.transformer.compile_repeated_blocks(backend="eager", fullgraph=True)
    before = graphs["unique_graphs"]
    run(pipe)
    assert graphs["unique_graphs"] - before == 1


def test_flex_attention_is_one_kernel_in_compiled_blocks_and_refused_without(tiny_model: Path) -> None:
    with pytest.raises(OptionError, match="attention: flex is one kernel within compiled blocks alone"):
        apply(load(tiny_model), attention="flex")
    torch._dynamo.reset()
    pipe, graphs = load(tiny_model), []
    apply(pipe, attention="flex", compile=True)

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    pipe.transformer.compile_repeated_blocks(backend=backend, fullgraph=True)
    run(pipe)
    [graph] = graphs
    assert [node.target for node in graph.graph.nodes].count(torch.ops.higher_order.flex_attention) == 1


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"quantization": "fp8"}, "leave out quantization or compile"),
        ({"cache": {"name": "mag", "options": {"mag_ratios": [1.0] * STEPS}}}, "leave out compile or the cache"),
    ],
)
def test_what_the_compiler_cannot_enter_is_refused_together_with_it(other: dict[str, Any], message: str) -> None:
    times = [900.0, 600.0, 300.0, 100.0]
    check(layers=2, times=times, **other)
    with pytest.raises(OptionError, match=message):
        check(layers=2, times=times, compile=True, **other)


@pytest.mark.parametrize("beside", ["first_block", "pyramid_attention", "group"])
def test_compiled_blocks_go_with_a_cache_and_with_group_offload(
    tiny_model: Path, beside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        "first_block": {"threshold": 100.0},
        "pyramid_attention": {"spatial_attention_timestep_skip_range": [0, 1000]},
    }
    cache = {"name": beside, "options": options[beside]} if beside in options else None
    torch._dynamo.reset()
    made = []
    for compile in (False, True):
        pipe = load(tiny_model)
        apply(pipe, cache=cache, compile=compile, num_inference_steps=STEPS)
        if beside == "group":
            place(pipe, "cpu", "group")
        whole = pipe.transformer.compile_repeated_blocks
        monkeypatch.setattr(pipe.transformer, "compile_repeated_blocks", partial(whole, backend="eager"))
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        finish(pipe, compile=compile)
        made.append(run(pipe))
        assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > before) == compile
    assert torch.equal(*made)


def test_pyramid_attention_is_refused_with_guidance_apart(tiny_model: Path) -> None:
    with pytest.raises(OptionError, match="guidance_batching: together"):
        apply(load(tiny_model), cache={"name": "pyramid_attention"}, guidance_batching="apart")
