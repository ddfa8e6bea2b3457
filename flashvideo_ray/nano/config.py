"""Sizes of the nano model's networks: tiny configurations of the very classes that the released weights use."""

from __future__ import annotations

from dataclasses import dataclass, replace

from . import world


@dataclass(frozen=True)
class NanoConfig:
    """One place for every size. The defaults are the model that ships; `TINY` is a toy for fast tests."""

    height: int = world.HEIGHT
    width: int = world.WIDTH
    scale: int = world.SCALE
    frames: int = world.FRAMES
    fps: int = world.FPS
    text_length: int = 24
    text_dim: int = 96
    text_layers: int = 2
    vae_channels: tuple[int, ...] = (16, 24, 28)  # two halvings: a latent pixel is 4 x 4 pixels
    latent_channels: int = 4
    heads: tuple[int, int] = (3, 3)  # preview, refine; 64 channels each
    head_dim: int = 64
    layers: tuple[int, int] = (5, 3)
    patches: tuple[int, int] = (2, 4)
    time_dim: int = 32
    preview_steps: int = 20
    preview_guidance: float = 1.5
    refine_steps: int = 4
    refine_guidance: float = 1.0
    noise_step: int = 60
    shift: float = 1.0
    clip_dim: int = 96
    clip_layers: int = 3


NANO = NanoConfig()
TINY = NanoConfig(
    height=16,
    width=32,
    scale=2,
    frames=5,
    text_dim=16,
    text_layers=1,
    vae_channels=(8, 8, 8),
    heads=(1, 1),
    head_dim=16,
    layers=(2, 2),
    patches=(2, 2),
    time_dim=8,
    preview_steps=2,
    refine_steps=2,
    clip_dim=16,
    clip_layers=1,
)
SMOKE = replace(
    NANO,
    text_dim=16,
    text_layers=1,
    vae_channels=(8, 8, 8),
    heads=(1, 1),
    head_dim=16,
    layers=(1, 1),
    time_dim=8,
    clip_dim=24,
    clip_layers=1,
)
"""Toy networks at the world's real size: for a run of the whole training in a minute."""
