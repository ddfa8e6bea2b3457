"""Prompts to embeddings, as the T5 text encoder of both stages reads them."""

import logging
from pathlib import Path
from typing import Any, Self

import torch

logger = logging.getLogger(__name__)


class TextEncoder:
    """The text encoder of a pipeline's folder by itself: nothing else of the folder, nor diffusers, is loaded."""

    def __init__(self, tokenizer: Any, text_encoder: torch.nn.Module, max_sequence_length: int):
        self.tokenizer, self.text_encoder, self.max_sequence_length = tokenizer, text_encoder, max_sequence_length

    @classmethod
    def from_pretrained(cls, folder: Path, dtype: torch.dtype, max_sequence_length: int) -> Self:
        """Load `tokenizer/` and `text_encoder/` of a pipeline's folder."""
        from transformers import AutoTokenizer, T5EncoderModel

        text_encoder = T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=dtype)
        return cls(AutoTokenizer.from_pretrained(folder / "tokenizer"), text_encoder.eval(), max_sequence_length)

    def __call__(self, text: str, prefix: str = "") -> torch.Tensor:
        """The embeddings `[1, max_sequence_length, width]` of a text, stripped, with the prefix before it."""
        return encode_text(self.tokenizer, self.text_encoder, [prefix + text.strip()], self.max_sequence_length)


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
