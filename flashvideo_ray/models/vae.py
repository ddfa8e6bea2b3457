"""Video in and out of the 3D VAE in bounded memory: chunks of frames in time, tiles in space.

The causal VAE carries a convolution cache from chunk to chunk, so chunks join without a seam; but its group norms see
one chunk of one tile at a time, so chunk and tile sizes are part of the result. The reference encodes 49 frames as
17, 16, 16, decodes 13 latent frames as 3, 2, 2, 2, 2, 2, and cuts a 1080p decode into two halves of its width.

Frames are `[batch, frames, 3, height, width]` float32 in [0, 1]; latents are `[batch, latent frames, channels, height,
width]` as the VAE has them, without a scaling factor.
"""

from itertools import product
from typing import Self

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX, CogVideoXSafeConv3d
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from .geometry import (
    Span,
    can_decode,
    check_chunk,
    check_tiles,
    decode_chunks,
    encode_chunks,
    latent_length,
    tile_axis,
)

PART_ELEMENTS = 2**30
"""Most input elements of one convolution: 2 GB in bfloat16."""


def axis_weights(spans: list[Span], scale: int, blend: bool) -> list[torch.Tensor]:
    """Weight of every pixel that each span reads. They sum to 1 over the spans at every pixel of the axis.

    A hard cut is 1 on the pixels that a span owns; a blend ramps linearly where neighbours overlap.
    """
    length = spans[-1].stop * scale
    rows = torch.zeros(len(spans), length)
    for k, span in enumerate(spans):
        if not blend:
            rows[k, span.own_start * scale : span.own_stop * scale] = 1
            continue
        row = rows[k, span.start * scale : span.stop * scale]
        row.fill_(1)
        if k > 0 and (n := (spans[k - 1].stop - span.start) * scale) > 0:
            row[:n] *= (torch.arange(n) + 0.5) / n
        if k + 1 < len(spans) and (n := (span.stop - spans[k + 1].start) * scale) > 0:
            row[-n:] *= (torch.arange(n - 1, -1, -1) + 0.5) / n
    rows /= rows.sum(dim=0)
    return [rows[k, span.start * scale : span.stop * scale] for k, span in enumerate(spans)]


def resize_frames(frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Map frames to [-1, 1] and resize them to (height, width): bilinear, antialiased, float32."""
    video = (frames.float() - 0.5) / 0.5
    if video.shape[-2:] == size:
        return video
    resized = F.interpolate(video.flatten(0, 1), size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized.unflatten(0, video.shape[:2])


def spatial_factor(vae: AutoencoderKLCogVideoX) -> int:
    """Pixels a latent pixel spans on each axis."""
    return 2 ** (len(vae.config["block_out_channels"]) - 1)


class SplitConv3d(CogVideoXSafeConv3d):
    """A causal convolution of a large video, a few frames at a time, into one result.

    diffusers splits such convolutions too (cuDNN wants less than 2 GB), but into copies that are all alive at once, and
    into parts that can be shorter than the kernel: it cannot decode 1072x1920 whole. The numbers are the same.
    """

    @classmethod
    def of(cls, conv: nn.Conv3d) -> Self:
        """The same convolution, with the very same parameters."""
        with torch.device("meta"):
            split = cls(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,  # type: ignore[arg-type]
                conv.stride,  # type: ignore[arg-type]
                conv.padding,  # type: ignore[arg-type]
                conv.dilation,  # type: ignore[arg-type]
                conv.groups,
                conv.bias is not None,
                conv.padding_mode,
            )
        split.weight, split.bias = conv.weight, conv.bias
        return split.train(conv.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolve `[batch, channels, frames, height, width]`; time is neither padded nor strided."""
        kernel = self.kernel_size[0]
        outputs = input.shape[2] - kernel + 1
        step = max(PART_ELEMENTS // input[:, :, :1].numel() - kernel + 1, 1)
        if outputs <= step:
            return nn.Conv3d.forward(self, input)
        result: torch.Tensor | None = None
        for start in range(0, outputs, step):
            part = nn.Conv3d.forward(self, input[:, :, start : start + step + kernel - 1])
            if result is None:
                result = part.new_empty(*part.shape[:2], outputs, *part.shape[3:])
            result[:, :, start : start + part.shape[2]] = part
        assert result is not None
        return result


def split_convolutions(vae: AutoencoderKLCogVideoX) -> None:
    """Put a `SplitConv3d` in the place of each of a VAE's convolutions; it takes over the weights as they are."""
    for parent in list(vae.modules()):
        for name, module in parent.named_children():
            if type(module) is CogVideoXSafeConv3d:
                setattr(parent, name, SplitConv3d.of(module))


@torch.no_grad()
@apply_forward_hook
def encode_video(
    vae: AutoencoderKLCogVideoX,
    frames: torch.Tensor,
    size: tuple[int, int] | None = None,
    *,
    chunk_frames: int = 16,
    tiles: tuple[int, int] = (1, 1),
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Resize frames to `size` and encode them; the high-resolution video never exists whole.

    Args:
        vae: encodes in its own dtype.
        frames: `[batch, frames, 3, height, width]` float in [0, 1], on any device.
        size: (height, width) to encode at; default is that of the frames.
        chunk_frames: the first chunk has one frame more. The reference's 16 gives 17, 16, 16 for 49 frames; a smaller
            multiple of the VAE's temporal ratio needs less memory and changes the group-norm statistics.
        tiles: rows and columns, hard cut with an overlap; less memory, and not the reference if more than one.
        device: where to run; default is where the VAE is.

    Returns:
        Moments (mean and log-variance) `[batch, latent frames, 2 * channels, height, width]` float32 on the CPU.
    """
    batch, num_frames = frames.shape[:2]
    scale, ratio = spatial_factor(vae), int(vae.config["temporal_compression_ratio"])
    height, width = size or (int(frames.shape[-2]), int(frames.shape[-1]))
    latent_frames = latent_length(num_frames, ratio)
    check_chunk(chunk_frames, ratio)
    if height % scale or width % scale:
        raise ValueError(f"the VAE takes sizes that are multiples of {scale}, got {height}x{width}")
    check_tiles(height // scale, width // scale, tiles)
    chunks = encode_chunks(num_frames, chunk_frames)
    rows, columns = tile_axis(height // scale, tiles[0]), tile_axis(width // scale, tiles[1])
    moments = torch.empty(batch, latent_frames, 2 * vae.config["latent_channels"], height // scale, width // scale)

    for sample, row, column in product(range(batch), rows, columns):
        cache, done = None, 0
        for start, stop in chunks:
            chunk = resize_frames(frames[sample : sample + 1, start:stop].to(device or vae.device), (height, width))
            chunk = chunk[..., row.start * scale : row.stop * scale, column.start * scale : column.stop * scale]
            out, cache = vae.encoder(chunk.transpose(1, 2).to(vae.dtype), conv_cache=cache)
            own = out[0].transpose(0, 1)[
                ...,
                row.own_start - row.start : row.own_stop - row.start,
                column.own_start - column.start : column.own_stop - column.start,
            ]
            moments[
                sample, done : done + len(own), :, row.own_start : row.own_stop, column.own_start : column.own_stop
            ] = own.float().cpu()
            done += len(own)
    return moments


@torch.no_grad()
@apply_forward_hook
def decode_video(
    vae: AutoencoderKLCogVideoX,
    latents: torch.Tensor,
    *,
    tiles: tuple[int, int] = (1, 1),
    blend: bool = False,
    device: torch.device | str | None = None,
    quantise: bool = False,
) -> torch.Tensor:
    """Decode latents into frames; only the chunk in work is on the device, unless they are quantised there.

    Args:
        vae: decodes in its own dtype.
        latents: `[batch, latent frames, channels, height, width]`, divided by the scaling factor.
        tiles: rows and columns. Tiles overlap by 16 latent pixels on inner sides.
        blend: cross-fade the overlap instead of cutting it hard; the reference cuts.
        device: where to run; default is where the VAE is.
        quantise: round to 8 bits on the device, where it is checked too, so that a quarter of the bytes is copied.

    Returns:
        Frames `[batch, frames, 3, height, width]` float32 in [0, 1], not rounded to 8 bits, on the CPU; with `quantise`
        `[batch, frames, height, width, 3]` uint8 on the CPU.

    Raises:
        FloatingPointError: with `quantise`, if the decoder gave NaN or infinite values.
    """
    batch, latent_frames = latents.shape[:2]
    scale, ratio = spatial_factor(vae), int(vae.config["temporal_compression_ratio"])
    if not can_decode(latent_frames, ratio):
        raise ValueError(f"the VAE decodes an odd number of latent frames, got {latent_frames}")
    check_tiles(int(latents.shape[-2]), int(latents.shape[-1]), tiles, blend)
    device = torch.device(device or vae.device)
    kept = device if quantise else torch.device("cpu")
    chunks = decode_chunks(latent_frames, vae.num_latent_frames_batch_size)
    rows, columns = tile_axis(latents.shape[-2], tiles[0]), tile_axis(latents.shape[-1], tiles[1])
    row_weights, column_weights = axis_weights(rows, scale, blend), axis_weights(columns, scale, blend)
    count, height, width = (latent_frames - 1) * ratio + 1, latents.shape[-2] * scale, latents.shape[-1] * scale
    # Tiles that are cut hard are rounded one by one; what is cross-faded is a sum, which must be whole first.
    at_once = quantise and not blend
    video = torch.empty(batch, count, height, width, 3, dtype=torch.uint8, device=kept) if quantise else None
    frames = torch.zeros(0 if at_once else batch, count, 3, height, width, device=kept)
    bad = torch.zeros((), dtype=torch.long, device=device)

    for sample, (r, row), (c, column) in product(range(batch), enumerate(rows), enumerate(columns)):
        tile = latents[sample : sample + 1, :, :, row.start : row.stop, column.start : column.stop]
        weights = (row_weights[r][:, None] * column_weights[c]).to(kept)
        cache, done = None, 0
        for start, stop in chunks:
            chunk = tile[:, start:stop].to(device, vae.dtype).transpose(1, 2)
            out, cache = vae.decoder(chunk, conv_cache=cache)
            raw = out[0].transpose(0, 1).float()
            bad += (~torch.isfinite(raw)).sum()
            pixels = (raw.to(kept) / 2 + 0.5).clamp_(0, 1)
            own = slice(done, done + len(pixels))
            done += len(pixels)
            if at_once:
                assert video is not None
                inner = pixels[
                    ...,
                    (row.own_start - row.start) * scale : (row.own_stop - row.start) * scale,
                    (column.own_start - column.start) * scale : (column.own_stop - column.start) * scale,
                ]
                video[
                    sample,
                    own,
                    row.own_start * scale : row.own_stop * scale,
                    column.own_start * scale : column.own_stop * scale,
                ] = _to_8_bits(inner)
                continue
            target = frames[
                sample,
                own,
                :,
                row.start * scale : row.stop * scale,
                column.start * scale : column.stop * scale,
            ]
            target += weights * pixels
    if video is None:
        return frames
    if not at_once:
        for sample, number in product(range(batch), range(count)):
            video[sample, number] = _to_8_bits(frames[sample, number : number + 1])[0]
    if bad:
        share = bad.item() / (batch * count * 3 * height * width)
        raise FloatingPointError(f"NaN or infinite values ({min(share, 1):.1%} of them)")
    return to_host(video)


def _to_8_bits(frames: torch.Tensor) -> torch.Tensor:
    """Frames `[frames, 3, height, width]` in [0, 1] as uint8 `[frames, height, width, 3]`; halves go to even."""
    return (frames * 255).round_().to(torch.uint8).permute(0, 2, 3, 1)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A device's tensor on the CPU, through page-locked memory, which PyTorch keeps for the next one."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return host
