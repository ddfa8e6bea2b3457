"""The fenced blocks of README, CONTRIBUTING and docs/, and who runs each of them.

A block of ```text is no command. Any other one is run by `tests/docs`, unless a comment right before it says otherwise:
`<!-- run by: tests/… -->` names the test that reads it, `<!-- not run: why -->` says why nothing does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from support import ROOT

GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"(?:^<!-- (not run|run by): (.+?) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: `language` as the fence has it; `mark`: `run by`, `not run` or empty, and `why` goes with it."""

    guide: str
    line: int
    language: str
    text: str
    mark: str
    why: str

    def __str__(self) -> str:
        return f"{self.guide}:{self.line}"

    def commands(self) -> list[str]:
        """Its lines, each whole."""
        return [line for line in self.text.replace("\\\n", "").splitlines() if line.strip()]


def blocks(guide: Path) -> list[Block]:
    text = guide.read_text()
    name = str(guide.relative_to(ROOT))
    return [
        Block(name, text[: found.start(3)].count("\n") + 1, found[3], found[4], found[1] or "", found[2] or "")
        for found in _BLOCK.finditer(text)
    ]


def block(guide: str, beginning: str) -> str:
    """The text of the one block of a guide that begins so."""
    [found] = [each.text for each in blocks(ROOT / guide) if each.text.startswith(beginning)]
    return found
