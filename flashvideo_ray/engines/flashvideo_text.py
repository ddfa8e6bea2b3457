"""FlashVideo's text encoder, loaded on an actor's card or CPU. Such an actor needs no diffusers, and loads none."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from flashvideo_ray.engines.engine import check_finite
from flashvideo_ray.models.text import TextEncoder
from flashvideo_ray.settings import Pool

PROMPT_EMBEDS = "prompt_embeds"


class Text:
    """See `engine.TextModel`."""

    def __init__(self, folder: Path, dtype: str, max_tokens: int, pool: Pool):
        # The driver has said which prompts are cut.
        logging.getLogger("flashvideo_ray.models.text").setLevel(logging.ERROR)
        self._encoder = _load_encoder(folder, dtype, max_tokens, pool)

    def encode(self, text: str, prefix: str = "") -> dict[str, torch.Tensor]:
        """See TextModel. `prompt_embeds` are `[tokens, width]`."""
        embeds = self._encoder(text, prefix)
        check_finite(embeds, "the text encoder")
        return {PROMPT_EMBEDS: embeds[0].cpu().contiguous()}


def _load_encoder(folder: Path, dtype: str, length: int, pool: Pool) -> TextEncoder:
    """The text encoder on the actor's card or on the CPU. It is one model: to move it whole would leave it nowhere."""
    import transformers.utils.logging

    transformers.utils.logging.disable_progress_bar()
    encoder = TextEncoder.from_pretrained(folder, getattr(torch, dtype), length)
    if not torch.cuda.is_available():
        return encoder
    if pool.offload == "group":
        from diffusers.hooks import apply_group_offloading

        device = torch.device("cuda")
        apply_group_offloading(encoder.text_encoder, onload_device=device, offload_type="leaf_level", use_stream=True)
    else:
        encoder.text_encoder.to("cuda")
    return encoder
