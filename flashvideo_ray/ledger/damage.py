"""What is wrong with the bytes of a clip, a preview, latents or a poster: a message, or None."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import safetensors
from PIL import Image

from flashvideo_ray.media import credentials, video

Check = Callable[[bytes], str | None]


OTHER_BYTES = "its sha256 is not the one in its row"


def fault_of(key: str, clip_id: str, trust: str | None = None) -> Check:
    """The check for an object of that name."""
    if key.endswith(".mp4"):
        return partial(video_fault, clip_id=clip_id, trust=trust)
    if key.endswith(".mkv"):
        return partial(frames_fault, clip_id=clip_id)
    return latents_fault if key.endswith(".safetensors") else image_fault


def clip_fault(data: bytes, row: Mapping[str, Any], trust: str | None = None) -> str | None:
    """As `video_fault`, and whether the bytes and the declared size, frames and rate are those of a clips row.

    Bytes that are those of the row are no damage, whatever has become of their signature.
    """
    if row["sha256"] is not None and hashlib.sha256(data).hexdigest() != row["sha256"]:
        return signature_fault(data, row["clip_id"], trust) or OTHER_BYTES
    declared = {name: row[name] for name in ("frames", "height", "width", "fps") if row[name] is not None}
    return video_fault(data, row["clip_id"], **declared)


def is_signed_anew(data: bytes, row: Mapping[str, Any], trust: str | None) -> bool:
    """Whether bytes that are not those of a clips row are its clip all the same: the same stream, under a signature
    that holds. A process that lost its run, say, has stored it once more, and no two signatures are alike.
    """
    same = row.get("stream_sha256") is not None and video.stream_sha256(data) == row["stream_sha256"]
    signature = credentials.read(data, trust) if same and trust is not None else None
    return signature is not None and signature_fault(data, row["clip_id"], trust) is None


def signature_fault(data: bytes, clip_id: str, trust: str | None) -> str | None:
    """What is wrong with the signature of a video, if it has one and there is something to trust."""
    signature = credentials.read(data, trust) if trust is not None else None
    if signature is None:
        return None
    if not signature.intact:
        return f"it is not what was signed: {', '.join(signature.faults)}"
    if not signature.holds:
        return f"its signature does not hold: {', '.join(signature.faults)}"
    if not signature.trusted:
        return f"it is signed with a certificate that is not trusted: {signature.signer}"
    if signature.says.get("clip_id") != clip_id:
        return f"its signed manifest names the candidate {signature.says.get('clip_id')}"
    return None


def video_fault(data: bytes, clip_id: str, trust: str | None = None, **declared: float) -> str | None:
    """Decode a video all through; it must name its candidate, and have the declared frames, height, width and fps.

    Where it is signed and there is something to trust, it must be what was signed.
    """
    if (signature := credentials.read(data, trust) if trust is not None else None) and not signature.intact:
        return signature_fault(data, clip_id, trust)
    try:
        info = video.probe(data, count=True)
    except ValueError as error:
        return str(error)
    if info.metadata.get("clip_id") != clip_id:
        return f"its metadata name the candidate {info.metadata.get('clip_id')}"
    # An MP4 keeps its frame rate as a fraction.
    differ = [f"{k} is {getattr(info, k)}, not {v}" for k, v in declared.items() if abs(getattr(info, k) - v) > 1e-3]
    return "; ".join(differ) or None


def frames_fault(data: bytes, clip_id: str) -> str | None:
    """Decode frames that are kept without loss: all of them must be there, and name their candidate."""
    try:
        _, info = video.decode_lossless(data)
    except ValueError as error:
        return str(error)
    named = info.metadata.get("clip_id")
    return None if named == clip_id else f"its metadata name the candidate {named}"


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
