"""Prompts to embeddings, as the T5 text encoder of both stages reads them."""

import logging
from typing import Any

import torch

logger = logging.getLogger(__name__)


@torch.no_grad()
def encode_text(tokenizer: Any, text_encoder: Any, texts: list[str], max_sequence_length: int) -> torch.Tensor:
    """Return the encoder's last hidden state `[len(texts), max_sequence_length, width]`, in its dtype.

    As the models were trained: padded to the full length, without an attention mask (the padding takes part),
    truncated with a warning if too long. Each text is encoded by itself, so that its embedding does not depend on
    its neighbours in a batch.
    """
    device = next(text_encoder.parameters()).device  # meta if an offloading hook keeps the weights elsewhere
    embeds = []
    for text in texts:
        whole = tokenizer(text).input_ids
        if len(whole) > max_sequence_length:
            logger.warning(
                "a prompt of %d tokens is cut to %d, which loses: %r",
                len(whole),
                max_sequence_length,
                tokenizer.decode(whole[max_sequence_length - 1 : -1]),
            )
        padded = tokenizer(
            text, padding="max_length", max_length=max_sequence_length, truncation=True, return_tensors="pt"
        )
        ids = padded.input_ids if device.type == "meta" else padded.input_ids.to(device)
        embeds.append(text_encoder(input_ids=ids)[0])
    return torch.cat(embeds)
