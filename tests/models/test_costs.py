"""Estimates of the released networks, made without weights."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flashvideo_ray.accounting.estimates import card_gib
from flashvideo_ray.models import FlashVideoTransformer3DModel
from flashvideo_ray.models.costs import (
    GIB,
    RELEASED,
    estimate_preview,
    estimate_refine,
    parameters,
    transformer_bytes,
    transformer_flops,
)
from flashvideo_ray.models.optimize import weight_bytes

SMALL_CARD = {"guidance_batching": "apart", "offload": "model", "encode_chunk_frames": 8, "encode_tiles": (2, 2)}


def test_the_formula_is_what_the_network_does():
    config = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3, "patch_size": 2}
    config |= {"in_channels": 4, "time_embed_dim": 8, "text_embed_dim": 12}
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network = FlashVideoTransformer3DModel(**config)
        network(torch.empty(1, 3, 4, 8, 10), torch.empty(1, 7, 12), torch.empty(1))
    assert transformer_flops(config, (3, 8, 10), 7) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_the_released_networks_have_their_published_size():
    assert parameters(RELEASED["preview"]) == 5_570_283_072
    assert parameters(RELEASED["refine"]) == 1_693_783_872 + 2_492_416


def test_what_fits_which_card():
    small, middle, large = (card_gib(name) * GIB for name in ("L4", "L40S", "H100"))
    vae = RELEASED["vae"]
    assert estimate_preview(RELEASED["preview"], vae).peak_bytes <= small
    reference = estimate_refine(RELEASED["refine"], vae)
    assert middle < reference.peak_bytes <= large
    assert [phase.name for phase in reference.phases] == ["encode", "denoise", "decode"]
    assert estimate_refine(RELEASED["refine"], vae, decode_tiles=(4, 4), **SMALL_CARD).peak_bytes <= small
    # A clip of 51 + 5 steps with its three VAE passes.
    total = estimate_preview(RELEASED["preview"], vae).flops + reference.flops
    assert total == pytest.approx(36.5e15 + 112e12 + 887e12 + 2126e12, rel=0.01)
    assert reference.peak_bytes > 40 * GIB


def test_weights_that_are_kept_in_8_bits_take_little_more_than_half_the_memory():
    """As many bytes as the network has once it is loaded so, and its largest layer in 16 bits while that computes."""
    config = {**RELEASED["refine"], "num_layers": 2}
    whole = transformer_bytes(config, torch.bfloat16)
    network = FlashVideoTransformer3DModel(**config).to(torch.bfloat16)
    assert whole == weight_bytes(network)
    largest = max(parameter.numel() * 2 for parameter in network.parameters())
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert transformer_bytes(config, torch.bfloat16, "fp8") == weight_bytes(network) + largest
    spared = [
        estimate(RELEASED[stage], RELEASED["vae"]).phases[-1].weights
        - estimate(RELEASED[stage], RELEASED["vae"], quantization="fp8").phases[-1].weights
        for stage, estimate in (("preview", estimate_preview), ("refine", estimate_refine))
    ]
    # Embeddings and norms stay as they are.
    assert spared[0] > 0.42 * 2 * parameters(RELEASED["preview"])
    assert spared[1] > 0.38 * 2 * parameters(RELEASED["refine"])
