"""What the networks can make, at the edge of each limit; the models refuse what is refused here, and nothing else."""

import pytest
import torch

from flashvideo_ray.models.geometry import (
    check_chunk,
    check_tiles,
    floor_size,
    generated_length,
    latent_length,
    tile_axis,
)
from flashvideo_ray.models.vae import axis_weights


def test_a_size_is_floored_to_whole_patches():
    assert floor_size(97, 127, 16) == (96, 112)
    assert floor_size(16, 31, 16) == (16, 16)
    for size in ((15, 16), (16, 15)):
        with pytest.raises(ValueError, match="the smallest size is 16x16"):
            floor_size(*size, 16)


@pytest.mark.parametrize(
    ("height", "width", "blend", "most"),
    [
        (48, 64, False, (48, 64)),  # 192x256 of the nano model
        (48, 64, True, (3, 4)),
        (134, 240, False, (134, 240)),  # 1072x1920 of the released one
        (134, 240, True, (8, 15)),
        (1, 1, True, (1, 1)),
    ],
)
def test_as_many_tiles_as_fit_and_not_one_more(height, width, blend, most):
    check_tiles(height, width, most, blend)
    for beyond in ((most[0] + 1, most[1]), (most[0], most[1] + 1)):
        with pytest.raises(ValueError, match=f"at most {most[0] if beyond[0] > most[0] else most[1]} do"):
            check_tiles(height, width, beyond, blend)


def test_tiles_can_be_blended_where_the_check_says_so_and_nowhere_else():
    def blended(size, tiles):
        spans = tile_axis(size, tiles)
        try:
            weights = axis_weights(spans, 1, blend=True)
        except RuntimeError:
            return False
        total = torch.zeros(size)
        for span, own in zip(spans, weights, strict=True):
            total[span.start : span.stop] += own
        return bool(torch.allclose(total, torch.ones(size), atol=1e-4))

    def passes(size, tiles):
        try:
            check_tiles(size, size, (tiles, tiles), blend=True)
        except ValueError:
            return False
        return True

    for size in (*range(1, 60), 134):
        assert [passes(size, tiles) for tiles in range(1, size + 1)] == [
            blended(size, tiles) for tiles in range(1, size + 1)
        ], size


def test_lengths_and_chunks():
    assert [latent_length(frames, 4) for frames in (1, 5, 9, 49)] == [1, 2, 3, 13]
    assert [generated_length(frames, 4) for frames in (1, 9, 49)] == [1, 3, 13]
    assert [generated_length(frames, 1) for frames in (1, 2, 3)] == [1, 2, 3]
    for frames in (0, 5, 8, 10):
        with pytest.raises(ValueError, match=r"8k \+ 1"):
            generated_length(frames, 4)
    check_chunk(4, 4)
    for frames in (0, 2, 6):
        with pytest.raises(ValueError, match="a multiple of 4"):
            check_chunk(frames, 4)
