"""What a card makes of the code that no CPU can try: times, memory, kernels, offload, exactness.

    python benchmarks/gpu.py results.json [--section NAME ...] [--page docs/gpu.md]
    python benchmarks/gpu.py results.json --tiny

Needs torch, diffusers, transformers and this package; Ray is not used, and PyAV only by two sections. The networks have
the released sizes and random weights that are made on the card. Each section takes at most eight minutes, goes into the
JSON by itself, and replaces what was there of it. `--tiny` runs every line of this on a CPU, with small networks: that
shows that the script works, and nothing about a card, so no gate is ever passed by it. The exit status is 1 if a gate
failed on a card, or a section broke.
"""

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from golden import Golden
from replay import GROUPS, compare

from flashvideo_ray.models import (
    FlashVideoDPMScheduler,
    FlashVideoFlowScheduler,
    FlashVideoPreviewPipeline,
    FlashVideoRefinePipeline,
    FlashVideoTransformer3DModel,
    costs,
    optimize,
)
from flashvideo_ray.models.offload import place

ROOT = Path(__file__).resolve().parent.parent
Stage = Literal["preview", "refine"]
TEXT_TOKENS = 226
MEMORY_GATE = 0.15  # of the estimate
LOOP_GATE = 0.97  # of the bare model's pace
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


@dataclass(frozen=True)
class Result:
    """One figure. `passed` is None where there is no gate, or where only a card could pass it."""

    name: str
    value: float | str
    unit: str = ""
    gate: str = ""
    passed: bool | None = None


@dataclass
class Bench:
    """Where things run, and how large they are."""

    tiny: bool
    device: torch.device
    folder: Path
    models: dict[Stage, Any] = field(default_factory=dict)

    @cached_property
    def dtype(self) -> torch.dtype:
        """In which the networks compute."""
        return torch.float32 if self.tiny else torch.bfloat16

    @property
    def card(self) -> bool:
        """Whether a figure says something about a card."""
        return self.device.type == "cuda" and not self.tiny

    def config(self, name: str) -> dict[str, Any]:
        """Configuration of a network."""
        if not self.tiny:
            return costs.RELEASED[name]
        if name == "vae":
            small = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 2}
            return {**costs.RELEASED["vae"], **small, "latent_channels": 4}
        small = {"num_attention_heads": 2, "num_layers": 2, "attention_head_dim": 16, "in_channels": 4}
        return {**costs.RELEASED[name], **small, "time_embed_dim": 16, "text_embed_dim": 32}

    def size(self, stage: Stage) -> dict[str, int]:
        """Height and width in pixels."""
        full = {"preview": (256, 480), "refine": (1072, 1920)}
        height, width = {"preview": (32, 48), "refine": (64, 96)}[stage] if self.tiny else full[stage]
        return {"height": height, "width": width}

    @property
    def num_frames(self) -> int:
        """Of a video."""
        return 9 if self.tiny else 49

    def steps(self, stage: Stage) -> int:
        """Evaluations of a whole call."""
        return 2 if self.tiny else {"preview": 51, "refine": 5}[stage]

    def latents(self, stage: Stage) -> torch.Tensor:
        """Noise of the shape of a stage's latents, on the device."""
        size = self.size(stage)
        channels = self.config(stage)["in_channels"]
        shape = (1, (self.num_frames - 1) // 4 + 1, channels, size["height"] // 8, size["width"] // 8)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device)

    def embeds(self, stage: Stage) -> torch.Tensor:
        """Text embeddings, on the CPU as rows bring them."""
        length = 16 if self.tiny else TEXT_TOKENS
        shape = (1, length, self.config(stage)["text_embed_dim"])
        return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def network(self, model_class: Any, config: Mapping[str, Any]) -> Any:
        """A network with random weights, made where it will run: nothing is read, and nothing copied."""
        with torch.device("meta"):
            network = torch.nn.Module.to(model_class(**config), self.dtype)
        network = network.to_empty(device=self.device).eval().requires_grad_(False)
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.02)
            else:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        return network

    def pipe(self, stage: Stage) -> Any:
        """The stage's pipeline, made once; the other stage's is let go, since both may not fit."""
        if stage not in self.models:
            self.forget()
            transformer = self.network(FlashVideoTransformer3DModel, self.config(stage))
            vae = self.network(AutoencoderKLCogVideoX, self.config("vae"))
            common = {"transformer": transformer, "vae": vae, **self.size(stage)}
            if stage == "preview":
                made: Any = FlashVideoPreviewPipeline(
                    scheduler=FlashVideoDPMScheduler(), num_frames=self.num_frames, **common
                )
            else:
                made = FlashVideoRefinePipeline(scheduler=FlashVideoFlowScheduler(), **common)
            made.set_progress_bar_config(disable=True)
            self.models[stage] = made
        return self.models[stage]

    def forget(self) -> None:
        """Let all networks go, hooks and options with them."""
        self.models.clear()
        self.free()

    def free(self) -> None:
        """Give back what no tensor holds."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def generator(self) -> torch.Generator:
        """The same noise in every call."""
        return torch.Generator().manual_seed(2)

    def preview(self, **options: Any) -> torch.Tensor:
        """A whole preview: text tokens to 8-bit frames on the CPU."""
        pipe = self.pipe("preview")
        latents = pipe(
            prompt_embeds=self.embeds("preview"),
            **{"num_inference_steps": self.steps("preview"), **options},
            generator=self.generator(),
            output_type="latent",
        ).latents
        return pipe.decode_latents(latents, quantise=True)

    def refine(
        self,
        chunk_frames: int | None = None,
        encode_tiles: tuple[int, int] | None = None,
        decode_tiles: tuple[int, int] | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """A whole clip: preview latents to 8-bit frames on the CPU."""
        pipe, generator = self.pipe("refine"), self.generator()
        frames = pipe.decode_latents(self.latents("preview"), scaling_factor=0.7, tiling="none")
        encoded = pipe.encode_frames(frames, generator=generator, chunk_frames=chunk_frames, tiles=encode_tiles)
        latents = pipe(
            encoded=encoded,
            prompt_embeds=self.embeds("refine"),
            **{"num_inference_steps": self.steps("refine"), **options},
            generator=generator,
            output_type="latent",
        ).latents
        return pipe.decode_latents(latents, tiles=decode_tiles, quantise=True)

    def whole(self, stage: Stage, **options: Any) -> torch.Tensor:
        """`preview` or `refine`."""
        return self.preview(**options) if stage == "preview" else self.refine(**options)

    def forward(self, stage: Stage, batch: int = 2) -> Callable[[], Any]:
        """One evaluation of the network, with both branches of guidance or one."""
        transformer = self.pipe(stage).transformer
        latents = self.latents(stage).to(self.dtype).expand(batch, -1, -1, -1, -1)
        text = transformer.project_text(self.embeds(stage).to(self.device)).expand(batch, -1, -1)
        times = torch.full((batch,), 500.0, device=self.device)
        told = torch.tensor(675.0, device=self.device) if stage == "refine" else None

        @torch.no_grad()
        def run() -> Any:
            return transformer(latents, text, times, told, text_is_projected=True, return_dict=False)

        return run

    def seconds(self, call: Callable[[], Any], repeats: int = 3) -> float:
        """Median wall seconds of a call that has run once before."""
        call()
        taken = []
        for _ in range(1 if self.tiny else repeats):
            self.wait()
            started = time.perf_counter()
            call()
            self.wait()
            taken.append(time.perf_counter() - started)
        return statistics.median(taken)

    def peak(self, call: Callable[[], Any]) -> int:
        """Most bytes that a call had on the card, all allocated before it included; 0 without a card."""
        self.free()
        if self.device.type != "cuda":
            call()
            return 0
        torch.cuda.reset_peak_memory_stats()
        call()
        self.wait()
        return torch.cuda.max_memory_reserved()

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def flops(self, stage: Stage) -> float:
        """Operations of one evaluation of one sample."""
        latents = self.latents(stage)
        shape = (latents.shape[1], latents.shape[3], latents.shape[4])
        return costs.transformer_flops(self.config(stage), shape, self.embeds(stage).shape[1])

    def verdict(self, holds: bool) -> bool | None:
        """What becomes of a gate: only a card can pass or fail it."""
        return holds if self.card else None


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
    """Times of a stage's parts and of the whole, and their share of the ceiling."""

    def section(bench: Bench) -> Iterator[Result]:
        ceiling = matrix_ceiling(bench)

        def timed(name: str, flops: float, call: Callable[[], Any], repeats: int = 3) -> Iterator[Result]:
            seconds = bench.seconds(call, repeats)
            yield Result(name, seconds, "s")
            yield Result(f"{name}: share of the ceiling", flops / seconds / ceiling, "")

        pipe, size, config = bench.pipe(stage), bench.size(stage), bench.config("vae")
        video = (bench.num_frames, size["height"], size["width"])
        tiles = (1, 2) if stage == "refine" else (1, 1)
        yield from timed("one evaluation of both branches", 2 * bench.flops(stage), bench.forward(stage))
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
        yield from timed(f"a whole {stage}, {bench.steps(stage)} steps", whole, lambda: bench.whole(stage), 1)

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
                seconds = bench.seconds(bench.forward(stage))
            except (optimize.OptionError, RuntimeError, ImportError, OSError) as error:
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
        yield Result(f"{name}: peak", used / costs.GIB, "GiB", gate, bench.verdict(holds))


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
            taken = bench.seconds(partial(bench.whole, stage, **options), 1)
            yield Result(f"{stage}, 2 steps, offload {way}", taken, "s")
            yield Result(f"{stage}, 2 steps, offload {way}: peak", peak / costs.GIB, "GiB")


def encoders(bench: Bench) -> Iterator[Result]:
    """Clips to MP4 by the card's encoder and by libx264."""
    if find_spec("av") is None:
        yield Result("MP4", "not measured: PyAV is not installed")
        return
    from flashvideo_ray import video

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


def sharing(bench: Bench) -> Iterator[Result]:
    """Evaluations a second of one process, and of two that share the card."""
    alone = sum(evaluations(bench, 1))
    both = sum(evaluations(bench, 2))
    yield Result("one process", alone, "evaluations/s")
    yield Result("two processes together", both, "evaluations/s")
    yield Result("two over one", both / alone, "")


def evaluations(bench: Bench, processes: int) -> list[float]:
    """What each of so many processes, started together, evaluates of stage 1 in a second."""
    bench.forget()
    command = [sys.executable, __file__, "--evaluate", *(["--tiny"] if bench.tiny else [])]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()  # it has loaded
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    rates = []
    for process in started:
        out, _ = process.communicate(timeout=400)
        if process.returncode:
            raise RuntimeError(f"a process that evaluates ended with {process.returncode}")
        rates.append(float(out))
    return rates


def evaluate(bench: Bench) -> None:
    """The process that `evaluations` starts: load, wait for the word, evaluate for a while, tell the rate."""
    run = bench.forward("preview")
    run()
    bench.wait()
    print("ready", flush=True)
    sys.stdin.readline()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < (0.2 if bench.tiny else 30):
        run()
        bench.wait()
        count += 1
    print(count / (time.perf_counter() - started))


class Told:
    """A stage's events, of which nobody hears."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        from flashvideo_ray.graph.events import Attempt

        answers = {"starting": 0.0, "begin": 1, "attempt": Attempt(1, overdue=False), "admit": "go"}
        return lambda *args, **kwargs: answers.get(name)


def loop(bench: Bench) -> Iterator[Result]:
    """Clips an hour of the refine stage as an actor runs it, two calls at a time, over those of the bare model."""
    if find_spec("av") is None:
        yield Result("the stage's own loop", "not measured: PyAV is not installed")
        return
    from safetensors.torch import save

    from flashvideo_ray import engines
    from flashvideo_ray.engines import weights
    from flashvideo_ray.graph.stages import Refine
    from flashvideo_ray.ledger.store import Store
    from flashvideo_ray.settings import Settings

    model = bench.folder / "model"
    for stage in ("preview", "refine"):  # the settings name both; the stage loads its own
        config = bench.pipe("refine" if stage == "refine" or not bench.tiny else "preview")
        config.save_pretrained(model / stage)
    steps = bench.steps("refine")
    clips = 2 if bench.tiny else 3
    bare = bench.seconds(lambda: bench.refine(), 1)
    bench.forget()
    dtype = str(bench.dtype).removeprefix("torch.")
    size = bench.size("refine")
    settings = Settings.of_tree(
        {
            "preview": {"model": str(model)},
            "refine": {"model": str(model), "dtype": dtype, "num_inference_steps": steps, **size},
        }
    )
    prints = {"refine": engines.of(settings, "refine").fingerprint()}
    provenance = {"model_fingerprints": json.dumps(prints)}
    settings = weights.with_model_defaults(settings) if bench.tiny else settings
    actor = Refine(settings, Told(), Store(str(bench.folder / "run")), fps=8, provenance=provenance)
    latents = save({"latents": bench.latents("preview")[0].cpu()})
    embeds = save({"refine": bench.embeds("refine")[0]})

    def render(number: int) -> None:
        row = {"clip_id": f"{number:020x}", "id": "a", "prompt": "a", "seed": number, "candidate": 0, "audit": None}
        actor.process({**row, "status": "previewed", "preview_latents": latents, "prompt_embeds": embeds})

    render(0)  # warm
    started = time.perf_counter()
    with ThreadPoolExecutor(2) as calls:
        list(calls.map(render, range(1, 1 + clips)))
    taken = (time.perf_counter() - started) / clips
    yield Result("the bare model", bare, "s a clip")
    yield Result("the stage, encoding and storing beside it", taken, "s a clip")
    share = bare / taken
    yield Result(
        "pace of the stage over that of the model", share, "", f">= {LOOP_GATE}", bench.verdict(share >= LOOP_GATE)
    )


SECTIONS: dict[str, Callable[[Bench], Iterator[Result]]] = {
    "ceilings": ceilings,
    "preview": stage_times("preview"),
    "refine": stage_times("refine"),
    "attention": attention,
    "compiling": compiling,
    "memory": memory,
    "golden": golden,
    "offload": offload,
    "encoders": encoders,
    "sharing": sharing,
    "loop": loop,
}


def machine(bench: Bench) -> dict[str, str]:
    """What a section ran on."""
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    if bench.device.type != "cuda":
        return {"card": f"none ({platform.machine()})", "driver": "none", **versions}
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    return {"card": torch.cuda.get_device_name(), "driver": driver, **versions, "cuda": str(torch.version.cuda)}


def measure(bench: Bench, name: str) -> dict[str, Any]:
    """Run a section. What breaks it is one of its results."""
    started, broken, results = time.perf_counter(), None, []
    try:
        for result in SECTIONS[name](bench):
            results.append(asdict(result))
            told = {True: "passed", False: "FAILED", None: ""}[result.passed]
            value = f"{result.value:.4g}" if isinstance(result.value, float) else result.value
            print(f"{name}: {result.name}: {value} {result.unit} {result.gate} {told}".rstrip(), flush=True)
    except Exception as error:  # the sections after it are worth having
        traceback.print_exception(error)
        broken = f"{type(error).__name__}: {error}"
    bench.forget()
    seconds = round(time.perf_counter() - started, 1)
    return {"machine": machine(bench), "tiny": bench.tiny, "seconds": seconds, "broken": broken, "results": results}


def page(measured: Mapping[str, Any]) -> str:
    """The measurements as a page of docs. What no card has run says so."""
    lines = [
        "# On a card",
        "",
        "Written by `python benchmarks/gpu.py results.json --page docs/gpu.md`; see there what each section does.",
        "Networks of the released sizes with random weights, in bfloat16. What no card has run is *not measured*.",
    ]
    for name, section in SECTIONS.items():
        own = measured.get(name)
        if name in ("preview", "refine"):
            purpose = f"Times of the {name} stage's parts and of the whole, and their share of the ceiling."
        else:
            purpose = str(section.__doc__).splitlines()[0]
        lines += ["", f"## {name}", "", purpose, ""]
        if own is None or own["tiny"] or own["machine"]["driver"] == "none":
            lines.append("Not measured.")
            continue
        ran_on = ", ".join(f"{key} {value}" for key, value in own["machine"].items())
        lines += [f"{ran_on}; {own['seconds']:.0f} s.", "", "| | | gate | |", "| --- | --- | --- | --- |"]
        for result in own["results"]:
            value = f"{result['value']:.4g}" if isinstance(result["value"], float) else result["value"]
            passed = {True: "passed", False: "failed", None: ""}[result["passed"]]
            lines.append(f"| {result['name']} | {value} {result['unit']} | {result['gate']} | {passed} |")
        if own["broken"]:
            lines += ["", f"The section broke: {own['broken']}"]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("results", type=Path, nargs="?", help="JSON to read and to bring up to date")
    parser.add_argument("--section", action="append", choices=SECTIONS, help="only this one; can be repeated")
    parser.add_argument("--tiny", action="store_true", help="small networks on the CPU: a trial of this script")
    parser.add_argument("--page", type=Path, help="write the JSON as a page here, and measure only named sections")
    parser.add_argument("--evaluate", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    on_card = torch.cuda.is_available() and not arguments.tiny
    device = torch.device("cuda" if on_card else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments.tiny, device, Path(folder))
        if arguments.evaluate:
            evaluate(bench)
            return 0
        if arguments.results is None:
            parser.error("name the JSON to write")
        measured = json.loads(arguments.results.read_text()) if arguments.results.is_file() else {}
        names = arguments.section or ([] if arguments.page else list(SECTIONS))
        if names and not on_card and not arguments.tiny:
            parser.error("no card here; --tiny tries the script on the CPU")
        for name in names:
            measured[name] = measure(bench, name)
            arguments.results.write_text(json.dumps(measured, indent=1) + "\n")
    if arguments.page:
        arguments.page.write_text(page(measured))
    ran = [measured[name] for name in names]
    failed = any(result["passed"] is False for section in ran for result in section["results"])
    return 1 if failed or any(section["broken"] for section in ran) else 0


if __name__ == "__main__":
    sys.exit(main())
