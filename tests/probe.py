"""Scorers of somebody else's, named by their dotted paths: one fails for some prompts and tells what it was shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray


class Probe:
    """Gives 1; raises for prompts with the word `square`, gives NaN for those with `star`; writes down each prompt."""

    names: ClassVar[tuple[str, ...]] = ("probe",)

    def __init__(self, log: str) -> None:
        self.log = Path(log)

    def __call__(self, frames: NDArray[np.uint8], prompt: str) -> dict[str, Any]:
        with self.log.open("a") as file:
            file.write(f"{prompt}\n")
        if "square" in prompt:
            raise RuntimeError("squares are too much for me")
        return {"probe": float("nan") if "star" in prompt else 1.0}


class Words:
    """The number of words of the prompt."""

    names: ClassVar[tuple[str, ...]] = ("words",)

    def __call__(self, frames: NDArray[np.uint8], prompt: str) -> dict[str, float]:
        return {"words": len(prompt.split())}
