"""Which sizes, lengths, tiles and chunks FlashVideo's networks can make: plain arithmetic, known before any weight is.

The models ask these functions, and so does whoever checks settings before a run: what passes here is made. All raise
ValueError, with what is wrong and what would be right.
"""

from dataclasses import dataclass
from itertools import pairwise

REFERENCE_OVERLAP = 16
"""Latent pixels by which the reference extends a tile beyond its inner borders."""


@dataclass(frozen=True)
class Span:
    """One tile on one axis, in latent pixels: it reads [start, stop) and owns [own_start, own_stop)."""

    start: int
    stop: int
    own_start: int
    own_stop: int


def tile_axis(size: int, tiles: int, overlap: int = REFERENCE_OVERLAP) -> list[Span]:
    """Cut an axis into equal parts, each extended by `overlap` on every side where that stays within the axis."""
    borders = [k * size // tiles for k in range(tiles + 1)]
    return [
        Span(
            start=start - overlap if start >= overlap else start,
            stop=stop + overlap if stop + overlap <= size else stop,
            own_start=start,
            own_stop=stop,
        )
        for start, stop in pairwise(borders)
    ]


def encode_chunks(num_frames: int, chunk_frames: int) -> list[tuple[int, int]]:
    """(start, stop) of each chunk of frames; the first has one more: 17, 16, 16 of 49."""
    return list(pairwise([0, *range(1 + chunk_frames, num_frames, chunk_frames), num_frames]))


def decode_chunks(latent_frames: int, chunk_frames: int = 2) -> list[tuple[int, int]]:
    """(start, stop) of each chunk of latent frames; the first takes the odd one: 3, 2, 2, 2, 2, 2 of 13."""
    first = latent_frames % chunk_frames + chunk_frames
    return list(pairwise([0, *range(first, latent_frames, chunk_frames), latent_frames]))


def floor_size(height: int, width: int, multiple: int) -> tuple[int, int]:
    """Round a size down to what latents and patches can hold: 270 x 480 becomes 256 x 480, as in the reference."""
    if height < multiple or width < multiple:
        raise ValueError(f"the smallest size is {multiple}x{multiple}, got {height}x{width}")
    return height // multiple * multiple, width // multiple * multiple


def latent_length(num_frames: int, ratio: int) -> int:
    """Latent frames of so many frames, where one latent frame stands for `ratio` of them and the first for one."""
    if num_frames < 1 or (num_frames - 1) % ratio:
        raise ValueError(f"the VAE takes {ratio}k + 1 frames, got {num_frames}")
    return (num_frames - 1) // ratio + 1


def generated_length(num_frames: int, ratio: int) -> int:
    """As `latent_length`, for a video that is to be decoded: where time is compressed that takes an odd number."""
    latent_frames, rest = divmod(num_frames - 1, ratio)
    if num_frames < 1 or rest or not can_decode(latent_frames + 1, ratio):
        kind = f"{2 * ratio}k + 1" if ratio > 1 else "1 or more"
        raise ValueError(f"a video of {num_frames} frames cannot be decoded; {kind} can, such as {12 * ratio + 1}")
    return latent_frames + 1


def can_decode(latent_frames: int, ratio: int) -> bool:
    """Whether the VAE, which decodes two latent frames at a time and three at first, can decode so many."""
    return ratio == 1 or latent_frames % 2 == 1


def check_chunk(chunk_frames: int, ratio: int) -> None:
    """Whether frames can be encoded so many at a time."""
    if chunk_frames % ratio or chunk_frames < 1:
        raise ValueError(f"chunk_frames must be a multiple of {ratio}, got {chunk_frames}")


def check_tiles(height: int, width: int, tiles: tuple[int, int], blend: bool = False) -> None:
    """Whether `height` x `width` latent pixels can be cut into rows and columns of tiles, and those be blended."""
    for size, count, what in ((height, tiles[0], "rows"), (width, tiles[1], "columns")):
        if _fits(size, count, blend):
            continue
        most = next(fewer for fewer in range(min(count, size), 0, -1) if _fits(size, fewer, blend))
        why = "their overlaps reach beyond the next tile" if count <= size else "a tile is one of them at least"
        raise ValueError(f"{count} {what} of tiles do not fit {size} latent pixels ({why}); at most {most} do")


def _fits(size: int, tiles: int, blend: bool) -> bool:
    """No tile is empty; where tiles are blended, none overlaps with a neighbour over more than all of its own length.

    An overlap is not extended over the edge of the axis, so a small tile can lie within its neighbour.
    """
    if not 1 <= tiles <= size:
        return False
    spans = tile_axis(size, tiles)
    return not blend or all(
        one.stop - two.start <= min(one.stop - one.start, two.stop - two.start) for one, two in pairwise(spans)
    )
