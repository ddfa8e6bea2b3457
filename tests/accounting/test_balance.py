"""Given calls, seconds and room, then the sizes that end soonest, and no more actors than that takes."""

from __future__ import annotations

import random

import pytest

from flashvideo_ray.accounting.balance import Load, best, makespan

SHARED = [24 - first for first in range(25)]  # 24 cards that both may use
NOTHING = Load(0, 0.0)


def brute(
    room: list[int], preview: Load, refine: Load, at_hand: bool, least: tuple[int, int]
) -> tuple[float, int] | None:
    """The least makespan of all sizes that have a place, and the fewest actors that have it."""
    found = [
        (makespan(preview, refine, (first, second), at_hand), first + second)
        for first in range(least[0], len(room))
        for second in range(least[1], room[first] + 1)
        if (first or not preview.calls) and (second or not refine.calls)
    ]
    return min(found, default=None)


def test_the_papers_times_want_15_and_9_of_24_cards_where_one_preview_in_four_survives() -> None:
    assert best(SHARED, Load(1000, 30.1), Load(250, 72.2)) == (15, 9)
    assert best(SHARED, Load(1000, 30.1), Load(1000, 72.2)) == (7, 17)
    assert best(SHARED, Load(1000, 30.1), Load(0.1, 72.2)) == (23, 1)


@pytest.mark.parametrize("seed", range(300))
def test_no_other_sizes_end_sooner_or_as_soon_with_fewer_actors(seed: int) -> None:
    draw = random.Random(seed)
    shared, own = draw.randint(0, 9), (draw.randint(0, 4), draw.randint(0, 4))
    # Cards of preview alone, of both, of refine alone.
    room = [own[1] + shared - max(0, first - own[0]) for first in range(own[0] + shared + 1)]
    preview = Load(draw.choice([0, 1, draw.randint(2, 60)]), draw.choice([1.0, 30.1, draw.uniform(0.1, 5)]))
    refine = Load(draw.choice([0, draw.uniform(0.1, 30)]), draw.choice([1.0, 72.2, draw.uniform(0.1, 5)]))
    least = draw.choice([(1, 1), (2, 1), (0, 1), (1, 0)])
    at_hand = draw.random() < 0.5
    found, wanted = best(room, preview, refine, at_hand, least), brute(room, preview, refine, at_hand, least)
    if wanted is None:
        assert found is None
        return
    assert found is not None
    assert found[1] <= room[found[0]]
    assert found[0] >= least[0]
    assert found[1] >= least[1]
    assert makespan(preview, refine, found, at_hand) == pytest.approx(wanted[0])
    assert sum(found) == wanted[1]


def test_a_size_that_is_given_stays_and_the_other_one_is_found() -> None:
    loads = Load(1000, 30.1), Load(250, 72.2)
    assert best(SHARED, *loads, fixed=(16, None)) == (16, 8)
    assert best(SHARED, *loads, fixed=(None, 9)) == (15, 9)
    assert best(SHARED, *loads, fixed=(8, None)) == (8, 5)  # more would wait for previews
    assert best(SHARED, *loads, fixed=(25, None)) is None
    assert best(SHARED, *loads, fixed=(20, 5)) is None


def test_a_stage_that_the_work_does_not_need_has_no_card() -> None:
    assert best(SHARED, Load(1000, 30.1), NOTHING, least=(1, 0)) == (24, 0)
    assert best(SHARED, Load(30, 30.1), NOTHING, least=(1, 0)) == (15, 0)  # two waves, as with 24
    assert best([24], NOTHING, Load(250, 72.2), least=(0, 1)) == (0, 23)


def test_without_room_for_both_there_are_no_sizes() -> None:
    assert best([1, 0], Load(10, 1.0), Load(5, 1.0)) is None
    assert best([0], Load(10, 1.0), Load(5, 1.0)) is None
