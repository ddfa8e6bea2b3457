"""The order of the parts, and a smoke run of all of them at a toy size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..config import SMOKE
from . import stage1, stage2
from .clip import train_clip
from .export import export
from .stage1 import train_stage1
from .stage2 import train_stage2
from .text import train_text
from .vae import train_vae

PARTS: dict[str, Callable[[Path], Any]] = {
    "vae": train_vae,
    "text": train_text,
    "stage1": train_stage1,
    "stage2": train_stage2,
    "clip": train_clip,
}
"""In order: stages 1 and 2 need the VAE and the text encoder, and can train side by side; CLIP needs nothing."""


def run_part(part: str, work: Path, dest: Path | None) -> None:
    """Train one part, or with "all" every part in order and export."""
    for name, train in PARTS.items():
        if part in (name, "all"):
            train(work)
    if part in ("export", "all"):
        export(work, dest)


def run_smoke(work: Path, dest: Path | None) -> Path:
    """A few steps of every part with toy networks; returns the exported model folder (below `work` by default)."""
    train_vae(work, steps=12, batch=2, config=SMOKE)
    train_text(work, steps=5, batch=8, config=SMOKE)
    segments = (stage1.Segment(3, 1, 4), stage1.Segment(3, 3, 2), stage1.Segment(2, 9, 2))
    train_stage1(work, segments, clips=16, config=SMOKE)
    train_stage2(work, (stage2.Segment(4, 8, 8, 2), stage2.Segment(2, 12, 16, 2)), pairs=20, config=SMOKE)
    train_clip(work, steps=4, groups=2, config=SMOKE)
    return export(work, dest or work / "model", config=SMOKE)
