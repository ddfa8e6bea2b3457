"""Train the CLIP scorer: contrastive on groups of clips that differ in one attribute, with attribute readers beside it.

The readers (cross entropy on the picture's features) are what makes outlines and motion start to be learned; they are
not kept. Only combinations of the training split are drawn, mutants included.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import world
from ..clip import contact_sheet, text_features
from ..config import NANO, NanoConfig
from ..networks import build_clip, build_tokenizer
from .common import Optimizers, Training, cosine
from .text import scene_captions, tokenize

SEEN = ("shape", "color", "motion", "background", "size")
GROUPS, MUTANTS = 24, 3


def draw_groups(groups: int, generator: torch.Generator, split: str = "train") -> world.Scenes:
    """Scenes in groups of 1 + `MUTANTS` that stand together; a mutant differs from the first in one attribute."""
    base = world.sample(groups, generator, split)
    index = {name: values.repeat_interleave(1 + MUTANTS) for name, values in base.index.items()}
    for row in range(groups * (1 + MUTANTS)):
        number = row % (1 + MUTANTS)
        if number == 0:
            continue
        names = SEEN[: len(SEEN) - 1] if number == 1 else SEEN
        name = names[int(torch.randint(len(names), (1,), generator=generator))]
        values = [v for v in range(len(world.ATTRIBUTES[name])) if v != int(index[name][row])]
        order = torch.randperm(len(values), generator=generator).tolist()
        for choice in order:
            before = index[name][row].clone()
            index[name][row] = values[choice]
            held = world.is_heldout(index["shape"][row], index["color"][row], index["motion"][row])
            if split == "all" or bool(held) == (split == "heldout") or name in ("background", "size"):
                break
            index[name][row] = before
    return world.place(index, generator)


def sheets(scenes: world.Scenes, generator: torch.Generator) -> Tensor:
    """Contact sheets of scenes, with the small faults that generated clips have."""
    chosen = torch.tensor([0, round((world.FRAMES - 1) / 3), round(2 * (world.FRAMES - 1) / 3), world.FRAMES - 1])
    frames = world.render(scenes, 1, chosen)
    out = contact_sheet(frames)
    level = 0.08 * torch.rand(len(out), 1, 1, 1, generator=generator) ** 2
    gain = 1 + 0.06 * torch.randn(len(out), 3, 1, 1, generator=generator)
    coarse = F.interpolate(torch.randn(len(out), 3, 32, 32, generator=generator), size=out.shape[-2:], mode="bilinear")
    return out * gain + level * (torch.randn(out.shape, generator=generator) + 2 * coarse)


def train_clip(work: Path, steps: int = 2000, groups: int = GROUPS, seed: int = 0, config: NanoConfig = NANO) -> Any:
    """Train, or continue, the scorer; returns it with averaged weights."""
    torch.manual_seed(seed)
    clip, tokenizer = build_clip(config).train(), build_tokenizer(config)
    readers = nn.ModuleDict({name: nn.Linear(config.clip_dim, len(world.ATTRIBUTES[name])) for name in SEEN})
    model = nn.ModuleDict({"clip": clip, "readers": readers})
    clip.logit_scale.data.fill_(3.4)
    clip.logit_scale.requires_grad_(False)
    hidden = [p for n, p in clip.named_parameters() if p.ndim == 2 and ("attn" in n or "mlp" in n)]
    chosen = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in chosen and p.requires_grad]
    optimizers = Optimizers(hidden, rest, (4e-3, 1e-3))
    training = Training(work / "clip", model, clip, optimizers, 0.997)
    right: dict[str, float] = {}
    for step in training.steps(steps):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        scenes = draw_groups(groups, generator)
        ids = tokenize(scene_captions(scenes, random.Random(f"{seed}/{step}")), tokenizer, config)
        with torch.autocast("cpu", torch.bfloat16):
            pooled = clip.vision_model(pixel_values=sheets(scenes, generator)).pooler_output
            image = F.normalize(clip.visual_projection(pooled).float(), dim=-1)
            text = text_features(clip, ids).float()
        logits = image @ text.T * clip.logit_scale.exp()
        target = torch.arange(len(scenes))
        loss = 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
        readings = 0.0
        for name, reader in readers.items():
            out, truth = reader(pooled.float()), scenes.index[name]
            loss = loss + 0.3 * F.cross_entropy(out, truth)
            readings = (out.argmax(1) == truth).float().mean().item()
            right[name] = 0.95 * right.get(name, 0) + 0.05 * readings
        loss.backward()
        training.update(cosine(step, steps, warmup=100))
        top = (logits.argmax(1) == target).float().mean().item()
        right["top1"] = 0.95 * right.get("top1", 0) + 0.05 * top
        if step % 50 == 49:
            training.run.log(step=step + 1, loss=loss.item(), **right)
    return training.result()
