"""Prompts to embeddings, as the T5 text encoder of both stages reads them."""

from typing import Any

import torch
from diffusers.utils import logging

logger = logging.get_logger(__name__)


@torch.no_grad()
def encode_text(tokenizer: Any, text_encoder: Any, texts: list[str], max_sequence_length: int) -> torch.Tensor:
    """Return the encoder's last hidden state `[len(texts), max_sequence_length, width]`, in its dtype.

    As the models were trained: padded to the full length, without an attention mask (the padding takes part),
    truncated with a warning if too long. Each text is encoded by itself, so that its embedding does not depend on
    its neighbours in a batch.
    """
    embeds = []
    for text in texts:
        ids = tokenizer(text).input_ids
        if len(ids) > max_sequence_length:
            logger.warning(
                f"a prompt of {len(ids)} tokens is cut to {max_sequence_length}, which loses: "
                f"{tokenizer.decode(ids[max_sequence_length - 1 : -1])!r}"
            )
        padded = tokenizer(
            text, padding="max_length", max_length=max_sequence_length, truncation=True, return_tensors="pt"
        )
        device = next(text_encoder.parameters()).device
        embeds.append(text_encoder(input_ids=padded.input_ids.to(device))[0])
    return torch.cat(embeds)
