"""Text of prompts, to be looked at."""

from __future__ import annotations

import re

# Control characters other than those that break a line, and those that change the direction of what stands around them.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def visible(text: str) -> str:
    """The text with control and bidirectional characters as escapes (`\\x1b`, `\\u202e`), so that nobody is misled."""
    return _UNSEEN.sub(lambda found: repr(found[0])[1:-1], text)
