"""Frames to MP4 and back, and posters.

Frames are RGB, uint8, `[frames, height, width, 3]`, or an iterable of `[height, width, 3]` so that a 1080p clip can be
encoded while it is still being decoded from its latents. Nothing here needs torch, Ray or a GPU.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from numpy.typing import NDArray
from PIL import Image

Frame = NDArray[np.uint8]

CODECS = {"libx264": ("crf", "medium"), "h264_nvenc": ("cq", "p5")}  # encoder: its quality option, its default preset
_THREADS = 4  # fixed: libx264's bytes depend on the thread count, so it may not follow the machine's
# x264's macroblock tree gives other bytes, and so other pixels, from run to run when several encoders share a process
# (seen at all sizes; with it off, or without the assembly that computes it, none were seen). It is off so that the same
# candidate is the same clip.
_X264 = {"x264-params": "mbtree=0"}
_BT709 = 1  # the same code point in colour primaries, transfer and matrix
_SWS = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
_XMP_BOX = uuid.UUID("be7acfcb-97a9-42e8-9c71-999491e3afac").bytes  # where XMP stands in an MP4 (ISO 16684-3)
_PIXELS = "PIXELS_SHA256"  # Matroska's keys are in capitals
_BRANDS = {"major_brand", "minor_version", "compatible_brands", "encoder"}  # the muxer's own keys


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says about itself; `frames` is the header's count unless it was decoded."""

    frames: int
    height: int
    width: int
    fps: float
    codec: str
    pixel_format: str
    bytes: int
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Playing time."""
        return self.frames / self.fps


def encode_mp4(
    frames: Iterable[Frame] | Frame,
    fps: float | Fraction,
    *,
    crf: int = 18,
    preset: str | None = None,
    codec: str = "libx264",
    metadata: Mapping[str, str] | None = None,
    xmp: str | None = None,
) -> bytes:
    """Encode frames as an H.264 MP4: yuv420p, BT.709 limited range, index before media (faststart).

    The same frames and options give the same bytes with `libx264`, on any number of cores.

    Args:
        frames: RGB uint8 `[frames, height, width, 3]` or an iterable of `[height, width, 3]`; height and width even.
        fps: frames a second.
        crf: quality, 0 (lossless) to 51; 18 is visually lossless for most material. `cq` of NVENC, which has no 0.
        preset: the encoder's speed preset; `medium` for libx264, `p5` for h264_nvenc when not given.
        codec: `libx264`, or `h264_nvenc` where the GPU has an encoder.
        metadata: written to the file as it is, any keys.
        xmp: an XMP packet to stand at the end of the file.

    Raises:
        ValueError: no frames, an odd height or width, a frame of another size, type or shape, an unknown codec.
        RuntimeError: the encoder cannot be opened here (no GPU encoder, unknown preset).
    """
    if fps <= 0:
        raise ValueError(f"fps must be positive, not {fps}")
    if codec not in CODECS:
        raise ValueError(f"unknown codec {codec!r}: use one of {', '.join(CODECS)}")
    data = bytearray()
    options = {"movflags": "+faststart+use_metadata_tags", "fflags": "+bitexact"}
    # In memory: a clip that was paid for needs no room on a disk of the worker. Faststart opens it a second time.
    with av.open(_Memory(data), "w", format="mp4", options=options, io_open=lambda *_: _Memory(data)) as container:
        container.metadata.update(metadata or {})
        stream = None
        height = width = 0
        for index, pixels in enumerate(frames):
            _check_frame(pixels, index)
            if stream is None:
                height, width = pixels.shape[:2]
                stream = _add_stream(container, codec, fps, height, width, crf, preset)
            if pixels.shape[:2] != (height, width):
                raise ValueError(f"frame {index} is {_size(pixels)}, the frames before it {height}x{width}")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
                interpolation=_SWS,
                threads=1,
            )
            frame.pts = index
            container.mux(stream.encode(frame))
        if stream is None:
            raise ValueError("no frames to encode")
        container.mux(stream.encode())
    if xmp is not None:
        packet = xmp.encode()
        data += struct.pack(">I4s", 8 + len(_XMP_BOX) + len(packet), b"uuid") + _XMP_BOX + packet
    return bytes(data)


def encode_lossless(frames: Frame, fps: float | Fraction, metadata: Mapping[str, str] | None = None) -> bytes:
    """Encode frames without loss: FFV1 in Matroska (RFC 9043), RGB; any height and width. A digest of them is in it.

    `decode_lossless` gives back the same frames. The same frames give the same bytes, of which there are a tenth to a
    half of the frames' own. Keys of the metadata are in small letters. Raises ValueError for no frames and for those
    that are not uint8 `[height, width, 3]`.
    """
    data = bytearray()
    if len(frames) == 0:
        raise ValueError("no frames to encode")
    with av.open(_Memory(data), "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        container.metadata.update({**(metadata or {}), _PIXELS: _digest(frames)})
        stream = container.add_stream(
            "ffv1",
            rate=Fraction(fps).limit_denominator(1001),
            options={"level": "3", "flags": "+bitexact"},
        )
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        stream.codec_context.thread_count = _THREADS
        for index, pixels in enumerate(frames):
            _check_frame(pixels, index)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(format="bgr0")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return bytes(data)


def decode_lossless(data: bytes) -> tuple[Frame, VideoInfo]:
    """What `encode_lossless` was given, as `decode_mp4` gives it. Raises ValueError for what is damaged or cut off."""
    frames, info = decode_mp4(data)
    if info.metadata.get(_PIXELS) != _digest(frames):  # the decoder conceals what is damaged
        raise ValueError("the frames are not those that were kept: the file is damaged or cut off")
    return frames, replace(info, metadata={key.lower(): value for key, value in info.metadata.items()})


def _digest(frames: Frame) -> str:
    return hashlib.sha256(np.ascontiguousarray(frames).data).hexdigest()


class _Memory(io.RawIOBase):
    """A file that is a bytearray; several may be open on one, each at a place of its own."""

    def __init__(self, data: bytearray):
        self._data = data
        self._at = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._data[self._at : self._at + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def write(self, piece: Any) -> int:
        self._data.extend(bytes(max(0, self._at - len(self._data))))
        self._data[self._at : self._at + len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        return self._at


def _add_stream(
    container: Any, codec: str, fps: float | Fraction, height: int, width: int, crf: int, preset: str | None
) -> Any:
    if height % 2 or width % 2:
        raise ValueError(f"frames of {height}x{width} cannot be encoded: yuv420p needs an even height and width")
    options = encoder_options(codec, crf, preset)
    try:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        context = stream.codec_context
        context.height, context.width, context.pix_fmt = height, width, "yuv420p"
        context.thread_count = _THREADS
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = ColorRange.MPEG.value
        context.open()
    except (av.FFmpegError, ValueError) as error:
        raise RuntimeError(f"encoder {codec} (preset {options['preset']}) cannot be opened here: {error}") from error
    return stream


def encoder_options(codec: str, crf: int, preset: str | None) -> dict[str, str]:
    """What FFmpeg's encoder is given. Raises ValueError for a quality that it does not have."""
    if codec == "h264_nvenc" and not crf:
        raise ValueError("crf 0 is lossless with libx264 and no target at all with h264_nvenc: give 1 to 51")
    quality, default_preset = CODECS[codec]
    options = {quality: str(crf), "preset": preset or default_preset, "flags": "+bitexact"}
    # NVENC has `cq` in its mode `vbr` alone. FFmpeg (libavcodec/nvenc.c) then drops the 2 Mbit/s that it would aim at;
    # it takes that mode by itself where none is named, but for versions that leave it to the preset.
    return options | (_X264 if codec == "libx264" else {"rc": "vbr"})


def check_encoder(codec: str, preset: str | None = None) -> None:
    """Open the encoder once on a small grey picture.

    Raises:
        ValueError: unknown codec.
        RuntimeError: the encoder cannot be opened here, with FFmpeg's reason.
    """
    encode_mp4(np.full((1, 256, 256, 3), 128, np.uint8), 8, codec=codec, preset=preset)


@contextmanager
def _open(source: bytes | str | os.PathLike[str]) -> Iterator[tuple[Any, Any, int]]:
    """The container, its first video stream and the size in bytes; FFmpeg's errors become ValueError."""
    try:
        size = len(source) if isinstance(source, bytes) else os.stat(source).st_size
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)) as container:
            if not container.streams.video:
                raise ValueError("the file has no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise ValueError("not a readable video: it does not say how it is encoded")
            yield container, stream, size
    except av.FFmpegError as error:
        raise ValueError(f"not a readable video: {error}") from error


def _info(container: Any, stream: Any, size: int, frames: int) -> VideoInfo:
    if stream.average_rate is None:
        raise ValueError("not a readable video: it does not say how fast it is")
    context = stream.codec_context
    return VideoInfo(
        frames=frames,
        height=context.height,
        width=context.width,
        fps=float(stream.average_rate),
        codec=context.codec.canonical_name,
        pixel_format=context.pix_fmt,
        bytes=size,
        metadata={key: value for key, value in container.metadata.items() if key not in _BRANDS},
    )


def decode_mp4(source: bytes | str | os.PathLike[str]) -> tuple[Frame, VideoInfo]:
    """Decode a video file's bytes, or the file at a local path.

    Returns:
        RGB uint8 `[frames, height, width, 3]` by the file's own colour matrix, and what the file says about itself.

    Raises:
        ValueError: the file is no video or is damaged.
        FileNotFoundError: no file at that path.
    """
    with _open(source) as (container, stream, size):
        pictures = [frame.to_ndarray(format="rgb24", interpolation=_SWS) for frame in container.decode(stream)]
        if not pictures:
            raise ValueError("not a readable video: it has no frames")
        return np.stack(pictures), _info(container, stream, size, len(pictures))


def probe(source: bytes | str | os.PathLike[str], *, count: bool = False) -> VideoInfo:
    """Read a video's header; with `count`, decode it all: there are as many frames as it says.

    Raises:
        ValueError: the file is no video, or (with `count`) is damaged.
        FileNotFoundError: no file at that path.
    """
    with _open(source) as (container, stream, size):
        info = _info(container, stream, size, stream.frames)
        if count and (decoded := sum(1 for _ in container.decode(stream))) != info.frames:
            raise ValueError(f"not a readable video: {decoded} of {info.frames} frames can be decoded")
        return info


def stream_sha256(source: bytes | str | os.PathLike[str]) -> str:
    """A hex digest of the video stream alone: equal for equal pictures, whatever the container says or is signed with.

    It is of the packets' payload in their order, as `ffmpeg -i FILE -map 0:v -c copy -f hash -hash sha256 -` has it.

    Raises:
        ValueError: the file is no video or is damaged.
        FileNotFoundError: no file at that path.
    """
    digest = hashlib.sha256()
    with _open(source) as (container, stream, _):
        for packet in container.demux(stream):
            digest.update(packet)
    return digest.hexdigest()


def digests(mp4: bytes) -> dict[str, Any]:
    """What the ledger records of a clip's bytes: `bytes`, `sha256` and `stream_sha256`. Raises ValueError."""
    return {"bytes": len(mp4), "sha256": hashlib.sha256(mp4).hexdigest(), "stream_sha256": stream_sha256(mp4)}


def poster_jpeg(frames: Frame, *, max_side: int = 640, quality: int = 85) -> bytes:
    """A JPEG of one representative frame: the one with most detail out of nine spread over the clip.

    Args:
        frames: RGB uint8 `[frames, height, width, 3]`.
        max_side: larger pictures are scaled down to this many pixels on their longer side.
        quality: JPEG quality, 1 to 95.
    """
    if len(frames) == 0:
        raise ValueError("no frames to make a poster of")
    spread = np.unique(np.linspace(0, len(frames) - 1, num=9).round().astype(int))
    return _jpeg(_shrink(frames[max(spread, key=lambda index: _detail(frames[index]))], max_side), quality)


def contact_sheet(posters: Sequence[bytes], *, width: int = 960, quality: int = 80) -> bytes:
    """One JPEG of up to nine others, three in a row, each scaled to a third of `width` pixels."""
    side = width // 3
    pictures = [Image.open(io.BytesIO(poster)).convert("RGB") for poster in posters[:9]]
    height = max(round(picture.height * side / picture.width) for picture in pictures)
    sheet = Image.new("RGB", (min(3, len(pictures)) * side, -(-len(pictures) // 3) * height))
    for number, picture in enumerate(pictures):
        sheet.paste(picture.resize((side, height)), (number % 3 * side, number // 3 * height))
    return _jpeg(sheet, quality)


def _shrink(frame: Frame, max_side: int) -> Image.Image:
    picture = Image.fromarray(frame)
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return picture


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality, optimize=True)
    return out.getvalue()


def _detail(frame: Frame) -> float:
    return float(cv2.Laplacian(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.CV_32F).var())


def _check_frame(frame: Frame, index: int) -> None:
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        found = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ValueError(f"frame {index} must be uint8 [height, width, 3], not {found}")


def _size(frame: Frame) -> str:
    return f"{frame.shape[0]}x{frame.shape[1]}"
