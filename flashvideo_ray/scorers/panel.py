"""Several scorers that look at the same video: built once, and none of them costs the others, or the video."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flashvideo_ray import scorers
from flashvideo_ray.errors import message_of
from flashvideo_ray.settings import ScorerSettings


@dataclass(frozen=True)
class Scored:
    """What a panel says: a number for each of its names, None where there is none, and what went wrong."""

    numbers: dict[str, float | None]
    errors: tuple[str, ...]


class Panel:
    """The scorers of some settings, for videos of one frame rate. Raises ValueError as `scorers.load`."""

    def __init__(self, specs: Iterable[ScorerSettings], fps: float):
        self._scorers = [(spec.name, scorers.load(spec.name, spec.options, fps=fps)) for spec in specs]

    @property
    def names(self) -> tuple[str, ...]:
        """The numbers that it gives."""
        return tuple(name for _, scorer in self._scorers for name in scorer.names)

    def __call__(self, frames: NDArray[np.uint8], prompt: str) -> Scored:
        """Measure a video: RGB uint8 `[frames, height, width, 3]`.

        A scorer that raises, or leaves out one of its numbers, gives none; a number that is not finite stands as it is.
        """
        numbers: dict[str, float | None] = {}
        errors = []
        for label, scorer in self._scorers:
            try:
                found = scorer(frames, prompt)
                own = {name: float(found[name]) for name in scorer.names}
            except Exception as error:
                numbers |= dict.fromkeys(scorer.names)
                errors.append(f"{label}: {type(error).__name__}: {message_of(error)}")
                continue
            numbers |= own
            if wrong := [name for name, value in own.items() if not math.isfinite(value)]:
                errors.append(f"{label}: {', '.join(wrong)} is not finite")
        return Scored(numbers, tuple(errors))


def names_of(specs: Iterable[ScorerSettings]) -> list[str]:
    """The numbers that these scorers give, none of them built."""
    return [name for spec in specs for name in scorers.resolve(spec.name).names]
