"""Ray's workers import this first: diffusers takes a component's class only from modules that are imported.

The classes themselves are loaded when they are asked for, as most of Ray's workers have no model.
"""

from __future__ import annotations

from typing import Any

NAMES = ("WatchedTransformer", "ScarceVAE", "ModelMixin")  # the last is where diffusers looks for their base


def watch() -> None:
    """That this module is imported is enough."""


def __getattr__(name: str) -> Any:
    if name in NAMES:
        from . import model

        return getattr(model, name)
    raise AttributeError(name)
