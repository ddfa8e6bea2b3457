"""What stage 1 leaves for stage 2: latents where both stages work in the same space, and frames without loss elsewhere.

It is stored as soon as it is there, for it is what was paid for, and it is all that a later job needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from flashvideo_ray import engines
from flashvideo_ray.ledger.keys import frames_key, latents_key
from flashvideo_ray.media import video
from flashvideo_ray.media.provenance import of_candidate
from flashvideo_ray.settings import Settings

Kind = Literal["latents", "frames"]
_MATROSKA = b"\x1aE\xdf\xa3"


class DamagedError(ValueError):
    """What was kept of a preview cannot be read."""


def kind_of(settings: Settings) -> Kind:
    """What is handed over between the two models of these settings."""
    made, taken = (engines.of(settings, stage).describe().latent_space for stage in ("preview", "refine"))
    return "latents" if made is not None and made == taken else "frames"


def key_of(clip_id: str, kind: Kind) -> str:
    """Where it is kept, relative to OUTPUT."""
    return latents_key(clip_id) if kind == "latents" else frames_key(clip_id)


def is_latents(key: str) -> bool:
    """Whether latents are kept there, and no frames."""
    return key.endswith(".safetensors")


def packed(
    preview: torch.Tensor | np.ndarray, row: Mapping[str, Any], fps: float, more: Mapping[str, str] | None = None
) -> bytes:
    """Latents, or frames uint8 `[frames, height, width, 3]`, of a candidate as they are kept. They say whose they are,
    and what `more` says.
    """
    said = {**of_candidate(row), **(more or {})}
    if isinstance(preview, np.ndarray):
        return video.encode_lossless(preview, fps, said)
    return save({"latents": preview}, {"candidate": json.dumps(said)})


def unpacked(kept: bytes) -> torch.Tensor | np.ndarray:
    """What was `packed`. Raises DamagedError."""
    try:
        return video.decode_lossless(kept)[0] if kept.startswith(_MATROSKA) else load(kept)["latents"]
    except (ValueError, SafetensorError, KeyError) as error:
        raise DamagedError(f"what was kept of the preview cannot be read: {error}") from error
