"""Sections on the models alone: times, kernels, compiling, memory, offload, exactness, and the encoders of MP4."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from golden import Golden
from gpu_bench import Bench, Result, Stage, Whole
from replay import GROUPS, compare

from flashvideo_ray.accounting.card import costs_options
from flashvideo_ray.models import FlashVideoPreviewPipeline, FlashVideoRefinePipeline, costs, optimize
from flashvideo_ray.models.offload import place

ROOT = Path(__file__).resolve().parent.parent
GOLDEN_FACTOR = 3  # of the gates on a CPU

_CUT = {"encode_tiles": (1, 2), "decode_tiles": (2, 2)}  # as the preset for 80 GB cuts a clip
# As docs/flashvideo.md lists them, and others beside them: name, stage, options. What the reference does is measured in
# the sections of the stages.
OPTION_SETS: tuple[tuple[str, Stage, dict[str, Any]], ...] = (
    ("preview, apart", "preview", {"guidance_batching": "apart"}),
    ("preview, apart, model offload", "preview", {"guidance_batching": "apart", "offload": "model"}),
    ("preview, apart, group offload", "preview", {"guidance_batching": "apart", "offload": "group"}),
    ("preview, fp8", "preview", {"quantization": "fp8"}),
    ("refine, apart, encode 1x2, decode 2x2", "refine", {"guidance_batching": "apart", **_CUT}),
    (
        "refine, apart, model offload, encode 2x2, decode 2x2",
        "refine",
        {"guidance_batching": "apart", "offload": "model", "encode_tiles": (2, 2), "decode_tiles": (2, 2)},
    ),
    (
        "refine, apart, model offload, encode 2x2 by 8, decode 4x4",
        "refine",
        {
            "guidance_batching": "apart",
            "offload": "model",
            "encode_chunk_frames": 8,
            "encode_tiles": (2, 2),
            "decode_tiles": (4, 4),
        },
    ),
    (
        "refine, apart, group offload, encode 1x2, decode 2x2",
        "refine",
        {"guidance_batching": "apart", "offload": "group", **_CUT},
    ),
)


def ceilings(bench: Bench) -> Iterator[Result]:
    """What the card can do at most: a large matrix product, and a copy within its memory."""
    yield Result("matrix product", matrix_ceiling(bench) / 1e12, "TFLOP/s")
    count = 2**16 if bench.tiny else 2**30
    source = torch.zeros(count, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    taken = bench.seconds(lambda: target.copy_(source))
    yield Result("copy on the device", 2 * count / taken / 1e9, "GB/s")
    host = torch.empty(count, dtype=torch.uint8, pin_memory=bench.device.type == "cuda")
    taken = bench.seconds(lambda: host.copy_(source, non_blocking=True))
    yield Result("copy to page-locked host memory", count / taken / 1e9, "GB/s")


def matrix_ceiling(bench: Bench) -> float:
    """Operations a second of a large matrix product in the dtype of the networks."""
    size = 64 if bench.tiny else 8192
    left, right = (torch.randn(size, size, device=bench.device, dtype=bench.dtype) for _ in range(2))
    return 2 * size**3 / bench.seconds(lambda: left @ right, repeats=9)


def stage_times(stage: Stage) -> Callable[[Bench], Iterator[Result]]:
    """The section on a stage."""

    def section(bench: Bench) -> Iterator[Result]:
        ceiling, steps = matrix_ceiling(bench), bench.steps(stage)
        options: dict[str, Any] = {}
        try:
            bench.whole(stage, num_inference_steps=1)  # kernels are loaded by a first call
        except torch.OutOfMemoryError:
            if stage == "preview":
                raise
            options = dict(_CUT)
        if options:  # out of the block, in which the traceback holds the failed call's tensors
            yield Result("as the reference", "out of memory: encoded in 1x2 and decoded in 2x2 tiles instead")
            bench.free()
            bench.whole(stage, num_inference_steps=1, **options)
        whole = bench.measured(stage, **options)
        size, config = bench.size(stage), bench.config("vae")
        video = (bench.num_frames, size["height"], size["width"])
        tiles = options.get("decode_tiles", (1, 2) if stage == "refine" else (1, 1))
        flops = {
            "denoise": 2 * steps * bench.flops(stage),
            "decode": costs.vae_cost(config, "decoder", *video, tiles=tiles)[0],
        }
        if stage == "refine":
            flops["encode"] = costs.vae_cost(config, "encoder", *video, tiles=options.get("encode_tiles", (1, 1)))[0]
        step = whole.parts["denoise"] / steps
        yield Result("one step of both branches", step, "s", about={"what": "step", "stage": stage})
        for name, seconds in whole.parts.items():
            yield Result(name, seconds, "s")
            if name in flops:
                yield Result(f"{name}: share of the ceiling", flops[name] / seconds / ceiling)
        name = f"a whole {stage}, {steps} steps"
        yield Result(name, whole.seconds, "s", about={"what": "whole", "stage": stage})
        yield Result(f"{name}: share of the ceiling", sum(flops.values()) / whole.seconds / ceiling)
        yield from memory_of(name, whole)

    section.__doc__ = f"A whole call of the {stage} stage, its parts, and their share of the ceiling."
    return section


def attention(bench: Bench) -> Iterator[Result]:
    """Every kernel that diffusers can dispatch to and that runs here, on one branch of an evaluation of each stage."""
    stages: tuple[Stage, ...] = ("preview", "refine")
    kernels = ("native", "_native_math") if bench.tiny else [backend.value for backend in AttentionBackendName]
    for stage in stages:
        bench.forget()
        for name in kernels:
            try:
                optimize.apply(bench.pipe(stage), attention=name, num_inference_steps=bench.steps(stage))
                optimize.finish(bench.pipe(stage), attention=name)
                seconds = bench.seconds(bench.forward(stage, batch=1), 1 if stage == "refine" else 3)
            except Exception as error:  # each kernel has its own
                yield Result(f"{stage}, {name}", f"not here: {str(error).splitlines()[0][:160]}")
            else:
                yield Result(f"{stage}, {name}", seconds, "s")
        bench.pipe(stage).transformer.reset_attention_backend()


def compiling(bench: Bench) -> Iterator[Result]:
    """Compiled blocks on one branch of an evaluation of each stage, both branches of a preview, and the first call."""
    stages: tuple[Stage, ...] = ("preview", "refine")
    for stage in stages:
        bench.forget()
        forward = bench.forward(stage, batch=1)
        plain = bench.seconds(forward, 1 if stage == "refine" else 3)
        yield Result(f"{stage}, one branch", plain, "s")
        if stage == "preview":
            yield Result(f"{stage}, both branches together", bench.seconds(bench.forward(stage)), "s")
        if bench.tiny:
            bench.pipe(stage).transformer.compile_repeated_blocks(backend="eager", fullgraph=True)
        else:
            optimize.finish(bench.pipe(stage), compile=True)
        yield Result(f"{stage}, one branch, compiled: the first call", bench.seconds(forward, 1, warm=True), "s")
        compiled = bench.seconds(forward, 1 if stage == "refine" else 3, warm=True)
        yield Result(f"{stage}, one branch, compiled", compiled, "s")
        yield Result(f"{stage}, compiled over not compiled", compiled / plain)


def layout(bench: Bench) -> Iterator[Result]:
    """The decoder of a clip with channels first in memory, as it is loaded, and last, as cuDNN's kernels want them."""
    bench.forget()
    pipe, latents = bench.pipe("refine"), bench.latents("refine")
    decode = partial(pipe.decode_latents, latents, quantise=True)
    first, seconds = decode(), bench.seconds(decode, 1, warm=True)
    yield Result("channels first", seconds, "s")
    for module in pipe.vae.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
    last, other = decode(), bench.seconds(decode, 1, warm=True)
    yield Result("channels last", other, "s")
    yield Result("last over first", other / seconds)
    yield Result("largest difference", int((first.int() - last.int()).abs().max()), "of 255")


def memory(bench: Bench) -> Iterator[Result]:
    """What option sets hold of a card, in a process that has no more than is estimated, and what the options cost."""
    for name, stage, options in OPTION_SETS:
        bench.forget()
        own = dict(options)
        way, quantization = own.pop("offload", "none"), own.pop("quantization", None)
        calls = {"chunk_frames" if key == "encode_chunk_frames" else key: value for key, value in own.items()}
        # Group offload has no estimate of its own: it needs less than model offload.
        estimated = None if way == "group" else estimate(bench, stage, options)
        pipe = bench.pipe(stage)
        optimize.apply(pipe, quantization=quantization, num_inference_steps=bench.steps(stage))
        place(pipe, bench.device, way)
        gate = ""
        if estimated is not None:
            gate = "runs in what is estimated"
            yield Result(f"{name}: estimated", estimated / costs.GIB, "GiB")
        try:
            whole = bench.measured(stage, within=estimated, num_inference_steps=1, **calls)
        except torch.OutOfMemoryError as error:
            yield Result(name, f"out of memory: {str(error)[:160]}", "", gate, bench.verdict(False))
            continue
        yield Result(f"{name}: one step", whole.seconds, "s", gate, bench.verdict(True) if gate else None)
        about = {"what": "peak", "stage": stage, "options": costs_options(stage, options)} if gate else None
        yield from memory_of(name, whole, about)


def memory_of(name: str, whole: Whole, about: dict[str, Any] | None = None) -> Iterator[Result]:
    """The most memory of a call, with that of the context."""
    used, held = (bytes_ + (costs.CONTEXT_BYTES if bytes_ else 0) for bytes_ in (whole.used, whole.held))
    yield Result(f"{name}: in use at once", used / costs.GIB, "GiB")
    yield Result(f"{name}: held", held / costs.GIB, "GiB", about=about)


def estimate(bench: Bench, stage: Stage, options: Mapping[str, Any]) -> int:
    """Bytes that an option set is expected to need on the card."""
    given = {**bench.size(stage), "num_frames": bench.num_frames, "num_inference_steps": 1, "dtype": bench.dtype}
    make: Any = costs.estimate_preview if stage == "preview" else costs.estimate_refine
    return make(bench.config(stage), bench.config("vae"), **given, **options).peak_bytes


class PlacedGolden(Golden):
    """Golden vectors whose pipelines run on a device in a dtype."""

    def __init__(self, folder: Path, model: Path, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(folder, model)
        self.device, self.dtype = device, dtype

    @cached_property
    def preview(self) -> FlashVideoPreviewPipeline:
        """See Golden."""
        return super().preview.to(self.device, self.dtype)

    @cached_property
    def refine(self) -> FlashVideoRefinePipeline:
        """See Golden."""
        return super().refine.to(self.device, self.dtype)


def golden(bench: Bench) -> Iterator[Result]:
    """The golden vectors' samplings on the device: float32 within three times the CPU's gates, bfloat16 told."""
    runs = ["stage 1, short run"]
    if not bench.tiny:
        runs += ["stage 1, full run", "stage 1, decoded", "stage 2, run", "stage 2, decoded"]
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for dtype in (torch.float32, torch.bfloat16):
        vectors = PlacedGolden(ROOT / "tests/golden", bench.folder / "golden", bench.device, dtype)
        for group in runs:
            for name, gate, ours, theirs in GROUPS[group](vectors):
                row = compare(name, gate, torch.as_tensor(ours).float().cpu(), torch.as_tensor(theirs).cpu())
                label = f"{group}: {name}, {str(dtype).removeprefix('torch.')}"
                error = row.note if row.error is None else row.error
                if dtype is torch.bfloat16:
                    yield Result(label, error, "largest absolute error")
                    continue
                holds = row.error is not None and row.error <= GOLDEN_FACTOR * gate
                yield Result(
                    label, error, "largest absolute error", f"<= {GOLDEN_FACTOR * gate:.0e}", bench.verdict(holds)
                )


def encoders(bench: Bench) -> Iterator[Result]:
    """Clips to MP4 by the card's encoder and by libx264."""
    if find_spec("av") is None:
        yield Result("MP4", "not measured: PyAV is not installed")
        return
    from flashvideo_ray.media import video

    count, height, width = (9, 256, 256) if bench.tiny else (49, 1072, 1920)
    ramp = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None]
    moving = [np.roll(np.broadcast_to(ramp, (height, width, 3)), 8 * frame, axis=1) for frame in range(count)]
    frames = np.stack(moving)
    for codec in video.CODECS:
        try:
            taken = bench.seconds(partial(video.encode_mp4, frames, 8, codec=codec), 3)
        except RuntimeError as error:
            yield Result(codec, f"not here: {error}")
        else:
            yield Result(codec, taken, f"s for {count} frames of {height}x{width}")
