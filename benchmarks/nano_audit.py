"""A held-out scorer for the nano model's audit: what the rule-based judge reads in a clip, against what was asked.

PYTHONPATH=. flashvideo-ray audit OUTPUT --with benchmarks.nano_audit.Attributes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from flashvideo_ray.nano import captions, judge

_ASKED: dict[str, Mapping[str, Sequence[str]]] = {
    "background": captions.BACKGROUNDS,
    "color": captions.COLORS,
    "motion": captions.MOTIONS,
    "shape": captions.NOUNS,
}


class Attributes:
    """The share of background, colour, motion and shape that are as the prompt says: 0 to 1. Nano prompts only."""

    names: ClassVar[tuple[str, ...]] = ("attributes",)

    def __call__(self, frames: NDArray[np.uint8], prompt: str) -> dict[str, float]:
        """Measure RGB uint8 `[frames, height, width, 3]` of one of the nano world's two sizes."""
        seen = judge.read(torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255)
        wanted = asked(prompt)
        return {"attributes": sum(seen[name] == value for name, value in wanted.items()) / len(wanted)}


def asked(prompt: str) -> dict[str, str]:
    """The attributes that a caption of the nano world names; the longest phrase that is in it counts."""
    text = f" {' '.join(prompt.lower().replace('.', ' ').split())} "
    found = {}
    for attribute, values in _ASKED.items():
        phrases = [(phrase, value) for value, options in values.items() for phrase in options]
        there = [(phrase, value) for phrase, value in phrases if f" {phrase} " in text]
        found[attribute] = max(there, key=lambda one: len(one[0]))[1]
    return found
