"""The tiny trained FlashVideo that ships with the package: a world of one moving object, and how it was learned.

`path()` is an ordinary model folder (`preview/`, `refine/`) with a `clip/` scorer beside them; `build_random` saves one
with random weights for tests.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .networks import build_random

__all__ = ["build_random", "clip_path", "demo_prompts", "heldout_prompts", "path"]

_HERE = Path(__file__).resolve().parent


def path() -> Path:
    """The folder of the trained model."""
    return _HERE / "weights"


def clip_path() -> Path:
    """The folder of the CLIP scorer that knows the nano world."""
    return path() / "clip"


def demo_prompts() -> Path:
    """A Parquet file of prompts that the model can draw: `id`, `prompt`."""
    return _HERE / "prompts" / "demo.parquet"


def heldout_prompts() -> Path:
    """A Parquet file of 400 prompts of combinations never trained on, with the attributes they ask for."""
    return _HERE / "prompts" / "heldout.parquet"


def __getattr__(name: str) -> Any:
    if name == "build_random":
        return import_module(f"{__name__}.networks").build_random
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
