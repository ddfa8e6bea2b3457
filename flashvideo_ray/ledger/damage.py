"""What is wrong with the bytes of a clip, a preview, latents or a poster: a message, or None."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import safetensors
from PIL import Image

from flashvideo_ray import video

Check = Callable[[bytes], str | None]


def fault_of(key: str, clip_id: str) -> Check:
    """The check for an object of that name."""
    if key.endswith(".mp4"):
        return partial(video_fault, clip_id=clip_id)
    return latents_fault if key.endswith(".safetensors") else image_fault


def clip_fault(data: bytes, row: Mapping[str, Any]) -> str | None:
    """As `video_fault`, and whether the bytes and the declared size, frames and rate are those of a clips row."""
    if row["sha256"] is not None and hashlib.sha256(data).hexdigest() != row["sha256"]:
        return "its sha256 is not the one in its row"
    declared = {name: row[name] for name in ("frames", "height", "width", "fps") if row[name] is not None}
    return video_fault(data, row["clip_id"], **declared)


def video_fault(data: bytes, clip_id: str, **declared: float) -> str | None:
    """Decode a video all through; it must name its candidate, and have the declared frames, height, width and fps."""
    try:
        info = video.probe(data, count=True)
    except ValueError as error:
        return str(error)
    if info.metadata.get("clip_id") != clip_id:
        return f"its metadata name the candidate {info.metadata.get('clip_id')}"
    # An MP4 keeps its frame rate as a fraction.
    differ = [f"{k} is {getattr(info, k)}, not {v}" for k, v in declared.items() if abs(getattr(info, k) - v) > 1e-3]
    return "; ".join(differ) or None


def latents_fault(data: bytes) -> str | None:
    """Read the safetensors header; its offsets must fit the file. Flipped bits in the numbers are not seen."""
    try:
        return None if "latents" in dict(safetensors.deserialize(data)) else "it holds no latents"
    except safetensors.SafetensorError as error:
        return f"not readable safetensors: {error}"


def image_fault(data: bytes) -> str | None:
    """Decode a picture."""
    try:
        Image.open(io.BytesIO(data)).load()
    except (OSError, SyntaxError, ValueError) as error:
        return f"not a readable picture: {error}"
    return None
