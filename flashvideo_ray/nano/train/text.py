"""Train the T5 encoder alone: from any caption, read the six attributes off its output.

Two readers share the work: the mean of all positions, and one random position, so that every token carries the whole
prompt. Unknown words are part of the diet. Frozen afterwards, so that stages 1 and 2 can train at once.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5EncoderModel

from .. import captions, world
from ..config import NANO, NanoConfig
from ..networks import build_text_encoder, build_tokenizer
from .common import Optimizers, Training, cosine


def tokenize(texts: list[str], tokenizer: Any, config: NanoConfig = NANO) -> Tensor:
    """Token ids [count, text_length], padded, as the pipelines make them."""
    ids = tokenizer(texts, padding="max_length", max_length=config.text_length, truncation=True, return_tensors="pt")
    return ids.input_ids


def scene_captions(scenes: world.Scenes, rng: random.Random) -> list[str]:
    """One random caption a scene."""
    return [captions.caption(scenes.words(i), rng) for i in range(len(scenes))]


def disturb(text: str, rng: random.Random) -> str:
    """The same caption with a few words that nobody taught the model."""
    words = text.split()
    for _ in range(rng.randint(1, 3)):
        words.insert(rng.randint(0, len(words)), "qqqq")
    return " ".join(words)


def train_text(
    work: Path,
    steps: int = 700,
    batch: int = 128,
    seed: int = 0,
    config: NanoConfig = NANO,
    stop: int | None = None,
) -> Any:
    """Train, or continue, the text encoder; returns it with averaged weights. `stop` ends early, as a kill would."""
    torch.manual_seed(seed)
    encoder, tokenizer = build_text_encoder(config).train(), build_tokenizer(config)
    heads = nn.ModuleDict({name: nn.Linear(config.text_dim, len(v)) for name, v in world.ATTRIBUTES.items()})
    model = nn.ModuleDict({"encoder": encoder, "heads": heads})
    optimizers = Optimizers([], list(model.parameters()), (0.0, 2e-3))
    training = Training(work / "text", model, encoder, optimizers, 0.99)
    right: dict[str, float] = {}
    stop = steps if stop is None else stop
    for step in training.steps(stop):
        rng, generator = random.Random(f"{seed}/{step}"), torch.Generator().manual_seed(seed * 1_000_003 + step)
        scenes = world.sample(batch, generator, "all")
        texts = [disturb(text, rng) if rng.random() < 0.2 else text for text in scene_captions(scenes, rng)]
        hidden = encoder(tokenize(texts, tokenizer, config))[0]
        place = torch.randint(config.text_length, (batch,), generator=generator)
        loss = 1e-3 * hidden.square().mean()
        for name, head in heads.items():
            target = scenes.index[name]
            pooled, single = head(hidden.mean(1)), head(hidden[torch.arange(batch), place])
            loss = loss + F.cross_entropy(pooled, target) + 0.5 * F.cross_entropy(single, target)
            right[name] = 0.9 * right.get(name, 0) + 0.1 * (pooled.argmax(1) == target).float().mean().item()
        loss.backward()
        training.update(cosine(step, steps))
        if step % 50 == 49:
            training.run.log(step=step + 1, loss=loss.item(), std=hidden.std().item(), **right)
    return training.result()


def load_text_encoder(work: Path, config: NanoConfig = NANO) -> T5EncoderModel:
    """The trained text encoder with averaged weights, frozen."""
    encoder = build_text_encoder(config)
    encoder.load_state_dict(torch.load(work / "text" / "checkpoint.pt", weights_only=False)["average"])
    return encoder.eval().requires_grad_(False)


@torch.inference_mode()
def embed(encoder: T5EncoderModel, ids: Tensor) -> Tensor:
    """Embeddings [count, length, dim] of token ids [count, length]."""
    return torch.cat([encoder(input_ids=part)[0] for part in ids.split(256)])
