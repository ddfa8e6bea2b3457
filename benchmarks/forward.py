"""Our pipeline against diffusers' CogVideoX pipeline: the same network size, shape and steps, in one run.

    python benchmarks/forward.py [--repeats 5] [--threads 1] [--compile]

Two comparisons on the CPU in float32, at a middle size: one evaluation of the network (batch 2, as guidance makes it)
and one whole sampling run with guidance and given embeddings. The two sides take turns; processor seconds are measured
and the best of each counts, so that other work on the machine matters little. The exit status is 1 if ours is more
than 5 % slower.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler

from flashvideo_ray.models import FlashVideoDPMScheduler, FlashVideoPreviewPipeline, FlashVideoTransformer3DModel

SHAPE = {"num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 4, "time_embed_dim": 256}
TEXT, TEXT_LENGTH = 512, 226
HEIGHT, WIDTH, FRAMES, STEPS = 128, 192, 17, 6
TOLERANCE = 1.05


def build() -> tuple[FlashVideoPreviewPipeline, CogVideoXPipeline]:
    """Make both pipelines around the same weights."""
    torch.manual_seed(0)
    ours = FlashVideoTransformer3DModel(**SHAPE, text_embed_dim=TEXT)
    theirs = CogVideoXTransformer3DModel(
        **SHAPE,
        text_embed_dim=TEXT,
        sample_height=HEIGHT // 8,
        sample_width=WIDTH // 8,
        sample_frames=FRAMES,
        use_rotary_positional_embeddings=True,
        max_text_seq_length=TEXT_LENGTH,
    )
    theirs.load_state_dict(ours.state_dict())
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2, scaling_factor=0.7
    )
    scheduler = CogVideoXDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        snr_shift_scale=1.0,
        rescale_betas_zero_snr=True,
        set_alpha_to_one=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
    preview = FlashVideoPreviewPipeline(ours.eval(), vae, FlashVideoDPMScheduler())
    components: dict[str, Any] = {"tokenizer": None, "text_encoder": None, "vae": vae, "scheduler": scheduler}
    cogvideox = CogVideoXPipeline(**components, transformer=theirs.eval())
    for pipeline in (preview, cogvideox):
        pipeline.set_progress_bar_config(disable=True)
    return preview, cogvideox


def race(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return the least processor seconds of each, taken in turns after one run to warm up."""
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for repeat in range(repeats + 1):
        for side, run in enumerate((ours, theirs) if repeat % 2 else (theirs, ours)):
            started = time.process_time()
            run()
            if repeat:
                seconds[side if repeat % 2 else 1 - side].append(time.process_time() - started)
    return min(seconds[0]), min(seconds[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="also time our network with its blocks compiled")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    preview, cogvideox = build()

    latents = torch.randn(2, (FRAMES - 1) // 4 + 1, 16, HEIGHT // 8, WIDTH // 8)
    text, step = torch.randn(2, TEXT_LENGTH, TEXT), torch.tensor([500.0, 500.0])
    grid = HEIGHT // 16, WIDTH // 16
    rotary = get_3d_rotary_pos_embed(64, None, grid, latents.shape[1], grid_type="slice", max_size=grid)
    embeds = torch.randn(1, TEXT_LENGTH, TEXT)
    zeros = torch.zeros_like(embeds)

    @torch.no_grad()
    def our_forward() -> torch.Tensor:
        return preview.transformer(latents, text, step).sample

    @torch.no_grad()
    def their_forward() -> torch.Tensor:
        return cogvideox.transformer(latents, text, step, image_rotary_emb=rotary).sample

    def our_run() -> object:
        return preview(
            prompt_embeds=embeds,
            height=HEIGHT,
            width=WIDTH,
            num_frames=FRAMES,
            num_inference_steps=STEPS,
            guidance_scale=6.0,
            output_type="latent",
        )

    def their_run() -> object:
        return cogvideox(
            prompt_embeds=embeds,
            negative_prompt_embeds=zeros,
            height=HEIGHT,
            width=WIDTH,
            num_frames=FRAMES,
            num_inference_steps=STEPS,
            guidance_scale=6.0,
            use_dynamic_cfg=True,
            output_type="latent",
        )

    tokens = latents.shape[1] * grid[0] * grid[1] + TEXT_LENGTH
    print(f"{tokens} tokens, width 384, 4 layers, {STEPS} steps, {arguments.threads} threads")
    difference = (our_forward() - their_forward()).abs().max().item()
    print(f"same weights, same input: largest difference {difference:.1e}")
    passed = difference < 1e-3
    for name, ours, theirs in (("one evaluation", our_forward, their_forward), ("one run", our_run, their_run)):
        our_seconds, their_seconds = race(ours, theirs, arguments.repeats)
        ratio = our_seconds / their_seconds
        passed &= ratio <= TOLERANCE
        print(f"{name:16} ours {our_seconds:7.3f} s   diffusers {their_seconds:7.3f} s   ratio {ratio:.3f}")
    if arguments.compile:
        preview.transformer.compile_repeated_blocks(fullgraph=True)
        our_forward()
        our_seconds, their_seconds = race(our_forward, their_forward, arguments.repeats)
        print(f"one evaluation   compiled {our_seconds:.3f} s   diffusers, not compiled {their_seconds:.3f} s")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
