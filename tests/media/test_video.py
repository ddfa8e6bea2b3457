"""Frames become MP4s that any player understands, and come back as they were."""

import io
import resource
from contextlib import suppress
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image
from support import boxes

from flashvideo_ray.media import video

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 120, 40), (30, 140, 220)]


def noise_clip(frames: int = 9, height: int = 48, width: int = 80) -> np.ndarray:
    """Smooth random pictures, each frame another one."""
    rng = np.random.default_rng(7)
    small = rng.integers(0, 256, (frames, height // 8, width // 8, 3), dtype=np.uint8)
    pictures = [Image.fromarray(s).resize((width, height), Image.Resampling.BICUBIC) for s in small]
    return np.stack([np.asarray(picture) for picture in pictures])


def colour_bars(height: int = 64, bar: int = 64) -> np.ndarray:
    return np.concatenate([np.full((height, bar, 3), colour, np.uint8) for colour in COLOURS], axis=1)


def test_frames_come_back():
    clip = noise_clip()
    frames, info = video.decode_mp4(video.encode_mp4(clip, 8))
    assert frames.shape == clip.shape
    assert frames.dtype == np.uint8
    assert np.abs(frames.astype(int) - clip).mean() < 6  # chroma is stored at half the resolution
    assert (info.frames, info.height, info.width, info.fps) == (9, 48, 80, 8.0)
    assert (info.codec, info.pixel_format, info.seconds) == ("h264", "yuv420p", 9 / 8)


def test_colours_are_converted_with_the_matrix_they_are_tagged_with():
    data = video.encode_mp4([colour_bars()] * 3, 8, crf=10)
    with av.open(io.BytesIO(data)) as container:
        context = container.streams.video[0].codec_context
        assert (context.color_primaries, context.color_trc, context.colorspace, context.color_range) == (1, 1, 1, 1)
        luma = next(container.decode(video=0)).to_ndarray()[:64]
    frames, _ = video.decode_mp4(data)
    for index, colour in enumerate(COLOURS):
        np.testing.assert_allclose(frames[1, 32, index * 64 + 32], colour, atol=4)
        expected = 16 + 219 / 255 * np.dot(colour, (0.2126, 0.7152, 0.0722))  # BT.709, limited range
        assert luma[32, index * 64 + 32] == pytest.approx(expected, abs=2)


def test_index_stands_before_the_media():
    assert [name for name in boxes(video.encode_mp4(noise_clip(), 8)) if name in ("moov", "mdat")] == ["moov", "mdat"]


def test_same_frames_give_the_same_bytes_streamed_or_not():
    clip = noise_clip()
    data = video.encode_mp4(clip, 8, metadata={"seed": "1"})
    assert data == video.encode_mp4(clip, 8, metadata={"seed": "1"})
    assert data == video.encode_mp4((frame for frame in clip), 8, metadata={"seed": "1"})
    assert data == video.encode_mp4(clip[:, :, ::-1][:, :, ::-1], 8, metadata={"seed": "1"})  # not contiguous


def ffmpegs_own_hash(data: bytes) -> str:
    """Of the stream's packets, as FFmpeg's hash muxer writes it."""
    out = io.BytesIO()
    with (
        av.open(io.BytesIO(data)) as container,
        av.open(out, "w", format="hash", options={"hash": "sha256"}) as sink,
    ):
        copied = sink.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.dts is not None:
                packet.stream = copied
                sink.mux(packet)
    return out.getvalue().decode().strip().removeprefix("SHA256=")


def test_the_streams_hash_is_of_the_pictures_and_not_of_what_the_file_says_of_them():
    clip = noise_clip()
    plain, told = (video.encode_mp4(clip, 8, **more) for more in ({}, {"metadata": {"seed": "1"}, "xmp": "<x/>"}))
    assert plain != told
    assert video.stream_sha256(plain) == video.stream_sha256(told) == ffmpegs_own_hash(told)
    other = clip.copy()
    other[3, 8:24, 8:24] = 255
    assert video.stream_sha256(video.encode_mp4(other, 8)) != video.stream_sha256(plain)
    with pytest.raises(ValueError, match="not a readable video"):
        video.stream_sha256(b"no video")


def test_an_xmp_packet_stands_at_the_end_where_readers_of_metadata_find_it():
    data = video.encode_mp4(noise_clip(), 8, xmp="<x>ü</x>")
    assert boxes(data)[-1] == "uuid"
    assert boxes(data).index("moov") < boxes(data).index("mdat")
    with av.open(io.BytesIO(data), options={"export_xmp": "1"}) as container:
        assert container.metadata["xmp"] == "<x>ü</x>"


def test_metadata_is_kept_word_for_word():
    metadata = {
        "prompt": "a “long” prompt;\nwith = signs, ü 🎬 " + "x" * 4000,
        "seed": "12",
        "flashvideo_clip_id": "ab",
    }
    assert video.probe(video.encode_mp4(noise_clip(2), 8, metadata=metadata)).metadata == metadata


@pytest.mark.parametrize(("fps", "expected"), [(8, 8.0), (24, 24.0), (Fraction(30000, 1001), 29.97), (23.976, 23.976)])
def test_rates(fps, expected):
    assert video.probe(video.encode_mp4(noise_clip(3), fps)).fps == pytest.approx(expected, abs=1e-3)


def test_one_frame_is_a_clip(tmp_path):
    (tmp_path / "one.mp4").write_bytes(video.encode_mp4(noise_clip(1), 8))
    frames, info = video.decode_mp4(tmp_path / "one.mp4")
    assert (len(frames), info.frames, info.bytes) == (1, 1, (tmp_path / "one.mp4").stat().st_size)


def test_probe_counts_frames_that_really_decode():
    data = video.encode_mp4(noise_clip(30, 96, 160), 8, crf=1)
    assert video.probe(data).frames == video.probe(data, count=True).frames == 30
    half = data[: len(data) // 2]
    assert video.probe(half).frames == 30  # what the header says
    with pytest.raises(ValueError, match="not a readable video"):
        video.probe(half, count=True)


def test_a_file_of_which_a_part_was_not_written_is_no_video():
    """As a machine that lost its power leaves it: of full size, with zeros at the end, or too short."""
    data = video.encode_mp4(noise_clip(3, 48, 80), 8)
    whole = video.probe(data, count=True)
    for cut in range(0, len(data) - 1, 7):
        for torn in (data[:cut] + bytes(len(data) - cut), data[:cut]):
            with suppress(ValueError):  # or nothing is missing but of its metadata
                assert video.probe(torn, count=True).frames == whole.frames


def test_small_clips_encode_at_the_size_of_the_nano_model():
    assert video.probe(video.encode_mp4(noise_clip(5, 48, 80), 8)).height == 48


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((2, 47, 80, 3), np.uint8), "47x80.*even"),
        (np.zeros((2, 48, 81, 3), np.uint8), "48x81.*even"),
        (np.zeros((0, 48, 80, 3), np.uint8), "no frames"),
        (np.zeros((2, 48, 80, 3), np.float32), "frame 0 must be uint8.*float32"),
        (np.zeros((2, 3, 48, 80), np.uint8), "frame 0 must be uint8"),
        ([np.zeros((48, 80, 3), np.uint8), np.zeros((48, 82, 3), np.uint8)], "frame 1 is 48x82"),
    ],
)
def test_frames_that_cannot_be_encoded(frames, message):
    with pytest.raises(ValueError, match=message):
        video.encode_mp4(frames, 8)


def test_encoder_choice():
    video.check_encoder("libx264")
    with pytest.raises(ValueError, match="libx264, h264_nvenc"):
        video.check_encoder("libx265")
    with pytest.raises(RuntimeError, match=r"libx264.*preset warp"):
        video.check_encoder("libx264", preset="warp")


def test_nvenc_knows_all_options_that_it_is_given():
    """FFmpeg reads them before it looks for a card, and passes over names that it does not know."""

    def refused(options):
        context = av.CodecContext.create("h264_nvenc", "w")
        context.width = context.height = 256
        context.pix_fmt, context.time_base, context.options = "yuv420p", Fraction(1, 8), options
        try:
            context.open()
        except (av.error.ArgumentError, OverflowError):
            return True
        except av.FFmpegError:
            return False  # there is no card
        return False

    given = video.encoder_options("h264_nvenc", 18, None)
    assert not refused(given)
    assert [name for name in given if not refused(given | {name: "nonsense"})] == []
    assert refused(given | {"cq": "99"})


def test_nvenc_is_asked_for_a_quality_that_it_has():
    assert video.encoder_options("h264_nvenc", 1, None)["cq"] == "1"
    with pytest.raises(ValueError, match="no target at all with h264_nvenc: give 1 to 51"):
        video.encode_mp4(noise_clip(), 8, crf=0, codec="h264_nvenc")  # 0 would be FFmpeg's own choice
    assert video.decode_mp4(video.encode_mp4(noise_clip(), 8, crf=0))[1].frames == 9


@pytest.mark.parametrize("data", [b"", b"no video at all" * 100])
def test_files_that_are_no_video(data, tmp_path):
    with pytest.raises(ValueError, match="not a readable video"):
        video.decode_mp4(data)
    with pytest.raises(FileNotFoundError):
        video.probe(tmp_path / "none.mp4")


def test_poster_avoids_empty_frames_and_keeps_proportions():
    clip = np.zeros((9, 480, 800, 3), np.uint8)
    clip[6] = noise_clip(1, 480, 800)[0]
    poster = Image.open(io.BytesIO(video.poster_jpeg(clip, max_side=400)))
    assert (poster.format, poster.size) == ("JPEG", (400, 240))
    assert np.asarray(poster).std() > 20
    assert Image.open(io.BytesIO(video.poster_jpeg(noise_clip(3)))).size == (80, 48)  # never enlarged


def test_a_clip_is_encoded_without_a_byte_on_disk():
    clip = noise_clip()
    expected = video.encode_mp4(clip, 8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # the kernel refuses to let any file grow
    try:
        encoded = video.encode_mp4(clip, 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert encoded == expected


def test_frames_that_are_kept_without_loss_come_back_as_they_were_or_not_at_all() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (9, 35, 49, 3), dtype=np.uint8)  # of an odd size
    kept = video.encode_lossless(frames, 8, {"clip_id": "abc"})
    assert kept == video.encode_lossless(frames, 8, {"clip_id": "abc"})
    again, info = video.decode_lossless(kept)
    assert np.array_equal(again, frames)
    assert (info.codec, info.fps, info.metadata["clip_id"]) == ("ffv1", 8, "abc")
    flipped = bytearray(kept)
    flipped[len(kept) // 2] ^= 1
    for damaged in (bytes(flipped), kept[:-500], kept[:100]):
        with pytest.raises(ValueError, match=r"damaged or cut off|not a readable video"):
            video.decode_lossless(damaged)
