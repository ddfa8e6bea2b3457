"""The stage that takes stage 1's place where previews exist already: fetch, check, hash, keep.

It needs no card and no model. What is wrong with a file ends its row, and no other.
"""

from __future__ import annotations

import hashlib
import platform
import socket
import time
from collections.abc import Mapping
from typing import Any

import cv2
import fsspec
import numpy as np
import torch
from safetensors.torch import save as pack

from flashvideo_ray import engines
from flashvideo_ray.graph import handover, stages
from flashvideo_ray.graph.events import StageEvents
from flashvideo_ray.graph.stage_base import StageBase
from flashvideo_ray.ledger.keys import frames_key
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.media import video
from flashvideo_ray.prompts import PREVIEW_URL
from flashvideo_ray.settings import Settings

_PAUSES = (1.0, 5.0)  # seconds between tries of a server that is away
_FINAL = (FileNotFoundError, IsADirectoryError, PermissionError, ValueError, ImportError)  # not otherwise in a moment
_SHA256 = "preview_sha256"


class PreviewError(ValueError):
    """A preview that was to be there is not, or is none that this run can use. The message begins with its URL."""


class PreviewChangedError(PreviewError):
    """A preview is not the file any more that the run has fetched before."""


class Fetch(StageBase):
    """Files at URLs to low-resolution frames, kept without loss."""

    name = "preview"
    gated = True
    device_name = f"cpu ({platform.machine()})"

    def __init__(self, settings: Settings, events: StageEvents, store: Store, fingerprints: Mapping[str, str]):
        self.store = store
        super().__init__(settings, events, store)

    def load(self) -> None:
        """What the previews are to be like."""
        self.fps = engines.fps_of(self.settings) or 0.0
        self.refiner = engines.of(self.settings, "refine")

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Rows without a preview."""
        return row["status"] == "open"

    def process(self, row: dict[str, Any]) -> dict[str, Any]:
        """Adds `preview_latents`, `preview_frames`, `preview_sha256` and `preview_seconds` (null: fetched before)."""
        key, started = frames_key(row["clip_id"]), time.perf_counter()
        kept = self._kept(key)
        with self.device(row):
            frames, sha256 = self._fetched(row) if kept is None else kept
            seconds = time.perf_counter() - started
        packed = handover.packed(frames, row, self.fps, {_SHA256: sha256})
        if kept is None:
            self.store.put(key, packed)
        return {
            "latents": key,
            "preview_latents": packed,
            "preview_frames": pack({"frames": torch.from_numpy(frames)}),
            _SHA256: sha256,
            "preview_seconds": seconds if kept is None else None,
            "device": self.device_name,
            "host": socket.gethostname(),
        }

    def _kept(self, key: str) -> tuple[video.Frame, str] | None:
        """What a job that died has stored before the ledger had its row. What is damaged is fetched anew."""
        if not self.store.exists(key):
            return None
        try:
            frames, info = video.decode_lossless(self.store.get(key))
            return frames, info.metadata[_SHA256]
        except (ValueError, KeyError):
            return None

    def _fetched(self, row: Mapping[str, Any]) -> tuple[video.Frame, str]:
        """Frames that stage 2 takes, and the digest of the file that they are from. Raises PreviewError."""
        url = row.get(PREVIEW_URL)
        if url is None:
            raise PreviewError(f"this run fetches its previews, and there is no {PREVIEW_URL} to fetch this one from")
        data = read(url)
        sha256 = hashlib.sha256(data).hexdigest()
        if row[_SHA256] is not None and row[_SHA256] != sha256:
            raise PreviewChangedError(
                f"{url}: it is not the file any more that this run has fetched (sha256 {sha256}, and {row[_SHA256]} "
                "then); bring that one back, or give the new one an OUTPUT of its own"
            )
        try:
            frames, info = video.decode_mp4(data)
            declared = video.probe(data).frames
        except ValueError as error:
            raise PreviewError(f"{url}: {error}") from error
        if len(frames) < declared:
            raise PreviewError(f"{url}: it is cut off: {len(frames)} of {declared} frames can be read")
        own = self.settings.preview
        asked = own.num_frames, own.height, own.width
        if own.resample:
            frames = resampled(frames, info.fps, self.fps, *asked)
        elif abs(info.fps - self.fps) > 1e-2:
            raise PreviewError(
                f"{url}: it has {info.fps:g} frames a second, and video.fps asks for {self.fps:g}; "
                "preview.resample: true takes those that are nearest in time"
            )
        self._check(url, frames, asked)
        return frames, sha256

    def _check(self, url: str, frames: video.Frame, asked: tuple[int | None, int | None, int | None]) -> None:
        named = zip(("num_frames", "height", "width"), frames.shape, asked, strict=False)
        wrong = [f"{name} is {found}, and preview.{name} asks for {wanted}" for name, found, wanted in named
                 if wanted is not None and found != wanted]  # fmt: skip
        count, height, width = frames.shape[:3]
        if not wrong and (height % 2 or width % 2):
            wrong = [f"{height}x{width} cannot be encoded; both must be even"]
        if not wrong and (why := self.refiner.refusal(count, height, width)) is not None:
            wrong = [f"refine.model ({self.settings.refine.model}) cannot take it: {why}"]
        if wrong:
            raise PreviewError(f"{url}: {'; '.join(wrong)}")


def stage_1(settings: Settings) -> type[Fetch] | type[stages.Preview]:
    """The class that makes previews, or fetches them; both are made of the same."""
    return Fetch if settings.preview.model == engines.EXISTING else stages.Preview


def read(url: str) -> bytes:
    """The bytes at any fsspec URL, with some patience. Raises PreviewError."""
    for pause in (*_PAUSES, None):
        try:
            fs, path = fsspec.core.url_to_fs(url)
            return bytes(fs.cat_file(path))
        except Exception as error:  # each file system has its own
            if pause is None or isinstance(error, _FINAL):
                said = (
                    "there is no such file"
                    if isinstance(error, FileNotFoundError)
                    else f"{type(error).__name__}: {error}"
                )
                raise PreviewError(f"{url}: {said}") from error
            time.sleep(pause)
    raise AssertionError


def resampled(
    frames: video.Frame, fps: float, to_fps: float, num_frames: int | None, height: int | None, width: int | None
) -> video.Frame:
    """Frames at another rate (those nearest in time), of another length (the first ones) and size.

    A video that is too short stays so. None: as it is.
    """
    if fps != to_fps:
        times = np.arange(max(1, round(len(frames) * to_fps / fps))) / to_fps
        frames = frames[np.minimum(np.rint(times * fps).astype(int), len(frames) - 1)]
    frames = frames[:num_frames]
    size = height or frames.shape[1], width or frames.shape[2]
    if size == frames.shape[1:3]:
        return frames
    smaller = size[0] < frames.shape[1]
    way = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return np.stack([cv2.resize(frame, size[::-1], interpolation=way) for frame in frames])
