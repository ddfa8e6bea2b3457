"""Figures of merit that the evaluation prints: attribute shares, PSNR, SSIM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import judge

FOUR = ("background", "color", "motion", "shape")


def shares(clips: Sequence[Tensor], wanted: Sequence[dict[str, str]]) -> dict[str, float]:
    """Share of clips whose attribute reads as wanted, for each attribute, and `all` four of stage 1.

    `clips` are [frames, 3, height, width] float in 0..1; `texture` is there for high resolution only.
    """
    readings = [judge.read(clip) for clip in clips]
    names = readings[0].keys()
    out = {
        name: sum(r[name] == w[name] for r, w in zip(readings, wanted, strict=True)) / len(readings) for name in names
    }
    out["all"] = sum(all_right(r, w) for r, w in zip(readings, wanted, strict=True)) / len(readings)
    return out


def all_right(reading: dict[str, str], wanted: dict[str, str]) -> bool:
    """True if the four attributes that stage 1 decides are right."""
    return all(reading[name] == wanted[name] for name in FOUR)


def psnr(one: Tensor, other: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two videos in 0..1: the mean over their frames."""
    errors = (one - other).square().flatten(1).mean(1).clamp(min=1e-10)
    return float((-10 * torch.log10(errors)).mean())


def ssim(one: Tensor, other: Tensor) -> float:
    """Structural similarity of the luma of two videos [frames, 3, height, width] in 0..1 (Wang et al., 2004)."""
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    x, y = ((video * luma).sum(1, keepdim=True) for video in (one, other))
    line = torch.exp(-((torch.arange(11.0) - 5) ** 2) / (2 * 1.5**2))
    line = line / line.sum()

    def smooth(image: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(image, line[None, None, None]), line[None, None, :, None])

    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    both = smooth(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    map_ = (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(map_.mean())
