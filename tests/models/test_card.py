"""What a card would refuse, or wait for: the pipelines on one that is pretended, in the types that a card is given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from pretended_card import CARD, Card, pretended_card, put_on_card

from flashvideo_ray import (
    FlashVideoDPMScheduler,
    FlashVideoFlowScheduler,
    FlashVideoPreviewPipeline,
    FlashVideoRefinePipeline,
    FlashVideoTransformer3DModel,
)
from flashvideo_ray.models.costs import RELEASED

SIZES = {"preview": {"height": 32, "width": 48, "num_frames": 9}, "refine": {"height": 32, "width": 288}}


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    with pretended_card(monkeypatch) as found:
        yield found


def made(stage: str, dtype: torch.dtype, vae_dtype: torch.dtype) -> Any:
    """A stage's pipeline on the card: the released networks, but for the number of their layers."""
    with torch.device("meta"):
        transformer = FlashVideoTransformer3DModel(**{**RELEASED[stage], "num_layers": 1}).eval()
        small = {"layers_per_block": 1, "block_out_channels": (8,) * 4, "norm_num_groups": 2}
        vae = AutoencoderKLCogVideoX(**{**RELEASED["vae"], **small}).eval()
    parts = {"transformer": transformer, "vae": vae, **SIZES[stage]}
    if stage == "preview":
        pipe: Any = FlashVideoPreviewPipeline(scheduler=FlashVideoDPMScheduler(), **parts)
    else:
        pipe = FlashVideoRefinePipeline(scheduler=FlashVideoFlowScheduler(), **parts)
    put_on_card(pipe.transformer, dtype)
    put_on_card(pipe.vae, vae_dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeds() -> torch.Tensor:
    """As rows bring them: on the host, in the type of the text encoder."""
    return torch.zeros(1, 226, 4096, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("dtype", "vae_dtype", "batching"),
    [(torch.bfloat16, torch.float16, "together"), (torch.float16, torch.float32, "apart")],
)
def test_both_stages_run_where_devices_and_types_are_told_apart(
    card: Card, dtype: torch.dtype, vae_dtype: torch.dtype, batching: Any
) -> None:
    preview = made("preview", dtype, vae_dtype)
    options = {"num_inference_steps": 1, "guidance_batching": batching, "output_type": "latent"}
    latents = preview(prompt_embeds=embeds(), generator=torch.Generator(), **options).latents
    assert (latents.device, latents.dtype) == (CARD, torch.float32)
    assert preview.decode_latents(latents, quantise=True).dtype == torch.uint8

    refine, kept = made("refine", dtype, vae_dtype), latents.cpu()
    frames = refine.decode_latents(kept, scaling_factor=0.7, tiling="none")
    encoded = refine.encode_frames(frames, generator=torch.Generator(), chunk_frames=8)
    final = refine(prompt_embeds=embeds(), encoded=encoded, generator=torch.Generator(), **options).latents
    clip = refine.decode_latents(final, tiling="none", quantise=True)
    assert (clip.shape, clip.dtype, clip.device.type) == ((1, 9, 32, 288, 3), torch.uint8, "cpu")


@pytest.mark.parametrize("stage", ["preview", "refine"])
def test_nothing_is_copied_or_waited_for_while_a_card_denoises(card: Card, stage: Any) -> None:
    pipe = made(stage, torch.bfloat16, torch.bfloat16)
    seen = []

    def after(pipe: Any, step: int, timestep: Any, tensors: Any) -> Any:
        seen.append((len(card.copies), card.waits))
        return tensors

    shape = (1, 3, 16, SIZES[stage]["height"] // 8, SIZES[stage]["width"] // 8)
    given = {"encoded": torch.zeros(shape, device=CARD)} if stage == "refine" else {}
    options = {"num_inference_steps": 3, "output_type": "latent", "callback_on_step_end": after}
    pipe(prompt_embeds=embeds(), generator=torch.Generator(), **given, **options)
    assert len(seen) == 3
    assert len({*seen}) == 1


@pytest.mark.parametrize(("tiling", "tiles"), [("reference", (1, 2)), ("blend", (1, 2))])
def test_frames_leave_the_card_once_in_8_bits_for_page_locked_memory(card: Card, tiling: Any, tiles: Any) -> None:
    pipe = made("refine", torch.bfloat16, torch.float16)
    latents = torch.zeros(1, 3, 16, 4, 36, device=CARD)
    before = card.waits
    clip = pipe.decode_latents(latents, tiling=tiling, tiles=tiles, quantise=True)
    [copy] = card.off()
    assert (copy.dtype, copy.elements, copy.pinned) == (torch.uint8, clip.numel(), True)
    assert card.waits - before == 2  # for whether all were finite, and for the copy
