"""Parameters, tokens, operations and peak memory of the released networks, counted on the meta device.

    python benchmarks/flops.py [--json results.json]

Needs no weights and no GPU. The counts come from the package's own classes and are compared with figures measured on
the reference implementation; the exit status is 1 if one is off by more than 1 %.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from torch.utils.flop_counter import FlopCounterMode

from flashvideo_ray.accounting.estimates import card_gib
from flashvideo_ray.models import FlashVideoTransformer3DModel
from flashvideo_ray.models.costs import (
    GIB,
    RELEASED,
    TEXT_ENCODER_PARAMETERS,
    StageEstimate,
    estimate_preview,
    estimate_refine,
    num_tokens,
    parameters,
    transformer_flops,
    vae_cost,
)

CARDS = ("L4", "L40S", "H100")
PREVIEW_LATENTS = (13, 32, 60)
REFINE_LATENTS = (13, 134, 240)
REFERENCE = {
    "stage 1: parameters": 5_570_283_072,
    "stage 2: parameters": 1_693_783_872 + 2_492_416,
    "VAE: parameters": 215_583_907,
    "stage 1, 256x480x49: tokens": 6240,
    "stage 2, 1072x1920x49: tokens": 104_520,
    "stage 1, 256x480x49: TFLOP a sample and call": 83.10,
    "stage 2, 1072x1920x49: TFLOP a sample and call": 2805.96,
    "single-stage 5B, 1072x1920x49: TFLOP a sample and call": 6658.97,
    "VAE decode, 256x480x49: TFLOP": 112,
    "VAE encode, 1072x1920x49: TFLOP": 887,
    "VAE decode, 1072x1920x49, two tiles: TFLOP": 2126,
    "stage 1, 51 steps: PFLOP": 8.48,
    "stage 2, 5 steps: PFLOP": 28.1,
    "single stage, 50 steps: PFLOP": 665.9,
}


def network_tflop(config: dict[str, Any], latents: tuple[int, int, int]) -> float:
    """Count one sample's forward pass by running the network on the meta device."""
    with torch.device("meta"):
        network = torch.nn.Module.to(FlashVideoTransformer3DModel(**config), torch.bfloat16)
        frames, height, width = latents
        video = torch.empty(1, frames, config["in_channels"], height, width, dtype=torch.bfloat16)
        text = torch.empty(1, 226, config["text_embed_dim"], dtype=torch.bfloat16)
        step = torch.empty(1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(video, text, step, step if config.get("ref_step_embedding") else None)
    return counter.get_total_flops() / 1e12


def measure() -> Iterator[tuple[str, float]]:
    """Yield every figure by name."""
    preview, refine, vae = RELEASED["preview"], RELEASED["refine"], RELEASED["vae"]
    yield "stage 1: parameters", parameters(preview)
    yield "stage 2: parameters", parameters(refine)
    yield "VAE: parameters", parameters(vae, AutoencoderKLCogVideoX)
    yield "stage 1, 256x480x49: tokens", num_tokens(preview, PREVIEW_LATENTS)
    yield "stage 2, 1072x1920x49: tokens", num_tokens(refine, REFINE_LATENTS)
    stage1 = network_tflop(preview, PREVIEW_LATENTS)
    stage2 = network_tflop(refine, REFINE_LATENTS)
    single = network_tflop(preview, REFINE_LATENTS)
    yield "stage 1, 256x480x49: TFLOP a sample and call", stage1
    yield "stage 2, 1072x1920x49: TFLOP a sample and call", stage2
    yield "single-stage 5B, 1072x1920x49: TFLOP a sample and call", single
    yield "stage 1, formula over count", transformer_flops(preview, PREVIEW_LATENTS) / 1e12 / stage1
    yield "stage 2, formula over count", transformer_flops(refine, REFINE_LATENTS) / 1e12 / stage2
    yield "VAE decode, 256x480x49: TFLOP", vae_cost(vae, "decoder", 49, 256, 480)[0] / 1e12
    yield "VAE encode, 1072x1920x49: TFLOP", vae_cost(vae, "encoder", 49, 1072, 1920)[0] / 1e12
    yield (
        "VAE decode, 1072x1920x49, two tiles: TFLOP",
        vae_cost(vae, "decoder", 49, 1072, 1920, tiles=(1, 2))[0] / 1e12,
    )
    # Guidance evaluates the network twice a step.
    yield "stage 1, 51 steps: PFLOP", 2 * 51 * stage1 / 1e3
    yield "stage 2, 5 steps: PFLOP", 2 * 5 * stage2 / 1e3
    yield "single stage, 50 steps: PFLOP", 2 * 50 * single / 1e3
    yield "single stage over two stages (51 + 5 steps)", 2 * 50 * single / (2 * 51 * stage1 + 2 * 5 * stage2)
    yield "single stage over two stages (50 + 4 steps)", 2 * 50 * single / (2 * 50 * stage1 + 2 * 4 * stage2)


@dataclass(frozen=True)
class Option:
    """A stage with its options, as someone would choose them for a card."""

    name: str
    estimate: StageEstimate


def options() -> list[Option]:
    """Option sets from the largest to the smallest card."""
    preview, refine, vae = RELEASED["preview"], RELEASED["refine"], RELEASED["vae"]
    small: dict[str, Any] = {"guidance_batching": "apart", "offload": "model"}
    return [
        Option(
            "preview, with T5 on the card",
            estimate_preview(preview, vae, text_encoder_parameters=TEXT_ENCODER_PARAMETERS),
        ),
        Option("preview, text encoded elsewhere", estimate_preview(preview, vae)),
        Option("preview, apart, offload", estimate_preview(preview, vae, **small)),
        Option("refine, the reference's options", estimate_refine(refine, vae)),
        Option(
            "refine, apart, encode 1x2, decode 2x2",
            estimate_refine(refine, vae, guidance_batching="apart", encode_tiles=(1, 2), decode_tiles=(2, 2)),
        ),
        Option(
            "refine, apart, offload, encode 2x2, decode 2x2",
            estimate_refine(refine, vae, encode_tiles=(2, 2), decode_tiles=(2, 2), **small),
        ),
        Option(
            "refine, apart, offload, encode 2x2 by 8, decode 4x4",
            estimate_refine(refine, vae, encode_chunk_frames=8, encode_tiles=(2, 2), decode_tiles=(4, 4), **small),
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    worst, figures = 0.0, {}
    for name, value in measure():
        figures[name] = value
        expected = REFERENCE.get(name)
        compared = ""
        if expected is not None:
            off = value / expected - 1
            worst = max(worst, abs(off))
            compared = f"reference {expected:>16,.6g}  {off:+.2%}"
        print(f"{name:58} {value:>16,.6g}  {compared}", flush=True)

    print(f"\n{'estimated peak memory, GiB':58}" + "".join(f"{name:>10}" for name in CARDS))
    for option in options():
        phases = ", ".join(f"{phase.name} {phase.peak_bytes / GIB:.1f}" for phase in option.estimate.phases)
        figures[f"{option.name}: peak GiB"] = peak = option.estimate.peak_bytes / GIB
        cards = "".join(f"{'fits' if peak <= (card_gib(card) or 0) else '-':>10}" for card in CARDS)
        print(f"{option.name:58}{cards}    {phases}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"\nlargest deviation from the reference's figures: {worst:.2%}")
    return 1 if worst > 0.01 else 0


if __name__ == "__main__":
    sys.exit(main())
