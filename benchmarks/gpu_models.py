"""Sections on the models alone: times, kernels, compiling, memory, offload, exactness, and the encoders of MP4."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from golden import Golden
from gpu_bench import Bench, Result, Stage
from replay import GROUPS, compare

from flashvideo_ray.accounting.card import costs_options
from flashvideo_ray.models import FlashVideoPreviewPipeline, FlashVideoRefinePipeline, costs, optimize
from flashvideo_ray.models.offload import place

ROOT = Path(__file__).resolve().parent.parent
MEMORY_GATE = 0.15  # of the estimate
GOLDEN_FACTOR = 3  # of the gates on a CPU

# As docs/flashvideo.md lists them: name, stage, options.
OPTION_SETS: tuple[tuple[str, Stage, dict[str, Any]], ...] = (
    ("preview, text encoded elsewhere", "preview", {}),
    ("preview, apart", "preview", {"guidance_batching": "apart"}),
    ("refine, as the reference", "refine", {}),
    (
        "refine, apart, model offload, encode 1x2, decode 2x2",
        "refine",
        {"guidance_batching": "apart", "offload": "model", "encode_tiles": (1, 2), "decode_tiles": (2, 2)},
    ),
    (
        "refine, apart, model offload, encode 2x2 by 8, decode 3x4",
        "refine",
        {
            "guidance_batching": "apart",
            "offload": "model",
            "encode_chunk_frames": 8,
            "encode_tiles": (2, 2),
            "decode_tiles": (3, 4),
        },
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
        ceiling = matrix_ceiling(bench)

        def timed(
            name: str, flops: float, call: Callable[[], Any], repeats: int = 3, what: str | None = None
        ) -> Iterator[Result]:
            seconds = bench.seconds(call, repeats)
            yield Result(name, seconds, "s", about={"what": what, "stage": stage} if what else None)
            yield Result(f"{name}: share of the ceiling", flops / seconds / ceiling, "")

        pipe, size, config = bench.pipe(stage), bench.size(stage), bench.config("vae")
        video = (bench.num_frames, size["height"], size["width"])
        tiles = (1, 2) if stage == "refine" else (1, 1)
        yield from timed("one evaluation of both branches", 2 * bench.flops(stage), bench.forward(stage), what="step")
        if stage == "refine":
            frames = torch.rand(1, bench.num_frames, 3, *bench.size("preview").values())
            flops, _ = costs.vae_cost(config, "encoder", *video)
            yield from timed("VAE encode", flops, lambda: pipe.encode_frames(frames, generator=bench.generator()), 1)
        flops, _ = costs.vae_cost(config, "decoder", *video, tiles=tiles)
        latents = bench.latents(stage)
        yield from timed(
            "VAE decode, in 8 bits on the host", flops, lambda: pipe.decode_latents(latents, quantise=True)
        )
        denoise = 2 * bench.steps(stage) * bench.flops(stage)
        whole = denoise + flops
        if stage == "refine":
            whole += costs.vae_cost(config, "encoder", *video)[0]
        yield from timed(f"a whole {stage}, {bench.steps(stage)} steps", whole, lambda: bench.whole(stage), 1, "whole")

    section.__doc__ = f"Times of the {stage} stage's parts and of the whole, and their share of the ceiling."
    return section


def attention(bench: Bench) -> Iterator[Result]:
    """Every kernel that diffusers can dispatch to and that runs here, on one evaluation of each stage."""
    stages: tuple[Stage, ...] = ("preview", "refine")
    kernels = ("native", "_native_math") if bench.tiny else [backend.value for backend in AttentionBackendName]
    for stage in stages:
        bench.forget()
        for name in kernels:
            try:
                optimize.apply(bench.pipe(stage), attention=name, num_inference_steps=bench.steps(stage))
                optimize.finish(bench.pipe(stage), attention=name)
                seconds = bench.seconds(bench.forward(stage), 1 if stage == "refine" else 3)
            except Exception as error:  # each kernel has its own
                yield Result(f"{stage}, {name}", f"not here: {str(error).splitlines()[0][:160]}")
            else:
                yield Result(f"{stage}, {name}", seconds, "s an evaluation of both branches")
        bench.pipe(stage).transformer.reset_attention_backend()


def compiling(bench: Bench) -> Iterator[Result]:
    """Compiled blocks, guidance together and apart, and tilings of the decoder."""
    stages: tuple[Stage, ...] = ("preview", "refine")
    for stage in stages:
        bench.forget()
        yield Result(f"{stage}, together", bench.seconds(bench.forward(stage)), "s")
        yield Result(f"{stage}, apart, twice", 2 * bench.seconds(bench.forward(stage, batch=1)), "s")
        if bench.tiny:
            bench.pipe(stage).transformer.compile_repeated_blocks(backend="eager", fullgraph=True)
        else:
            optimize.finish(bench.pipe(stage), compile=True)
        yield Result(f"{stage}, together, compiled", bench.seconds(bench.forward(stage)), "s")
    latents, pipe = bench.latents("refine"), bench.pipe("refine")
    for tiles in ((1, 2), (2, 2), (3, 4)):
        taken = bench.seconds(partial(pipe.decode_latents, latents, tiles=tiles, quantise=True), 1)
        yield Result(f"refine, decode {tiles[0]}x{tiles[1]}", taken, "s")


def memory(bench: Bench) -> Iterator[Result]:
    """Peak memory of every option set of docs/flashvideo.md, one step each, against its estimate."""
    for name, stage, options in OPTION_SETS:
        bench.forget()
        own = dict(options)
        offload = own.pop("offload", "none")
        pipe = bench.pipe(stage)
        place(pipe, bench.device, offload)
        estimated = estimate(bench, stage, options)
        calls = {key: value for key, value in own.items() if key != "encode_chunk_frames"}
        if "encode_chunk_frames" in own:
            calls["chunk_frames"] = own["encode_chunk_frames"]
        used = bench.peak(partial(bench.whole, stage, num_inference_steps=1, **calls))
        used += costs.CONTEXT_BYTES if used else 0
        yield Result(f"{name}: estimated", estimated / costs.GIB, "GiB")
        gate = f"within {MEMORY_GATE:.0%} of the estimate"
        holds = abs(used / estimated - 1) <= MEMORY_GATE
        about = {"what": "peak", "stage": stage, "options": costs_options(stage, options)}
        yield Result(f"{name}: peak", used / costs.GIB, "GiB", gate, bench.verdict(holds), about)


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


def offload(bench: Bench) -> Iterator[Result]:
    """Model and group offload as the stages use them: seconds and peak, beside the same without."""
    stages: tuple[Stage, ...] = ("preview", "refine")
    ways: tuple[Literal["none", "model", "group"], ...] = ("none", "model", "group")
    for stage in stages:
        for way in ways:
            bench.forget()
            place(bench.pipe(stage), bench.device, way)
            options: dict[str, Any] = {"num_inference_steps": 2, "guidance_batching": "apart"}
            if stage == "refine":
                options |= {"encode_tiles": (1, 2), "decode_tiles": (2, 2)}
            peak = bench.peak(partial(bench.whole, stage, **options))
            taken = bench.seconds(partial(bench.whole, stage, **options), 1, warm=True)
            yield Result(f"{stage}, 2 steps, offload {way}", taken, "s")
            yield Result(f"{stage}, 2 steps, offload {way}: peak", peak / costs.GIB, "GiB")


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
