"""How messages about prompts name their rows."""

from __future__ import annotations

from collections.abc import Sequence

from flashvideo_ray.errors import InputError

SHOWN = 5  # rows named in a message before it says how many more there are


class PromptError(InputError):
    """The prompts cannot be used. The message names columns and rows (counted from 1) and says what to do."""


class Rows:
    """Names rows for messages: `row 3`, or `b.parquet row 3` where there are several files."""

    def __init__(self, files: list[tuple[str, int]]):
        self.files = files

    def name(self, index: int) -> str:
        """The row of that place in the whole table."""
        for path, count in self.files:
            if index < count:
                return f"row {index + 1}" if len(self.files) == 1 else f"{path} row {index + 1}"
            index -= count
        raise IndexError(index)

    def list(self, indices: Sequence[int]) -> str:
        """The first of these rows, and how many more there are."""
        shown = ", ".join(self.name(index) for index in indices[:SHOWN])
        return shown if len(indices) <= SHOWN else f"{shown} and {len(indices) - SHOWN} more"

    def pairs(self, pairs: Sequence[tuple[int, int]]) -> str:
        """The first of these pairs of rows, and how many more there are."""
        shown = ", ".join(f"{self.name(a)} and {self.name(b)}" for a, b in pairs[:SHOWN])
        return shown if len(pairs) <= SHOWN else f"{shown} and {len(pairs) - SHOWN} more pairs"
