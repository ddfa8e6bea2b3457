"""Where things are in a run directory, relative to OUTPUT."""

from __future__ import annotations


def preview_key(clip_id: str) -> str:
    """Where a candidate's preview MP4 is, relative to OUTPUT."""
    return f"previews/{clip_id[:2]}/{clip_id}.mp4"


def latents_key(clip_id: str) -> str:
    """Where a candidate's stage-1 latents are, relative to OUTPUT."""
    return f"latents/{clip_id[:2]}/{clip_id}.safetensors"


def frames_key(clip_id: str) -> str:
    """Where the frames of a preview are kept without loss, in the place of latents, relative to OUTPUT."""
    return f"latents/{clip_id[:2]}/{clip_id}.mkv"


def clip_key(clip_id: str) -> str:
    """Where a candidate's clip is, relative to OUTPUT."""
    return f"clips/{clip_id[:2]}/{clip_id}.mp4"


def poster_key(video_key: str) -> str:
    """Where the poster of a preview or clip is, relative to OUTPUT."""
    return video_key.removesuffix(".mp4") + ".jpg"
