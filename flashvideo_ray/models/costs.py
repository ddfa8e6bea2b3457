"""What a clip costs before a GPU is paid for: floating-point operations, weights and peak memory of each phase.

Nothing is computed and no weights are needed: one block of the transformer and each chunk of the VAE run on the meta
device, where a counter sees every tensor come and go. A multiply-add is two operations. Of what kernels use inside,
peak memory has the copies of a convolution's input and output; `StageEstimate.peak_bytes` adds a margin for the rest.
docs/flashvideo.md has both beside what a card held.

>>> from flashvideo_ray.models.costs import GIB, RELEASED, estimate_refine
>>> estimate = estimate_refine(RELEASED["refine"], RELEASED["vae"], guidance_batching="apart")
>>> estimate.flops, estimate.peak_bytes / GIB
"""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from .geometry import decode_chunks, encode_chunks, tile_axis
from .transformer import FlashVideoTransformer3DModel
from .vae import split_convolutions

GIB = 1024**3
CONTEXT_BYTES = GIB
"""What a CUDA context and its libraries take before the first tensor."""
MARGIN = 1.15
"""For kernel workspaces and fragmentation."""
TEXT_ENCODER_PARAMETERS = 4_762_310_656
"""Of the T5-XXL encoder that the released weights use."""

_CONFIG = {"attention_head_dim": 64, "in_channels": 16, "patch_size": 2, "time_embed_dim": 512, "text_embed_dim": 4096}
RELEASED: dict[str, dict[str, Any]] = {
    "preview": {**_CONFIG, "num_attention_heads": 48, "num_layers": 42},
    "refine": {
        **_CONFIG,
        "num_attention_heads": 30,
        "num_layers": 30,
        "size_embedding": True,
        "ref_step_embedding": True,
    },
    "vae": {
        "block_out_channels": (128, 256, 256, 512),
        "layers_per_block": 3,
        "latent_channels": 16,
        "temporal_compression_ratio": 4,
        "down_block_types": ("CogVideoXDownBlock3D",) * 4,
        "up_block_types": ("CogVideoXUpBlock3D",) * 4,
    },
}
"""Configurations of the released networks, as `config.json` of a converted folder has them."""

Offload = Literal["none", "model"]


@dataclass(frozen=True)
class Phase:
    """One part of a stage. `weights` are the bytes resident while it runs, `activations` the largest beside them."""

    name: str
    flops: float
    weights: int
    activations: int

    @property
    def peak_bytes(self) -> int:
        """Estimated bytes on the card while this phase runs."""
        return int((self.weights + self.activations) * MARGIN) + CONTEXT_BYTES


@dataclass(frozen=True)
class StageEstimate:
    """The phases of a stage, for one clip."""

    phases: tuple[Phase, ...]

    @property
    def flops(self) -> float:
        """Operations of one clip."""
        return sum(phase.flops for phase in self.phases)

    @property
    def peak_bytes(self) -> int:
        """The card must have this much; the largest phase decides."""
        return max(phase.peak_bytes for phase in self.phases)


class LiveMemory(TorchDispatchMode):
    """Count the bytes of all tensors that are alive, and the most there ever were.

    A convolution of a video has its input and output once more while it runs: cuDNN's kernels for 16 bits want the
    channels last, and the VAE has them first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._track(tensor.untyped_storage())
        if func is torch.ops.aten.convolution.default and result.ndim == 5 and result.itemsize == 2:
            self.peak = max(self.peak, self.live + args[0].nbytes + result.nbytes)
        return result

    def _track(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


class FlashAttention(TorchFunctionMode):
    """Attention as a fused kernel has it: one output, no matrix of scores."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return torch.empty_like(args[0] if args else kwargs["query"])
        return func(*args, **(kwargs or {}))


def parameters(config: Mapping[str, Any], model_class: Any = FlashVideoTransformer3DModel) -> int:
    """Number of parameters of a network."""
    return sum(tensor.numel() for tensor in _empty(model_class, config).parameters())


def _empty(model_class: Any, config: Mapping[str, Any], dtype: torch.dtype = torch.bfloat16) -> Any:
    """A network without memory for its weights. It is kept: what changes it makes its own."""
    return _kept(model_class, _frozen(config), dtype)


def _frozen(config: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    return tuple(sorted((key, value) for key, value in known.items() if not key.startswith("_")))


def _made(model_class: Any, config: tuple[tuple[str, Any], ...], dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        network = model_class(**dict(config))
        if model_class is AutoencoderKLCogVideoX:
            split_convolutions(network)
        return torch.nn.Module.to(network, dtype).eval()


_kept = lru_cache(maxsize=8)(_made)


def transformer_bytes(config: Mapping[str, Any], dtype: torch.dtype, quantization: str | None = None) -> int:
    """Bytes of the transformer's weights as they are kept, and with fp8 of the largest layer as it computes."""
    return _transformer_bytes(_frozen(config), dtype, quantization)


@lru_cache(maxsize=32)
def _transformer_bytes(config: tuple[tuple[str, Any], ...], dtype: torch.dtype, quantization: str | None) -> int:
    network = _made(FlashVideoTransformer3DModel, config, dtype)  # its own: casting changes it
    before = [parameter.numel() * dtype.itemsize for parameter in network.parameters()]
    if quantization is None:
        return sum(before)
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
    return sum(parameter.numel() * parameter.element_size() for parameter in network.parameters()) + max(before)


def num_tokens(config: Mapping[str, Any], latent_shape: tuple[int, int, int]) -> int:
    """Video tokens of latents (frames, height, width)."""
    frames, height, width = latent_shape
    return frames * (height // config["patch_size"]) * (width // config["patch_size"])


def transformer_flops(config: Mapping[str, Any], latent_shape: tuple[int, int, int], text_length: int = 226) -> float:
    """Operations of one sample's forward pass; attention grows with the square of the tokens, the rest linearly."""
    video = num_tokens(config, latent_shape)
    total = video + text_length
    width = config["num_attention_heads"] * config["attention_head_dim"]
    patch = config["in_channels"] * config["patch_size"] ** 2
    layer = 12 * width * width * total + 2 * total * total * width + 12 * width * config["time_embed_dim"]
    ends = 2 * video * patch * width + text_length * config["text_embed_dim"] * width
    return 2.0 * (config["num_layers"] * layer + ends)


def transformer_activations(
    config: Mapping[str, Any],
    latent_shape: tuple[int, int, int],
    batch: int,
    dtype: torch.dtype,
    text_length: int = 226,
) -> int:
    """Bytes of the largest set of activations in a forward pass. All blocks are alike, so one is enough."""
    network = _empty(FlashVideoTransformer3DModel, {**config, "num_layers": 1}, dtype)
    frames, height, width = latent_shape
    inner = config["num_attention_heads"] * config["attention_head_dim"]

    def tensor(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    with torch.no_grad(), FlashAttention(), LiveMemory() as memory:
        network(
            tensor(batch, frames, config["in_channels"], height, width),
            tensor(batch, text_length, inner),
            tensor(batch, dtype=torch.float32),
            tensor(batch, dtype=torch.float32) if config.get("ref_step_embedding") else None,
            text_is_projected=True,
        )
    return memory.peak


@lru_cache(maxsize=32)
def _vae_pass(
    config: tuple[tuple[str, Any], ...], part: str, chunks: tuple[int, ...], height: int, width: int, dtype: torch.dtype
) -> tuple[float, int]:
    vae = _empty(AutoencoderKLCogVideoX, dict(config), dtype)
    channels = 3 if part == "encoder" else vae.config["latent_channels"]
    cache, total, last = None, 0, 0
    with torch.no_grad(), FlopCounterMode(display=False) as flops, LiveMemory() as memory:
        for number, frames in enumerate(chunks):
            if chunks[:number][-2:] != (frames, frames):  # a third one of the same length costs what the second did
                before = flops.get_total_flops()
                chunk = torch.empty(1, channels, frames, height, width, dtype=dtype, device="meta")
                _, cache = getattr(vae, part)(chunk, conv_cache=cache)
                last = flops.get_total_flops() - before
            total += last
    return float(total), memory.peak


def vae_cost(
    config: Mapping[str, Any],
    part: Literal["encoder", "decoder"],
    num_frames: int,
    height: int,
    width: int,
    *,
    tiles: tuple[int, int] = (1, 1),
    chunk_frames: int = 16,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[float, int]:
    """Return operations and the bytes of the largest activations to encode or decode a video of this size in pixels."""
    ratio = int(config.get("temporal_compression_ratio", 4))
    scale = 2 ** (len(config["block_out_channels"]) - 1)
    if part == "encoder":
        chunks, unit = encode_chunks(num_frames, chunk_frames), scale
    else:
        chunks, unit = decode_chunks((num_frames - 1) // ratio + 1), 1
    sizes = tuple(stop - start for start, stop in chunks)
    frozen = _frozen(config)
    flops, peak = 0.0, 0
    for row in tile_axis(height // scale, tiles[0]):
        for column in tile_axis(width // scale, tiles[1]):
            extent = (row.stop - row.start) * unit, (column.stop - column.start) * unit
            tile_flops, tile_peak = _vae_pass(frozen, part, sizes, *extent, dtype)
            flops, peak = flops + tile_flops, max(peak, tile_peak)
    return flops, peak


def _latent_shape(vae: Mapping[str, Any], num_frames: int, height: int, width: int) -> tuple[int, int, int]:
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    return (num_frames - 1) // int(vae.get("temporal_compression_ratio", 4)) + 1, height // scale, width // scale


def _phases(parts: dict[str, tuple[float, int, int]], resident: int, offload: Offload) -> StageEstimate:
    """Build an estimate from name -> (flops, own weights, activations); without offloading all weights stay."""
    return StageEstimate(
        tuple(
            Phase(name, flops, own if offload == "model" else resident, activations)
            for name, (flops, own, activations) in parts.items()
        )
    )


def estimate_preview(
    transformer: Mapping[str, Any],
    vae: Mapping[str, Any],
    *,
    height: int = 256,
    width: int = 480,
    num_frames: int = 49,
    num_inference_steps: int = 51,
    guidance_batching: Literal["together", "apart"] = "together",
    dtype: torch.dtype = torch.bfloat16,
    vae_dtype: torch.dtype | None = None,
    offload: Offload = "none",
    quantization: str | None = None,
    text_encoder_parameters: int = 0,
) -> StageEstimate:
    """Estimate stage 1 for one clip, of a size in multiples of 16.

    Text is encoded elsewhere unless the parameters of its encoder are given. `offload="model"` is diffusers' model
    offload: only the network in use is on the card. `quantization="fp8"` keeps the transformer's blocks in 8 bits.
    """
    vae_dtype = vae_dtype or dtype
    latents = _latent_shape(vae, num_frames, height, width)
    batch = 2 if guidance_batching == "together" else 1
    network = transformer_bytes(transformer, dtype, quantization)
    coder = parameters(vae, AutoencoderKLCogVideoX) * vae_dtype.itemsize
    text = text_encoder_parameters * dtype.itemsize
    noise = (num_inference_steps + 4) * 4 * transformer["in_channels"] * latents[0] * latents[1] * latents[2]
    activations = transformer_activations(transformer, latents, batch, dtype) + noise
    denoise = 2 * num_inference_steps * transformer_flops(transformer, latents)
    decode, decode_peak = vae_cost(vae, "decoder", num_frames, height, width, dtype=vae_dtype)
    parts = {"denoise": (denoise, network, activations), "decode": (decode, coder, decode_peak)}
    return _phases(parts, network + coder + text, offload)


def estimate_refine(
    transformer: Mapping[str, Any],
    vae: Mapping[str, Any],
    *,
    height: int = 1072,
    width: int = 1920,
    num_frames: int = 49,
    num_inference_steps: int = 5,
    guidance_batching: Literal["together", "apart"] = "together",
    dtype: torch.dtype = torch.bfloat16,
    vae_dtype: torch.dtype | None = None,
    encode_chunk_frames: int = 16,
    encode_tiles: tuple[int, int] = (1, 1),
    decode_tiles: tuple[int, int] = (1, 2),
    offload: Offload = "none",
    quantization: str | None = None,
    text_encoder_parameters: int = 0,
) -> StageEstimate:
    """Estimate stage 2 for one clip, as `estimate_preview` does; `decode_tiles` (1, 1) is a whole decode."""
    vae_dtype = vae_dtype or dtype
    latents = _latent_shape(vae, num_frames, height, width)
    batch = 2 if guidance_batching == "together" else 1
    network = transformer_bytes(transformer, dtype, quantization)
    coder = parameters(vae, AutoencoderKLCogVideoX) * vae_dtype.itemsize
    text = text_encoder_parameters * dtype.itemsize
    state = 6 * 4 * transformer["in_channels"] * latents[0] * latents[1] * latents[2]
    upsampled = 3 * 4 * 3 * (encode_chunk_frames + 1) * height * width
    size = num_frames, height, width
    encode, encode_peak = vae_cost(
        vae, "encoder", *size, tiles=encode_tiles, chunk_frames=encode_chunk_frames, dtype=vae_dtype
    )
    decode, decode_peak = vae_cost(vae, "decoder", *size, tiles=decode_tiles, dtype=vae_dtype)
    activations = transformer_activations(transformer, latents, batch, dtype) + state
    denoise = 2 * num_inference_steps * transformer_flops(transformer, latents)
    parts = {
        "encode": (encode, coder, encode_peak + upsampled),
        "denoise": (denoise, network, activations),
        "decode": (decode, coder, decode_peak + state),
    }
    return _phases(parts, network + coder + text, offload)
