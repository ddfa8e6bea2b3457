"""Datasets out of a run: shards in formats that training reads, pairs for preference tuning, and the card."""

from flashvideo_ray.export.job import Exported, export
from flashvideo_ray.export.options import ExportError, Options, parse_bytes, parse_splits, split_of

__all__ = ["ExportError", "Exported", "Options", "export", "parse_bytes", "parse_splits", "split_of"]
