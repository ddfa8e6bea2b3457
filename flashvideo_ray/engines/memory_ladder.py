"""What a phase of a stage does when the card runs out of memory: the same again with less at once, step by step."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from flashvideo_ray.errors import is_out_of_memory

Result = TypeVar("Result")
Rung = tuple[str, Mapping[str, Any]]
"""What is done otherwise, in words (empty: nothing), and the options of it."""


class Ladder:
    """The rungs of one phase, the first as asked for. An actor that needed one starts there the next time."""

    def __init__(self, phase: str, rungs: Sequence[Rung], would_help: str):
        self._phase = phase
        self._rungs = rungs
        self._would_help = would_help
        self._at = 0

    def run(self, attempt: Callable[..., Result]) -> tuple[Result, str | None]:
        """Call `attempt(**options)` of one rung after the other. Return what it gives, and a note unless as asked.

        Raises OutOfMemoryError, or MemoryError on a CPU, of the last rung.
        """
        while True:
            words, options = self._rungs[self._at]
            try:
                result = attempt(**options)
                _free_cache()
                return result, f"{self._phase} {words} for want of memory" if words else None
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                kind = MemoryError if isinstance(error, MemoryError) else torch.OutOfMemoryError
                reason = str(error)
            # Out of the block: in it the traceback holds the failed attempt's tensors, and no memory could be freed.
            gc.collect()
            _free_cache()
            if self._at + 1 == len(self._rungs):
                done = f", {words}" if words else ""
                why = f" ({reason})" if reason else ""
                raise kind(f"{self._phase}{done}: out of memory; {self._would_help} would help{why}")
            self._at += 1


def _free_cache() -> None:
    """Give back what PyTorch keeps of a phase's memory.

    The tensors of the next one have other sizes and seldom fit into it: on an H100 a clip of 1080p held 60 GiB by its
    end, and has no more than 43 in use at once. On a card that is shared, the neighbour can have it.
    """
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def notes(*all_of: str | None) -> str | None:
    """The notes of several phases as one."""
    return "; ".join(note for note in all_of if note) or None
