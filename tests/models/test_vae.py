"""Tiles and chunks: of the size asked for, without seams in time, cut where the reference cuts."""

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from flashvideo_ray.models import vae as module
from flashvideo_ray.models.geometry import Span, decode_chunks, encode_chunks, tile_axis
from flashvideo_ray.models.vae import axis_weights, decode_video, encode_video, resize_frames, split_convolutions


def tiny_vae(ratio: int = 4) -> AutoencoderKLCogVideoX:
    torch.manual_seed(0)
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        temporal_compression_ratio=ratio,
    ).eval()


def test_two_halves_overlap_as_in_the_reference():
    """1072x1920: 240 latent columns, tiles [0, 136) and [104, 240)."""
    assert tile_axis(240, 2) == [Span(0, 136, 0, 120), Span(104, 240, 120, 240)]
    # An extension that would leave the frame is not made at all.
    assert tile_axis(30, 2) == [Span(0, 15, 0, 15), Span(15, 30, 15, 30)]


@pytest.mark.parametrize("blend", [False, True])
@pytest.mark.parametrize(("size", "tiles"), [(240, 2), (134, 3), (34, 2), (33, 2), (9, 4), (5, 1)])
def test_tile_weights_sum_to_one(size, tiles, blend):
    spans = tile_axis(size, tiles)
    total = torch.zeros(size * 2)
    for span, weights in zip(spans, axis_weights(spans, 2, blend), strict=True):
        total[span.start * 2 : span.stop * 2] += weights
    torch.testing.assert_close(total, torch.ones(size * 2))


def test_chunks_are_those_of_the_reference():
    def lengths(chunks):
        return [stop - start for start, stop in chunks]

    assert lengths(encode_chunks(49, 16)) == [17, 16, 16]
    assert lengths(encode_chunks(33, 8)) == [9, 8, 8, 8]
    assert lengths(encode_chunks(9, 16)) == [9]
    assert lengths(decode_chunks(13)) == [3, 2, 2, 2, 2, 2]
    assert lengths(decode_chunks(1)) == [1]
    assert lengths(decode_chunks(4)) == [2, 2]


@pytest.mark.parametrize("tiles", [(1, 1), (1, 2), (2, 3), (5, 7)])
@pytest.mark.parametrize("blend", [False, True])
def test_a_decode_has_the_size_of_its_latents(tiles, blend):
    frames = decode_video(tiny_vae(), torch.randn(2, 3, 4, 5, 7), tiles=tiles, blend=blend)
    assert frames.shape == (2, 9, 3, 40, 56)
    assert frames.min() >= 0
    assert frames.max() <= 1


def test_blending_a_constant_changes_nothing_and_cutting_is_local():
    """Where tiles agree the two ways of joining them agree; elsewhere only the overlap differs."""
    vae, latents = tiny_vae(), torch.randn(1, 1, 4, 4, 50)
    cut = decode_video(vae, latents, tiles=(1, 2))
    blended = decode_video(vae, latents, tiles=(1, 2), blend=True)
    same = (cut == blended).all(dim=(0, 1, 2, 3))
    overlap = slice((25 - 16) * 8, (25 + 16) * 8)
    assert not same[overlap].all()
    same[overlap] = True
    assert same.all()


@pytest.mark.parametrize("ratio", [1, 4])
def test_encoding_and_decoding_keep_length_and_size(ratio):
    vae = tiny_vae(ratio)
    video = torch.rand(1, 9, 3, 20, 30)
    moments = encode_video(vae, video, (40, 56))
    assert moments.shape == (1, 9 if ratio == 1 else 3, 8, 5, 7)
    assert decode_video(vae, moments[:, :, :4]).shape == (1, 9, 3, 40, 56)


@pytest.mark.parametrize(("size", "axis"), [((3, 50), -1), ((50, 3), -2)])
def test_a_decode_in_tiles_is_its_parts_side_by_side(size, axis):
    vae, latents = tiny_vae(), torch.randn(1, 3, 4, *size)
    parts = [
        decode_video(vae, latents.narrow(axis, span.start, span.stop - span.start)).narrow(
            axis, 8 * (span.own_start - span.start), 8 * (span.own_stop - span.own_start)
        )
        for span in tile_axis(50, 2)
    ]
    tiles = (1, 2) if axis == -1 else (2, 1)
    assert torch.equal(decode_video(vae, latents, tiles=tiles), torch.cat(parts, dim=axis))


def test_an_encode_in_tiles_is_its_parts_side_by_side():
    vae, video = tiny_vae(), torch.rand(1, 9, 3, 64, 272)
    parts = [
        encode_video(vae, video[..., 8 * span.start : 8 * span.stop])[
            ..., span.own_start - span.start : span.own_stop - span.start
        ]
        for span in tile_axis(34, 2)
    ]
    assert torch.equal(encode_video(vae, video, tiles=(1, 2)), torch.cat(parts, dim=-1))
    assert encode_video(vae, video[:, :5, :, :24, :16], tiles=(3, 2)).shape == (1, 2, 8, 3, 2)  # a latent pixel each


def test_a_chunk_of_an_encode_knows_the_chunks_before_it_alone():
    vae, video = tiny_vae(), torch.rand(1, 17, 3, 24, 32)
    chunked = encode_video(vae, video, chunk_frames=4)
    assert torch.equal(chunked[:, :2], encode_video(vae, video[:, :5], chunk_frames=4))
    other = torch.cat([torch.rand(1, 5, 3, 24, 32), video[:, 5:]], dim=1)  # another past
    assert not torch.equal(chunked[:, 2:3], encode_video(vae, other, chunk_frames=4)[:, 2:3])
    assert not torch.equal(chunked, encode_video(vae, video))


def test_upsampling_keeps_the_mean_and_the_range():
    video = torch.rand(1, 2, 3, 16, 30)
    resized = resize_frames(video, (67, 120))
    assert resized.shape == (1, 2, 3, 67, 120)
    assert resized.min() >= -1
    assert resized.max() <= 1
    assert resized.mean().item() == pytest.approx(2 * video.mean().item() - 1, abs=1e-2)


def test_convolutions_in_parts_compute_the_same(monkeypatch):
    vae, latents, video = tiny_vae(), torch.randn(1, 5, 4, 3, 4), torch.rand(1, 17, 3, 24, 32)
    decoded, encoded = decode_video(vae, latents), encode_video(vae, video)
    split_convolutions(vae)
    monkeypatch.setattr(module, "PART_ELEMENTS", 1)  # one frame at a time
    torch.testing.assert_close(decode_video(vae, latents), decoded, atol=1e-5, rtol=0)
    torch.testing.assert_close(encode_video(vae, video), encoded, atol=1e-5, rtol=0)


def test_what_the_vae_cannot_hold_is_refused():
    vae = tiny_vae()
    for frames, message in ((torch.rand(1, 8, 3, 16, 16), "4k"), (torch.rand(1, 9, 3, 12, 16), "multiples of 8")):
        with pytest.raises(ValueError, match=message):
            encode_video(vae, frames)
    with pytest.raises(ValueError, match="odd number"):
        decode_video(vae, torch.randn(1, 4, 4, 2, 2))
    for tiles, blend in (((3, 2), False), ((5, 1), True)):
        with pytest.raises(ValueError, match="of tiles do not fit"):
            decode_video(vae, torch.randn(1, 1, 4, 20 if blend else 2, 2), tiles=tiles, blend=blend)
    with pytest.raises(ValueError, match="of tiles do not fit"):
        encode_video(vae, torch.rand(1, 1, 3, 16, 16), tiles=(3, 1))
    with pytest.raises(ValueError, match="chunk_frames"):
        encode_video(vae, torch.rand(1, 9, 3, 16, 16), chunk_frames=6)
