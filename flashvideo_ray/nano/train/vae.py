"""Train the autoencoder on single frames, low-resolution ones whole and high-resolution ones as crops.

Only the last temporal tap of each causal convolution is used; the others stay zero. The video autoencoder is then the
image autoencoder, frame by frame, and training on single frames is enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import (
    AutoencoderKLCogVideoX,
    CogVideoXCausalConv3d,
    CogVideoXSpatialNorm3D,
)
from torch import Tensor, nn

from .. import world
from ..config import NANO, NanoConfig
from ..networks import build_vae
from .common import Average, Optimizers, Run, Training, cosine

CROP = 64


def framewise(self: CogVideoXCausalConv3d, inputs: Tensor, conv_cache: Tensor | None = None) -> tuple[Tensor, None]:
    """The causal convolution when only its last temporal tap is not zero: a 2D convolution of every frame."""
    conv = self.conv
    batch, _, frames = inputs.shape[:3]
    flat = inputs.transpose(1, 2).flatten(0, 1)
    out = F.conv2d(flat, conv.weight[:, :, -1], conv.bias, conv.stride[1:], conv.padding[1:])
    return out.unflatten(0, (batch, frames)).transpose(1, 2), None


@contextmanager
def framewise_convolutions() -> Iterator[None]:
    """Run causal convolutions as `framewise`: a third of the work."""
    before = CogVideoXCausalConv3d.forward
    CogVideoXCausalConv3d.forward = framewise  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        CogVideoXCausalConv3d.forward = before  # type: ignore[method-assign]


@torch.no_grad()
def init_vae(vae: Any) -> None:
    """Start with signal on every path: stock initialisation begins almost blind at this size."""
    module: Any
    for name, module in vae.named_modules():
        if isinstance(module, CogVideoXSpatialNorm3D):
            module.conv_y.conv.weight.mul_(0.3)
            module.conv_y.conv.bias.data.fill_(1.0)  # type: ignore[union-attr]
        elif isinstance(module, nn.Conv2d | nn.Conv3d):
            own = name.removesuffix(".conv")
            if own.endswith(("conv_y", "conv_b")):
                continue
            module.weight.mul_(0.2 if own.endswith("conv2") else 3**0.5)
    latent = vae.config["latent_channels"]
    out = vae.encoder.conv_out.conv
    out.weight[:latent].mul_(3.0)
    out.weight[latent:].mul_(0.1)
    out.bias[latent:].fill_(-6.0)
    for module in vae.modules():
        if isinstance(module, CogVideoXCausalConv3d):
            module.conv.weight[:, :, :-1].zero_()


@torch.no_grad()
def standardize(vae: Any, mean: Tensor, std: Tensor) -> None:
    """Rescale the latent channels to mean 0 and deviation 1, in the weights that write and read them.

    Exact but for the zero padding around a frame when `mean` is not 0.
    """
    latent = len(mean)
    out = vae.encoder.conv_out.conv
    out.weight[:latent].div_(std[:, None, None, None, None])
    out.bias[:latent].sub_(mean).div_(std)
    out.bias[latent:].sub_(2 * std.log())
    readers = [vae.decoder.conv_in.conv]
    for module in vae.decoder.modules():
        if isinstance(module, CogVideoXSpatialNorm3D):
            readers += [module.conv_y.conv, module.conv_b.conv]
    for conv in readers:
        conv.bias.add_((conv.weight * mean[:, None, None, None]).sum((1, 2, 3, 4)))
        conv.weight.mul_(std[:, None, None, None])


def training_frames(count: int, high: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Frames [count, 1, 3, h, w] in -1..1 and object masks [count, 1, 1, h, w]: whole, or crops around the object."""
    scenes = world.sample(count, generator, "all")
    frames = torch.randint(world.FRAMES, (count, 1), generator=generator)
    window = None
    scale = world.SCALE if high else 1
    if high:
        centre, radius = world.trajectory(scenes, frames)
        offset = (torch.rand(count, 2, generator=generator) - 0.5) * 2.4 * radius
        corner = ((centre[:, 0] + offset) * scale - CROP / 2).round()
        limit = torch.tensor([world.WIDTH * scale - CROP, world.HEIGHT * scale - CROP])
        corner = torch.minimum(corner.clamp(min=0), limit).long() // 4 * 4
        window = (corner[:, 1], corner[:, 0], CROP, CROP)
    pixels = world.render(scenes, scale, frames, window)
    back = world.BACKGROUND_RGB[scenes.index["background"]][:, None, :, None, None]
    mask = ((pixels - back).abs().amax(2, keepdim=True) > 0.17).float()
    return pixels * 2 - 1, mask


def reconstruction_loss(out: Tensor, target: Tensor, mask: Tensor, emphasis: float) -> Tensor:
    """L1 with weight on the object, L1 of the gradients, and some MSE."""
    weight = 1 + emphasis * mask
    error = out - target
    loss = (weight * error.abs()).mean() + 0.5 * error.square().mean()
    loss = loss + 0.35 * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())
    return loss


def encode_mean(vae: AutoencoderKLCogVideoX, pixels: Tensor) -> Tensor:
    """Posterior means [batch, frames, channels, h, w] of frames [batch, frames, 3, H, W] in -1..1."""
    with torch.autocast("cpu", torch.bfloat16):
        moments = vae.encoder(pixels.transpose(1, 2))[0]
    return moments.chunk(2, dim=1)[0].float().transpose(1, 2)


def train_vae(
    work: Path, steps: int = 2600, batch: int = 16, seed: int = 0, config: NanoConfig = NANO
) -> AutoencoderKLCogVideoX:
    """Train, or continue, the autoencoder; returns it with averaged weights, latents standardised."""
    torch.manual_seed(seed)
    vae = build_vae(config).train()
    init_vae(vae)
    hidden = [
        p for n, p in vae.named_parameters() if p.ndim > 1 and not any(k in n for k in ("conv_y", "conv_b", "conv_out"))
    ]
    hidden = [p for p in hidden if p.shape[1] > 3]
    chosen = {id(p) for p in hidden}
    rest = [p for p in vae.parameters() if id(p) not in chosen]
    optimizers = Optimizers(hidden, rest, (6e-3, 2e-3))
    training = Training(work / "vae", vae, vae, optimizers, 0.995)
    errors: dict[bool, float] = {}
    with framewise_convolutions():
        for step in training.steps(steps):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            torch.manual_seed(seed * 1_000_003 + step)
            if step in (steps * 3 // 10, steps * 6 // 10):
                _standardize_now(vae, generator)
                training.average = Average(vae, 0.995)
            high = step % 2 == 1
            pixels, mask = training_frames(batch, high, generator)
            with torch.autocast("cpu", torch.bfloat16):
                mean, logvar = vae.encoder(pixels.transpose(1, 2))[0].chunk(2, dim=1)
                logvar = logvar.clamp(-30, 20)
                sample = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
                out = vae.decoder(sample)[0].transpose(1, 2).float()
            mean, logvar = mean.float(), logvar.float()
            divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
            loss = reconstruction_loss(out, pixels, mask, 1.0 if high else 2.0) + 5e-4 * divergence
            loss.backward()
            for module in vae.modules():
                if isinstance(module, CogVideoXCausalConv3d) and module.conv.weight.grad is not None:
                    module.conv.weight.grad[:, :, :-1] = 0
            training.update(cosine(step, steps), clip=0.5)
            error = (out.detach() - pixels).square().mean().item()
            errors[high] = 0.9 * errors.get(high, error) + 0.1 * error
            if step % 50 == 49:
                _log(training.run, step + 1, errors, mean, logvar)
    return training.result()


def _log(run: Run, step: int, errors: dict[bool, float], mean: Tensor, logvar: Tensor) -> None:
    decibel = {high: float(10 * torch.log10(torch.tensor(4.0 / error))) for high, error in errors.items()}
    run.log(
        step=step,
        psnr_low=decibel.get(False, 0.0),
        psnr_high=decibel.get(True, 0.0),
        latent_mean=[round(v, 2) for v in mean.mean((0, 2, 3, 4)).tolist()],
        latent_std=[round(v, 2) for v in mean.std((0, 2, 3, 4)).tolist()],
        sigma=(0.5 * logvar).exp().mean().item(),
    )


@torch.no_grad()
def _standardize_now(vae: AutoencoderKLCogVideoX, generator: torch.Generator) -> None:
    low = encode_mean(vae, training_frames(64, False, generator)[0])
    high = encode_mean(vae, training_frames(64, True, generator)[0])
    both = torch.cat([z.transpose(0, 2).flatten(1) for z in (low, high)], dim=1)
    standardize(vae, both.mean(1), both.std(1).clamp(min=0.05))


def load_vae(work: Path, config: NanoConfig = NANO) -> AutoencoderKLCogVideoX:
    """The trained autoencoder with averaged weights, frozen."""
    vae: Any = build_vae(config)
    vae.load_state_dict(torch.load(work / "vae" / "checkpoint.pt", weights_only=False)["average"])
    return vae.eval().requires_grad_(False)
