"""Prompts for text encoders that read a few dozen tokens: cut at sentences, not in the middle."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BREAKS = (r"(?<=[.!?])\s+", r"(?<=[,;:])\s+", r"\s+")  # sentences, clauses, words


class Splitter:
    """Splits prompts into pieces that a text encoder can read whole.

    Args:
        tokenizer: of the text encoder.
        limit: tokens that it reads, those that mark the beginning and the end included.
    """

    def __init__(self, tokenizer: Any, limit: int) -> None:
        self.tokenizer = tokenizer
        self.limit = limit
        self.special = len(tokenizer("").input_ids)

    def __call__(self, prompt: str) -> tuple[list[str], NDArray[np.float64]]:
        """The pieces, and their shares of the prompt's tokens, which add up to 1."""
        texts = pieces(prompt, lambda text: self._length(text) <= self.limit)
        tokens = np.array([max(1, self._length(text) - self.special) for text in texts], np.float64)
        return texts, tokens / tokens.sum()

    def _length(self, text: str) -> int:
        return len(self.tokenizer(text, verbose=False).input_ids)  # quiet: longer texts are what it is asked about


def pieces(text: str, fits: Callable[[str], bool], breaks: tuple[str, ...] = _BREAKS) -> list[str]:
    """Cut `text` into as few pieces as go, each of which `fits`: between sentences, else clauses, else words.

    A single word that does not fit stays whole.
    """
    if fits(text) or not breaks:
        return [text]
    parts = [piece for part in re.split(breaks[0], text) for piece in pieces(part, fits, breaks[1:])]
    found = parts[:1]
    for part in parts[1:]:
        joined = f"{found[-1]} {part}"
        if fits(joined):
            found[-1] = joined
        else:
            found.append(part)
    return found
