"""Datasets out of a run: shards in formats that training reads, pairs for preference tuning, and the card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashvideo_ray.export.options import ExportError, Options, parse_bytes, parse_splits, split_of

if TYPE_CHECKING:
    from flashvideo_ray.export.job import Exported, export

__all__ = ["ExportError", "Exported", "Options", "export", "parse_bytes", "parse_splits", "split_of"]


def __getattr__(name: str) -> Any:
    """What makes an export is loaded on first use: the help of a command needs only what it can be told."""
    if name not in ("Exported", "export"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flashvideo_ray.export import job

    return getattr(job, name)
