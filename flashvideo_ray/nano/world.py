"""The nano world: procedural clips of one moving object, drawn analytically at any resolution.

A clip is a *scene*: an object (shape, colour, size, texture) that moves in one of six ways over a plain background with
a vertical gradient. Scenes are vectors of small integers, so that thousands cost nothing to hold, and `render` draws
any frames, any crop and any scale of one, anti-aliased. The texture has a period of two low-resolution pixels, the
limit of what they could carry: it fades out there, so it exists at high resolution only: stage 2 must invent it.

Centres start on a lattice of four low-resolution pixels and move by four or two a frame. It keeps the world learnable
by a two-million parameter network: a shape meets the patch grid in few ways, and the texture meets it in one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple")
BACKGROUNDS = ("navy", "cream", "mint", "gray", "pink")
TEXTURES = ("plain", "striped", "dotted", "checkered")
MOTIONS = ("left", "right", "up", "down", "grow", "shrink")
SIZES = ("small", "large")
ATTRIBUTES = {
    "shape": SHAPES,
    "color": COLORS,
    "background": BACKGROUNDS,
    "texture": TEXTURES,
    "motion": MOTIONS,
    "size": SIZES,
}

COLOR_RGB = torch.tensor(
    [
        [0.88, 0.16, 0.18],
        [0.98, 0.52, 0.10],
        [0.98, 0.84, 0.16],
        [0.16, 0.66, 0.28],
        [0.18, 0.42, 0.94],
        [0.58, 0.24, 0.78],
    ]
)
BACKGROUND_RGB = torch.tensor(
    [[0.08, 0.11, 0.28], [0.94, 0.89, 0.78], [0.64, 0.87, 0.78], [0.42, 0.45, 0.50], [0.96, 0.72, 0.78]]
)

HEIGHT, WIDTH = 48, 64  # low resolution, pixels
SCALE = 4  # high resolution is 192 x 256
FRAMES = 9
FPS = 8
PERIOD = 2.0  # of the texture, low-resolution pixels
TEXTURE_DEPTH = 0.25
DOT_SHIFT = 0.488  # minus the mean of the dots at high resolution, so that a texture keeps its object's colour
RADIUS = torch.tensor([9.0, 12.0])  # by size
LATTICE = 4  # of the first centre, low-resolution pixels
STEP_X, STEP_Y = 4, 2  # low-resolution pixels a frame
GROWTH = (0.62, 1.10)  # radius factor of the first and the last frame of "grow"


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes: `index[name]` [batch] into `ATTRIBUTES[name]`, `start` [batch, 2] first centre (x, y)."""

    index: dict[str, Tensor]
    start: Tensor

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, which: Tensor | slice) -> Scenes:
        return Scenes({name: values[which] for name, values in self.index.items()}, self.start[which])

    def words(self, i: int) -> dict[str, str]:
        """The attributes of scene `i` as words."""
        return {name: ATTRIBUTES[name][int(values[i])] for name, values in self.index.items()}


def is_heldout(shape: Tensor, color: Tensor, motion: Tensor) -> Tensor:
    """True for the (shape, colour, motion) triples that stages 1 and 2 never train on: 30 of 180.

    A Latin square: every value of each attribute, and every pair of a shape and a colour, is held out equally often.
    """
    return (shape + color + motion) % len(COLORS) == 0


def sample(count: int, generator: torch.Generator, split: str = "train") -> Scenes:
    """`count` random scenes of a split: "train", "heldout" or "all"."""
    if split not in ("train", "heldout", "all"):
        raise ValueError(f"unknown split {split!r}")
    index = {name: torch.randint(len(v), (count,), generator=generator) for name, v in ATTRIBUTES.items()}
    if split != "all":
        # The motion that makes a (shape, colour) pair held out is unique, so either split is one draw of the motion.
        held = (-index["shape"] - index["color"]) % len(COLORS)
        shift = torch.randint(1, len(MOTIONS), (count,), generator=generator)
        index["motion"] = held if split == "heldout" else (held + shift) % len(MOTIONS)
    return place(index, generator)


def place(index: dict[str, Tensor], generator: torch.Generator) -> Scenes:
    """Scenes with these attributes and random first centres such that the object stays in the frame."""
    motion, radius = index["motion"], RADIUS[index["size"]]
    travel = torch.tensor([[-STEP_X, 0], [STEP_X, 0], [0, -STEP_Y], [0, STEP_Y], [0, 0], [0, 0]])[motion] * (FRAMES - 1)
    size = torch.tensor([WIDTH, HEIGHT])
    margin = (radius + 3.0)[:, None].expand(-1, 2)
    low = torch.maximum(margin, margin - travel)
    high = torch.minimum(size - margin, size - margin - travel)
    middle = (size - travel) / 2
    low, high = torch.minimum(low, middle), torch.maximum(high, middle)
    start = low + (high - low) * torch.rand(low.shape, generator=generator)
    return Scenes(index, (start / LATTICE).round() * LATTICE)


def trajectory(scenes: Scenes, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Centres [batch, frames, 2] (x, y) and radii [batch, frames] in low-resolution pixels at frame numbers [frames]
    (or [batch, frames])."""
    motion = scenes.index["motion"][:, None]
    frames = frames.expand(len(scenes), -1).to(torch.float32)
    velocity = torch.tensor([[-STEP_X, 0], [STEP_X, 0], [0, -STEP_Y], [0, STEP_Y], [0, 0], [0, 0]])[motion]
    centre = scenes.start[:, None] + velocity * frames[..., None]
    progress = frames / (FRAMES - 1)
    small, big = GROWTH
    grow = small + (big - small) * progress
    shrink = big + (small - big) * progress
    factor = torch.where(motion == 4, grow, torch.where(motion == 5, shrink, torch.ones_like(grow)))
    return centre, RADIUS[scenes.index["size"]][:, None] * factor


def distance(shape: Tensor, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Signed distance (negative inside) of points to shapes of comparable area; the arguments broadcast."""
    out = torch.empty(torch.broadcast_shapes(shape.shape, x.shape, y.shape, radius.shape))
    flat_shape = shape.reshape(shape.shape[0], -1)[:, 0]
    for kind in flat_shape.unique().tolist():
        rows = flat_shape == kind
        r = radius[rows]
        out[rows] = _DISTANCES[kind](x[rows], y[rows], r).expand(out[rows].shape)
    return out


def _circle(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return (x * x + y * y).sqrt() - 0.98 * r


def _square(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.88 * r


def _triangle(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    y = y - 0.22 * r
    return torch.maximum(0.866 * x.abs() - 0.5 * y, y) - 0.68 * r


def _star(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    angle = torch.atan2(x, -y)  # 0 points up
    sector = 2 * math.pi / 5
    angle = (angle - (angle / sector).round() * sector).abs()
    length = (x * x + y * y).sqrt()
    px, py = length * angle.cos(), length * angle.sin()  # folded: tip on the x axis
    tip, notch = 1.26, 0.60
    nx, ny = notch * math.cos(sector / 2), notch * math.sin(sector / 2)
    ex, ey = nx - tip, ny
    norm = math.hypot(ex, ey)
    return ((px - tip * r) * ey - py * ex) / norm


def _cross(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    long, short = torch.maximum(x, y), torch.minimum(x, y)
    return torch.maximum(long - 1.06 * r, short - 0.40 * r)


_DISTANCES = (_circle, _square, _triangle, _star, _cross)


def _texture(kind: Tensor, x: Tensor, y: Tensor, scale: float) -> Tensor:
    """Brightness in [-1, 1] about a mean of zero; `scale` samples a low-resolution pixel decide how much survives."""
    samples = PERIOD * scale
    contrast = min(max((samples - 4.0) / 3.0, 0.0), 1.0)
    if contrast == 0:
        return torch.zeros(torch.broadcast_shapes(x.shape, y.shape))
    soft = samples / 4  # a slope of about one sample at every edge
    u, v = 2 * math.pi / PERIOD * x, 2 * math.pi / PERIOD * y
    out = torch.zeros(torch.broadcast_shapes(kind.shape, x.shape, y.shape))
    flat = kind.reshape(kind.shape[0], -1)[:, 0]
    for number in flat.unique().tolist():
        rows = flat == number
        a, b = u[rows], v[rows]
        if number == 1:
            out[rows] = (soft * a.sin()).clamp(-1, 1).expand(out[rows].shape)
        elif number == 2:
            out[rows] = (soft * (a.sin() + b.sin() - 0.75)).clamp(-1, 1) + DOT_SHIFT
        elif number == 3:
            out[rows] = (soft * a.sin()).clamp(-1, 1) * (soft * b.sin()).clamp(-1, 1)
    return contrast * out


def render(
    scenes: Scenes,
    scale: int = 1,
    frames: Tensor | None = None,
    window: tuple[Tensor, Tensor, int, int] | None = None,
) -> Tensor:
    """Draw scenes as [batch, frames, 3, height, width] float32 in 0..1.

    `scale` is samples a low-resolution pixel (1 or `SCALE`); `frames` are numbers [frames] or [batch, frames], or all;
    `window` = (top [batch], left [batch], height, width) in samples cuts a crop out of each.
    """
    batch = len(scenes)
    frames = torch.arange(FRAMES) if frames is None else frames
    centre, radius = trajectory(scenes, frames)
    zero = torch.zeros(batch, dtype=torch.long)
    top, left, height, width = window or (zero, zero, HEIGHT * scale, WIDTH * scale)
    rows = (top[:, None] + torch.arange(height) + 0.5) / scale  # [batch, height]
    columns = (left[:, None] + torch.arange(width) + 0.5) / scale
    y = rows[:, None, :, None] - centre[:, :, 1, None, None]
    x = columns[:, None, None, :] - centre[:, :, 0, None, None]
    r = radius[:, :, None, None]
    shape, texture = scenes.index["shape"], scenes.index["texture"]
    cover = (0.5 - scale * distance(shape[:, None, None, None], x, y, r)).clamp(0, 1)
    light = (1.0 - 0.14 * y / r).clamp(0.8, 1.2)
    light = light * (1 + TEXTURE_DEPTH * _texture(texture[:, None, None, None], x, y, scale))
    paint = (COLOR_RGB[scenes.index["color"]][:, None, :, None, None] * light[:, :, None]).clamp(0, 1)
    shade = (1.06 - 0.22 * rows / HEIGHT)[:, None, None, :, None]
    back = (BACKGROUND_RGB[scenes.index["background"]][:, None, :, None, None] * shade).clamp(0, 1)
    return torch.lerp(back.expand_as(paint), paint, cover[:, :, None])
