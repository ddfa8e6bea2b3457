"""Read a clip's attributes from its pixels, by rules alone. Right on every ground-truth clip.

For figures in docs and benchmarks; never a training signal and never the pipeline's scorer. A blob is not a shape: an
outline that fits no template well is read as "none", and a motion that is mostly something else likewise.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from . import world

NONE = "none"
OUTLINE_FIT = 0.80
"""Least overlap (intersection over union) with a template for an outline to count as a shape."""
MOTION_FIT = 0.45
"""Least share of the world's own travel, or growth, for a motion to count."""
TEXTURE_FLOOR = 0.035
"""Least contrast (relative to the object's brightness) for a surface to count as textured."""
CANVAS = 48


def read(frames: Tensor) -> dict[str, str]:
    """Attributes of one clip: background, color, shape, motion; and texture, if it is of high resolution.

    `frames` [frames, 3, height, width] float in 0..1, of low (48 x 64) or high (192 x 256) resolution.
    """
    frames = frames.float().contiguous()
    high = frames.shape[-2] > world.HEIGHT
    low = _reduce(frames) if high else frames
    background, rows = _background(low)
    cover, color = _object(low, rows)
    words = {
        "background": background,
        "color": color,
        "shape": _shape(cover),
        "motion": _motion(cover),
    }
    if high:
        words["texture"] = _texture(frames, cover)
    return words


def _reduce(frames: Tensor) -> Tensor:
    """High to low resolution, with a box of one texture period, which leaves nothing of the texture."""
    period = round(world.PERIOD * world.SCALE)
    around = (period - world.SCALE) // 2
    return F.avg_pool2d(F.pad(frames, (around,) * 4, mode="replicate"), period, stride=world.SCALE)


def _nearest(color: Tensor, palette: Tensor) -> int:
    """The palette entry that fits best at any brightness near its own."""
    gains = torch.linspace(0.75, 1.2, 19)
    options = (palette[:, None] * gains[:, None]).clamp(0, 1)  # [entries, gains, 3]
    return int((options - color).square().sum(-1).amin(1).argmin())


def _background(low: Tensor) -> tuple[str, Tensor]:
    """The backdrop's name and its colour in every row, [3, height, 1]: the median, which is backdrop."""
    rows = low.permute(1, 2, 0, 3).flatten(2).median(dim=2).values[..., None]
    ramp = (1.06 - 0.22 * (torch.arange(world.HEIGHT) + 0.5) / world.HEIGHT)[:, None]
    return world.BACKGROUNDS[_nearest((rows / ramp).mean((1, 2)), world.BACKGROUND_RGB)], rows


def _object(low: Tensor, rows: Tensor) -> tuple[Tensor, str]:
    """How much of every pixel the object covers, [frames, height, width] in 0..1, and its colour's name."""
    difference = low - rows
    distance = difference.norm(dim=1)
    if distance.amax() < 0.12:
        return torch.zeros_like(distance), NONE
    solid = distance > 0.6 * distance.flatten().topk(max(distance.numel() // 200, 1)).values.mean()
    color = low.permute(1, 0, 2, 3)[:, solid].median(dim=1).values
    number = _nearest(color, world.COLOR_RGB)
    # Light falls from above: measure every row of the object against that row of the backdrop.
    step = color[:, None, None] - rows
    cover = (difference * step).sum(1) / step.square().sum(0).clamp(min=1e-3)
    # Steeper about one half: shading within the object is not part of its outline.
    return ((cover - 0.2) / 0.6).clamp(0, 1), world.COLORS[number]


def _moments(cover: Tensor) -> tuple[Tensor, Tensor]:
    """Area [frames] and centre [frames, 2] (x, y) of the covered part."""
    area = cover.sum((1, 2))
    x = torch.arange(cover.shape[2]) + 0.5
    y = torch.arange(cover.shape[1]) + 0.5
    mass = area.clamp(min=1e-6)
    return area, torch.stack([(cover * x).sum((1, 2)) / mass, (cover * y[:, None]).sum((1, 2)) / mass], dim=1)


@lru_cache(maxsize=1)
def _templates() -> Tensor:
    """Outlines of the shapes, [shapes, CANVAS, CANVAS] in 0..1, centred, of equal area."""
    return torch.stack([_normalized(_drawn(number)) for number in range(len(world.SHAPES))])


def _drawn(shape: int) -> Tensor:
    grid = torch.arange(256.0) + 0.5 - 128
    kind, radius = torch.tensor([shape]), torch.tensor([70.0])
    distance = world.distance(kind[:, None, None], grid[None, None], grid[None, :, None], radius[:, None, None])
    return (0.5 - distance[0]).clamp(0, 1)


def _normalized(cover: Tensor) -> Tensor:
    """Move the covered part of one frame to the middle of a canvas, and scale it to a quarter of its area."""
    area, centre = (value[0] for value in _moments(cover[None]))
    side = float(area.clamp(min=1.0)) ** 0.5  # of a square of this area; the canvas spans two of them
    span = torch.linspace(-1, 1, CANVAS) * side
    x = (centre[0] + span) / cover.shape[1] * 2 - 1
    y = (centre[1] + span) / cover.shape[0] * 2 - 1
    grid = torch.stack([x.expand(CANVAS, -1), y[:, None].expand(-1, CANVAS)], dim=-1)
    return F.grid_sample(cover[None, None], grid[None], align_corners=False)[0, 0]


def _shape(cover: Tensor) -> str:
    """The outline that fits best over all frames."""
    area, _ = _moments(cover)
    if float(area.amax()) < 30:
        return NONE
    total = torch.zeros(len(world.SHAPES))
    weights = area.clamp(min=1)
    for frame, weight in zip(cover, weights, strict=True):
        own = _normalized(frame)
        both = torch.minimum(own, _templates()).sum((1, 2))
        either = torch.maximum(own, _templates()).sum((1, 2))
        total += weight * both / either
    fit = total / weights.sum()
    return world.SHAPES[int(fit.argmax())] if float(fit.amax()) >= OUTLINE_FIT else NONE


def _motion(cover: Tensor) -> str:
    """What dominates: travel on an axis, or a change of area; each measured against what the world does."""
    if len(cover) < 3:
        return NONE
    area, centre = _moments(cover)
    if float(area.amin()) < 15:
        return NONE
    number = torch.arange(len(cover), dtype=torch.float32)
    number = (number - number.mean()) / number.std(correction=0)
    slope = (centre * number[:, None]).mean(0) / (number.amax() - number.amin()) * 12  # travel of a straight line
    growth = float((area.log() * number).mean() / (number.amax() - number.amin()) * 12)
    travel = len(cover) - 1
    shares = {
        "right": float(slope[0]) / (world.STEP_X * travel),
        "down": float(slope[1]) / (world.STEP_Y * travel),
        "grow": growth / (2 * math.log(world.GROWTH[1] / world.GROWTH[0])),
    }
    name = max(shares, key=lambda key: abs(shares[key]))
    others = max(abs(value) for key, value in shares.items() if key != name)
    if abs(shares[name]) < MOTION_FIT or others > 0.6 * abs(shares[name]):
        return NONE
    if shares[name] > 0:
        return name
    return {"right": "left", "down": "up", "grow": "shrink"}[name]


def _texture(frames: Tensor, cover: Tensor) -> str:
    """Contrast at the texture's period along x, y and both, inside the object; phases do not matter."""
    inside = -F.max_pool2d(-cover[:, None], 3, stride=1, padding=1)
    mask = F.interpolate(inside, scale_factor=world.SCALE, mode="nearest")[:, 0] > 0.75
    if int(mask.sum()) < 200:
        return NONE
    light = frames.mean(1)
    period = round(world.PERIOD * world.SCALE)
    smooth = F.avg_pool2d(
        F.pad(light[:, None], (period // 2, period - period // 2 - 1) * 2, mode="reflect"), period, stride=1
    )[:, 0]
    detail = torch.where(mask, light / smooth.clamp(min=0.05) - 1, torch.zeros(()))
    wave = 2 * math.pi / period
    x = torch.exp(1j * wave * torch.arange(frames.shape[-1]))
    y = torch.exp(1j * wave * torch.arange(frames.shape[-2]))[:, None]
    count = mask.sum((1, 2)).clamp(min=1)

    def strength(pattern: Tensor) -> float:
        each = (detail * pattern).sum((1, 2)).abs() / count
        return float((each * count).sum() / count.sum())

    ones_x, ones_y = torch.ones_like(x), torch.ones_like(y)
    along_x, along_y = strength(x * ones_y), strength(ones_x * y)
    diagonal, other = strength(x * y), strength(x * y.conj())
    options = {
        "striped": along_x - along_y,
        "dotted": 2 * min(along_x, along_y),
        "checkered": 2 * min(diagonal, other),
    }
    name = max(options, key=lambda key: options[key])
    return name if options[name] >= TEXTURE_FLOOR else "plain"
