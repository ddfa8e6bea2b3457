"""Train stage 1: v-prediction under zero terminal SNR, first on single frames, then on more of them.

A clip costs nine times a frame, and outlines need many more samples than motion does: so single frames (each with the
rotary position of its place in the clip) come first, then three frames of nine, then whole clips.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flashvideo_ray.models import FlashVideoDPMScheduler, FlashVideoTransformer3DModel

from .. import world
from ..config import NANO, NanoConfig
from ..networks import build_tokenizer, build_transformer
from .common import Training, cosine
from .fast import fast_attention, init_transformer, positions, transformer_optimizers
from .text import embed, load_text_encoder, scene_captions, tokenize
from .vae import encode_mean, framewise_convolutions, load_vae


@dataclass(frozen=True)
class Segment:
    """Some steps of the curriculum: clips of `frames` of the nine frames, `batch` at a time."""

    steps: int
    frames: int
    batch: int


CURRICULUM = (Segment(1600, 1, 128), Segment(600, 3, 48), Segment(5000, 9, 16))
CLIPS = 12_000


def latent_cache(
    work: Path, count: int = CLIPS, seed: int = 1, config: NanoConfig = NANO
) -> tuple[world.Scenes, Tensor]:
    """Scenes of the training split, and their low-resolution latents [count, frames, channels, h, w] float16."""
    scenes = world.sample(count, torch.Generator().manual_seed(seed), "train")
    file = work / f"latents-{count}-{seed}.pt"
    if file.is_file():
        return scenes, torch.load(file)
    vae = load_vae(work, config)
    parts = []
    with torch.inference_mode(), framewise_convolutions():
        for first in range(0, count, 16):
            parts.append(encode_mean(vae, world.render(scenes[slice(first, first + 16)]) * 2 - 1).half())
    latents = torch.cat(parts)
    partial = file.with_suffix(".part")
    torch.save(latents, partial)
    partial.replace(file)
    return scenes, latents


def draw_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Training steps [count] in 0 … 999, stratified; half of them where outlines and positions are decided."""
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    even = u[0::2] * 1000
    middle = 400 + 580 * u[1::2]
    return torch.cat([even, middle]).long().clamp(0, 999)


def draw_frames(count: int, generator: torch.Generator) -> list[int]:
    """`count` of the clip's frames, in order."""
    return sorted(torch.randperm(world.FRAMES, generator=generator)[:count].tolist())


def train_stage1(
    work: Path,
    curriculum: tuple[Segment, ...] = CURRICULUM,
    clips: int = CLIPS,
    seed: int = 0,
    config: NanoConfig = NANO,
) -> FlashVideoTransformer3DModel:
    """Train, or continue, the stage-1 network; returns it with averaged weights."""
    encoder, tokenizer = load_text_encoder(work, config), build_tokenizer(config)
    scenes, latents = latent_cache(work, clips, config=config)
    torch.manual_seed(seed)
    model = build_transformer(1, config).train()
    init_transformer(model)
    optimizers = transformer_optimizers(model, (6e-3, 2e-3))
    training = Training(work / "stage1", model, model, optimizers, 0.998)
    scheduler = FlashVideoDPMScheduler()
    plan = [segment for segment in curriculum for _ in range(segment.steps)]
    quarters = torch.zeros(4)
    seen = sum(segment.batch for segment in plan[: training.first])
    for step in training.steps(len(plan)):
        segment = plan[step]
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.randint(len(scenes), (segment.batch,), generator=generator)
        frames = draw_frames(segment.frames, generator)
        clean = latents[rows][:, frames].float()
        texts = scene_captions(scenes[rows], random.Random(f"{seed}/{step}"))
        text = embed(encoder, tokenize(texts, tokenizer, config)).clone()
        text[torch.rand(len(rows), generator=generator) < 0.1] = 0
        time = draw_timesteps(segment.batch, generator)
        noise = torch.randn(clean.shape, generator=generator)
        noisy, target = scheduler.add_noise(clean, noise, time), scheduler.get_velocity(clean, noise, time)
        with fast_attention(), positions(frames), torch.autocast("cpu", torch.bfloat16):
            out = model(noisy, text, time.float(), return_dict=False)[0]
        errors = (out.float() - target).square().mean((1, 2, 3, 4))
        errors.mean().backward()
        training.update(cosine(step, len(plan), warmup=100))
        seen += segment.batch
        for quarter in range(4):
            own = errors.detach()[time // 250 == quarter]
            if len(own):
                quarters[quarter] += (own.mean() - quarters[quarter]) * (0.05 if step > training.first + 20 else 0.3)
        if step % 50 == 49:
            training.run.log(
                step=step + 1,
                samples=seen,
                frames=segment.frames,
                loss=quarters.mean().item(),
                quarters=[round(q, 4) for q in quarters.tolist()],
            )
    return training.result()
