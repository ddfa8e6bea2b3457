"""How many actors of stage 1 and of stage 2 do the most in the least time on the cards there are. Pure functions.

Both pools work side by side, and an actor takes whole calls: a stage of N calls is done in waves of as many as it has
actors, and stage 2 has its first work when stage 1 has done its first call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_EPSILON = 1e-9  # what rounding may add to a number of waves


@dataclass(frozen=True)
class Load:
    """What a stage has to do: so many calls (an expectation, and perhaps a fraction) of so many seconds each."""

    calls: float
    seconds: float

    def seconds_on(self, actors: int) -> float:
        """What so many actors need for it."""
        return math.ceil(self.calls / actors - _EPSILON) * self.seconds if self.calls else 0.0

    def actors_within(self, seconds: float) -> int:
        """The fewest that need no longer."""
        if not self.calls or not self.seconds:
            return 1
        waves = max(1, math.floor(seconds / self.seconds + _EPSILON))
        return math.ceil(self.calls / waves - _EPSILON)


def makespan(preview: Load, refine: Load, sizes: tuple[int, int], at_hand: bool = False) -> float:
    """Seconds until the last call of both stages has ended.

    `at_hand`: survivors are there already, so that stage 2 need not wait for the first of them.
    """
    lead, tail = _lead_and_tail(preview, refine, at_hand)
    first = preview.seconds_on(sizes[0]) + tail if preview.calls else 0.0
    second = lead + refine.seconds_on(sizes[1]) if refine.calls else 0.0
    return max(first, second)


def _lead_and_tail(preview: Load, refine: Load, at_hand: bool) -> tuple[float, float]:
    """What passes before the first call of stage 2, and after the last one of stage 1."""
    lead = preview.seconds if preview.calls and not at_hand else 0.0
    return lead, refine.seconds if refine.calls else 0.0


def best(
    room: Sequence[int],
    preview: Load,
    refine: Load,
    at_hand: bool = False,
    least: tuple[int, int] = (1, 1),
    fixed: tuple[int | None, int | None] = (None, None),
) -> tuple[int, int] | None:
    """The sizes with the least makespan, and of several the fewest actors; None where there is no room for both.

    Args:
        room: how many actors of refine have a place beside 0, 1, 2, … of preview; it falls from each to the next.
        preview, refine: what the stages have to do.
        at_hand: as in `makespan`.
        least: what each must have at least; 0 for a stage that the work does not need.
        fixed: sizes that are given.
    """
    firsts = range(least[0], len(room)) if fixed[0] is None else range(fixed[0], min(fixed[0] + 1, len(room)))
    second = least[1] if fixed[1] is None else fixed[1]
    options = [(a, room[a] if fixed[1] is None else second) for a in firsts if room[a] >= second]
    options = [(a, b) for a, b in options if (a or not preview.calls) and (b or not refine.calls)]
    if not options:
        return None
    soonest = min(makespan(preview, refine, option, at_hand) for option in options)
    lead, tail = _lead_and_tail(preview, refine, at_hand)
    # Fewer of one leave no less room for the other, so that each can be the fewest by itself.
    few = (
        max(least[0], preview.actors_within(soonest - tail) if preview.calls else 0),
        max(least[1], refine.actors_within(soonest - lead) if refine.calls else 0),
    )
    return (few[0] if fixed[0] is None else fixed[0], few[1] if fixed[1] is None else fixed[1])
