"""What a family of diffusers pipelines does not say of itself: a module each, called as its package in diffusers is.

`of("wan")` is `FAMILY` of `families/wan.py`, where there is such a file; nothing else names it. A family without one
runs as well: then its users say what is missing.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    """What settings take the place of. None: it is to be said in the settings."""

    fps: float | None = None
    """Frames a second of the videos that it was trained on."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """Packages that a pipeline of it fails without, by the name of its class."""


def of(package: str) -> Family:
    """The family of pipelines whose package in diffusers has that name."""
    name = f"{__name__}.{package}"
    if importlib.util.find_spec(name) is None:
        return Family()
    family = importlib.import_module(name).FAMILY
    assert isinstance(family, Family)
    return family
