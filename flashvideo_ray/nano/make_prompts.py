"""Write the bundled prompt files: `python -m flashvideo_ray.nano.make_prompts`.

`demo.parquet` has 30 prompts and `heldout.parquet` 400, all of held-out combinations; equal files every time.
"""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from . import demo_prompts, heldout_prompts, world
from .captions import caption, sentence

HELDOUT, DEMO = 400, 30


def balanced_scenes(count: int, seed: int) -> world.Scenes:
    """Held-out scenes in which every value of every attribute comes equally often (but for remainders)."""
    rng = random.Random(seed)
    triples = [
        (shape, color, motion)
        for shape in range(len(world.SHAPES))
        for color in range(len(world.COLORS))
        for motion in range(len(world.MOTIONS))
        if bool(world.is_heldout(torch.tensor(shape), torch.tensor(color), torch.tensor(motion)))
    ]

    def deal(values: int) -> list[int]:
        """`count` numbers below `values`, equally often, shuffled."""
        numbers: list[int] = []
        while len(numbers) < count:
            numbers += rng.sample(range(values), values)
        numbers = numbers[:count]
        rng.shuffle(numbers)
        return numbers

    chosen = [triples[number] for number in deal(len(triples))]
    index = {
        "shape": torch.tensor([t[0] for t in chosen]),
        "color": torch.tensor([t[1] for t in chosen]),
        "motion": torch.tensor([t[2] for t in chosen]),
        "background": torch.tensor(deal(len(world.BACKGROUNDS))),
        "texture": torch.tensor(deal(len(world.TEXTURES))),
        "size": torch.tensor(deal(len(world.SIZES))),
    }
    return world.place(index, torch.Generator().manual_seed(seed))


def heldout_scenes() -> world.Scenes:
    """The scenes behind `heldout.parquet`, in its order: ground truth to compare with."""
    return balanced_scenes(HELDOUT, seed=20)


def write(path: Path, scenes: world.Scenes, prefix: str, seed: int, attributes: bool) -> None:
    """One row a scene: `id`, `prompt`, and the attributes if asked for."""
    rng = random.Random(seed)
    rows = []
    for i in range(len(scenes)):
        words = scenes.words(i)
        row = {"id": f"{prefix}-{i:03d}", "prompt": sentence(caption(words, rng))}
        rows.append(row | (words if attributes else {}))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def main() -> None:
    """Write both files into the package."""
    write(heldout_prompts(), heldout_scenes(), "heldout", 21, attributes=True)
    write(demo_prompts(), balanced_scenes(DEMO, seed=30), "demo", 31, attributes=False)


if __name__ == "__main__":
    main()
