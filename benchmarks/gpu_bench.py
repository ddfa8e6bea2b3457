"""A device to measure on: networks of the released sizes with random weights, calls of them, clocks and memory."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX

from flashvideo_ray.models import (
    FlashVideoDPMScheduler,
    FlashVideoFlowScheduler,
    FlashVideoPreviewPipeline,
    FlashVideoRefinePipeline,
    FlashVideoTransformer3DModel,
    costs,
)

Stage = Literal["preview", "refine"]
TEXT_TOKENS = 226


@dataclass(frozen=True)
class Result:
    """One figure. `passed` is None where there is no gate, or where only a card could pass it."""

    name: str
    value: float | str
    unit: str = ""
    gate: str = ""
    passed: bool | None = None
    about: dict[str, Any] | None = None  # of which estimate it is the measured number


@dataclass(frozen=True)
class Whole:
    """What a whole call took: seconds of its parts by name, and bytes on the card (0 on none)."""

    parts: Mapping[str, float]
    used: int
    """The most of all tensors at once, those included that were there before."""
    held: int
    """The most that PyTorch had for it, with what lay between tensors or was kept for later ones."""

    @property
    def seconds(self) -> float:
        """Of all parts."""
        return sum(self.parts.values())


@dataclass
class Bench:
    """Where things run, and how large they are."""

    tiny: bool
    device: torch.device
    folder: Path
    refine_size: tuple[int, int] = (1072, 1920)
    models: dict[Stage, Any] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds of the parts of the call that is under way, or was the last."""

    @classmethod
    def here(cls, tiny: bool, folder: Path) -> Self:
        """On this machine's card, if it has one and a trial does not want the CPU."""
        device = torch.device("cuda" if torch.cuda.is_available() and not tiny else "cpu")
        return cls(tiny, device, folder)

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
        full = {"preview": (256, 480), "refine": self.refine_size}
        height, width = {"preview": (32, 48), "refine": (32, 64)}[stage] if self.tiny else full[stage]
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
        with self.part("denoise"):
            latents = pipe(
                prompt_embeds=self.embeds("preview"),
                **{"num_inference_steps": self.steps("preview"), **options},
                generator=self.generator(),
                output_type="latent",
            ).latents
        with self.part("decode"):
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
        with self.part("decode the preview"):
            frames = pipe.decode_latents(self.latents("preview"), scaling_factor=0.7, tiling="none")
        with self.part("encode"):
            encoded = pipe.encode_frames(frames, generator=generator, chunk_frames=chunk_frames, tiles=encode_tiles)
        with self.part("denoise"):
            latents = pipe(
                encoded=encoded,
                prompt_embeds=self.embeds("refine"),
                **{"num_inference_steps": self.steps("refine"), **options},
                generator=generator,
                output_type="latent",
            ).latents
        with self.part("decode"):
            return pipe.decode_latents(latents, tiles=decode_tiles, quantise=True)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part of a whole call, whose seconds are kept. It gives back its memory, as in an actor."""
        self.wait()
        started = time.perf_counter()
        yield
        self.wait()
        self.free()
        self.parts[name] = time.perf_counter() - started

    def whole(self, stage: Stage, **options: Any) -> torch.Tensor:
        """`preview` or `refine`."""
        return self.preview(**options) if stage == "preview" else self.refine(**options)

    def forward(self, stage: Stage, batch: int = 2) -> Callable[[], Any]:
        """One evaluation of the network, with both branches of guidance or one."""
        transformer = self.pipe(stage).transformer
        latents = self.latents(stage).to(self.dtype).expand(batch, -1, -1, -1, -1)
        # A copy, as the pipelines have it: another layout would be compiled for by itself.
        text = transformer.project_text(self.embeds(stage).to(self.device)).repeat(batch, 1, 1)
        times = torch.full((batch,), 500.0, device=self.device)
        told = torch.tensor(675.0, device=self.device) if stage == "refine" else None

        @torch.no_grad()
        def run() -> Any:
            return transformer(latents, text, times, told, text_is_projected=True, return_dict=False)

        return run

    def seconds(self, call: Callable[[], Any], repeats: int = 3, warm: bool = False) -> float:
        """Median wall seconds of a call that has run once before; `warm` says that it has, or a trial need not."""
        if not (warm or self.tiny):
            call()
        taken = []
        for _ in range(1 if self.tiny else repeats):
            self.wait()
            started = time.perf_counter()
            call()
            self.wait()
            taken.append(time.perf_counter() - started)
        return statistics.median(taken)

    def measured(self, stage: Stage, within: int | None = None, **options: Any) -> Whole:
        """A whole call, in a process that may have no more than so many bytes. Raises OutOfMemoryError."""
        self.free()
        self.parts = {}
        if self.device.type != "cuda":
            self.whole(stage, **options)
            return Whole(self.parts, 0, 0)
        torch.cuda.reset_peak_memory_stats()
        share = 1.0 if within is None else (within - costs.CONTEXT_BYTES) / torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(min(share, 1.0))
        try:
            self.whole(stage, **options)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return Whole(self.parts, torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())

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
