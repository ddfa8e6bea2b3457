"""Train stage 2: a flow from degraded low-resolution to high-resolution latents, on crops of three frames.

As in FlashVideo: the low-resolution pixels are degraded (an autoencoder's pass with noise in its latents, blur, noise),
upsampled, encoded, and degraded again with noise in latent space; the network is told how much. A tiny latent does not
survive the released model's step 675: here the range is `NOISE_STEPS`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flashvideo_ray.models import FlashVideoFlowScheduler, FlashVideoTransformer3DModel
from flashvideo_ray.models.vae import resize_frames

from .. import world
from ..config import NANO, NanoConfig
from ..networks import build_tokenizer, build_transformer
from .common import Training, cosine
from .fast import fast_attention, init_transformer, positions, transformer_optimizers
from .text import embed, load_text_encoder, scene_captions, tokenize
from .vae import encode_mean, framewise_convolutions, load_vae

NOISE_STEPS = (20, 300)
PAIRS = 2400
FRAMES = 3  # of nine, in every pair


@dataclass(frozen=True)
class Segment:
    """Some steps of the curriculum: `batch` crops of `rows` x `columns` patches."""

    steps: int
    rows: int
    columns: int
    batch: int


CURRICULUM = (Segment(2000, 8, 8, 32), Segment(500, 12, 16, 12))


def degrade(vae: Any, low: Tensor, generator: torch.Generator) -> Tensor:
    """Frames [batch, frames, 3, h, w] in 0..1 as a preview may show them: autoencoded with some noise, softened."""
    batch = len(low)
    latents = encode_mean(vae, low * 2 - 1)
    level = 0.25 * torch.rand(batch, 1, 1, 1, 1, generator=generator) ** 2
    level = level * (torch.rand(batch, 1, 1, 1, 1, generator=generator) < 0.8)
    latents = latents + level * torch.randn(latents.shape, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        out = vae.decoder(latents.transpose(1, 2))[0].float().transpose(1, 2) / 2 + 0.5
    kernel = torch.tensor([0.25, 0.5, 0.25])
    weight = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
    soft = F.conv2d(F.pad(out.flatten(0, 1), (1, 1, 1, 1), mode="replicate"), weight, groups=3).view_as(out)
    blur = torch.rand(batch, 1, 1, 1, 1, generator=generator) * (
        torch.rand(batch, 1, 1, 1, 1, generator=generator) < 0.3
    )
    return torch.lerp(out, soft, blur).clamp(0, 1)


def pair_cache(work: Path, count: int, seed: int, config: NanoConfig) -> tuple[world.Scenes, Tensor, Tensor, Tensor]:
    """Scenes, their frame numbers [count, 3], and latents of both resolutions [count, 3, channels, h, w] float16.

    Made in parts of 100, so that a kill costs little.
    """
    generator = torch.Generator().manual_seed(seed)
    scenes = world.sample(count, generator, "train")
    # Ten choices of frames in turn, so that a batch can be drawn that shares them.
    choices = torch.stack([torch.randperm(world.FRAMES, generator=generator)[:FRAMES].sort().values for _ in range(10)])
    frames = choices[torch.arange(count) % len(choices)]
    folder = work / f"pairs-{count}-{seed}"
    folder.mkdir(exist_ok=True)
    vae = load_vae(work, config)
    parts = []
    for first in range(0, count, 100):
        file = folder / f"{first:05d}.pt"
        if not file.is_file():
            part = _pairs(vae, scenes[slice(first, first + 100)], frames[first : first + 100], seed + first)
            torch.save(part, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
        parts.append(torch.load(file))
    return scenes, frames, torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


@torch.inference_mode()
def _pairs(vae: Any, scenes: world.Scenes, frames: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lows, highs = [], []
    size = (world.HEIGHT * world.SCALE, world.WIDTH * world.SCALE)
    with framewise_convolutions():
        for i in range(0, len(scenes), 4):
            some, numbers = scenes[slice(i, i + 4)], frames[i : i + 4]
            low = degrade(vae, world.render(some, 1, numbers), generator)
            lows.append(torch.cat([encode_mean(vae, resize_frames(one[None], size)) for one in low]).half())
            high = world.render(some, world.SCALE, numbers) * 2 - 1
            highs.append(torch.cat([encode_mean(vae, one[None]) for one in high]).half())
    return torch.cat(lows), torch.cat(highs)


def train_stage2(
    work: Path,
    curriculum: tuple[Segment, ...] = CURRICULUM,
    pairs: int = PAIRS,
    seed: int = 0,
    config: NanoConfig = NANO,
) -> FlashVideoTransformer3DModel:
    """Train, or continue, the stage-2 network; returns it with averaged weights."""
    encoder, tokenizer = load_text_encoder(work, config), build_tokenizer(config)
    scenes, frames, lows, highs = pair_cache(work, pairs, 2, config)
    torch.manual_seed(seed)
    model: Any = build_transformer(2, config).train()
    init_transformer(model)
    # Every clip of the nano world has nine frames, but training sees three: the embedding of their number stays zero.
    model.time_size_embedding.requires_grad_(False)
    optimizers = transformer_optimizers(model, (6e-3, 2e-3))
    training = Training(work / "stage2", model, model, optimizers, 0.998)
    scheduler = FlashVideoFlowScheduler(shift=config.shift)
    plan = [segment for segment in curriculum for _ in range(segment.steps)]
    loss = 0.0
    patch = config.patches[1]
    for step in training.steps(len(plan)):
        segment = plan[step]
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rng = random.Random(f"{seed}/{step}")
        top = rng.randint(0, highs.shape[-2] // patch - segment.rows)
        left = rng.randint(0, highs.shape[-1] // patch - segment.columns)
        window = (
            slice(None),
            slice(None),
            slice(None),
            slice(top * patch, (top + segment.rows) * patch),
            slice(left * patch, (left + segment.columns) * patch),
        )
        # The rotary positions are shared by a batch: rows whose frames are the same.
        rows = torch.randint(len(scenes) // 10, (segment.batch,), generator=generator) * 10 + rng.randrange(10)
        low, high = lows[rows][window].float(), highs[rows][window].float()
        text = embed(encoder, tokenize(scene_captions(scenes[rows], rng), tokenizer, config)).clone()
        text[torch.rand(segment.batch, generator=generator) < 0.1] = 0
        noise_step = torch.randint(*NOISE_STEPS, (segment.batch,), generator=generator)
        start = scheduler.add_noise(low, torch.randn(low.shape, generator=generator), noise_step)
        u = (torch.arange(segment.batch) + torch.rand(segment.batch, generator=generator)) / segment.batch
        time = scheduler.shift_time(u[torch.randperm(segment.batch, generator=generator)])
        mixed = torch.lerp(start, high, time[:, None, None, None, None])
        with fast_attention(), positions(frames[rows[0]].tolist(), top, left), torch.autocast("cpu", torch.bfloat16):
            out = model(mixed, text, scheduler.model_time(time), ref_noise_step=noise_step.float(), return_dict=False)[
                0
            ]
        errors = (out.float() - (high - start)).square().mean()
        errors.backward()
        training.update(cosine(step, len(plan), warmup=100))
        loss += (errors.item() - loss) * (0.03 if step > training.first + 30 else 0.3)
        if step % 50 == 49:
            training.run.log(step=step + 1, tokens=segment.rows * segment.columns, loss=loss)
    return training.result()
