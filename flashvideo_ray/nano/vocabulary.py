"""Which words the nano model knows, for messages about prompts that it cannot follow."""

from __future__ import annotations

import re
from functools import lru_cache

from .captions import word_list

EXAMPLES = (
    "A large striped red star slides left on a navy background.",
    "In front of a mint wall a small dotted purple circle slowly rises.",
    "One big square in orange with checkered paint grows larger and larger over a cream backdrop.",
)
"""The kind of prompt that the model was trained on."""


@lru_cache(maxsize=1)
def known_words() -> frozenset[str]:
    """Every word of the closed vocabulary, in lower case."""
    return frozenset(word_list())


def unknown_words(prompt: str) -> list[str]:
    """The words of a prompt that the nano model does not know, in lower case, in order, each once."""
    words = re.findall(r"\w+(?:['’-]\w+)*", prompt.lower())
    return list(dict.fromkeys(word for word in words if word not in known_words()))
