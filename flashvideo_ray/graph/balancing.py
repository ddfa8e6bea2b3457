"""Sizes of pools that are `auto`: chosen when a round of a job begins, and looked at again while it goes on.

What both stages may use is divided so that all ends soonest, by the calls that are left, the seconds that one takes and
the share of previews that stage 2 gets. A round is ended for other sizes only where that pays for its price: no call is
broken off, but cards wait for the last one to end, and then for models to be loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from flashvideo_ray.accounting import balance
from flashvideo_ray.accounting.balance import Load
from flashvideo_ray.accounting.terminal import duration
from flashvideo_ray.errors import InputError
from flashvideo_ray.graph import cluster
from flashvideo_ray.graph.remaining import Work
from flashvideo_ray.graph.tracker import StageState
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.claim import clock
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.settings import BALANCED, Settings, Stage

_CHANGES = 3  # in a job
_PAYS = 0.1  # of the time that is left
_LOOK_SECONDS = 5.0
_WAVES = 2  # of stage 1, before what it takes and the share that goes on are looked at
_JUDGED = 24  # previews, likewise
_NONE = 48  # previews of which none goes on, before it is believed that few do


@dataclass(frozen=True)
class Known:
    """What a division rests on: seconds of a call in both stages, the share of previews that goes on, and whence."""

    seconds: tuple[float, float]
    keep_rate: float
    source: str


def known(store: Store, settings: Settings, work: Work) -> Known:
    """From the run's ledger; else what `plan` would take. Where nothing is known, both stages have as much to do."""
    previews = tables.read(store, "previews", ["preview_seconds", "status"])
    clips = tables.read(store, "clips", ["refine_seconds"])
    keep_rate = 0.5
    if settings.select.keep is not None:
        keep_rate = min(1.0, settings.select.keep / settings.candidates)
    goes_on = pc.sum(pc.is_in(previews["status"], pa.array(["previewed", "approved"]))).as_py() or 0
    keep_rate = (goes_on + keep_rate) / (previews.num_rows + 1)  # the guess counts as one preview
    keep_rate += (1 - keep_rate) * settings.select.audit
    measured = _mean(previews, "preview_seconds"), _mean(clips, "refine_seconds")
    if measured[0] is not None and measured[1] is not None:
        return Known((measured[0], measured[1]), keep_rate, "measured in this run")
    guess, source = _guess(settings, work, keep_rate)
    # Where one is measured, the other is as much more or less than the guess.
    factor = next((found / guess[at] for at, found in enumerate(measured) if found is not None), 1.0)
    return Known((guess[0] * factor, guess[1] * factor), keep_rate, source)


def _guess(settings: Settings, work: Work, keep_rate: float) -> tuple[tuple[float, float], str]:
    from flashvideo_ray.accounting import plan  # the models come with it: 180 MB, for a job that balances

    with suppress(InputError):  # of no other model's, sizes' or steps' times anything is published
        found = plan.published(settings).seconds
        return (found["preview"], found["refine"]), "published times"
    first, second = _calls(work, keep_rate)
    return (1.0, first / second if first and second else 1.0), "a guess: both have as much to do"


def _mean(table: pa.Table, name: str) -> float | None:
    """Of a column; what is over twice the median counts as that.

    Of a few calls, one that waited for its kernels to be compiled, or a straggler, would decide otherwise.
    """
    found = table[name].drop_null().to_numpy() if name in table.column_names else np.empty(0)
    return float(np.minimum(found, 2 * np.median(found)).mean()) if len(found) else None


def _calls(work: Work, keep_rate: float) -> tuple[float, float]:
    """Of each stage, in the round: survivors that are at hand need no preview."""
    fresh = pc.sum(pc.equal(work.rows["status"], "open")).as_py() or 0
    return fresh, work.rows.num_rows - fresh + keep_rate * fresh


@dataclass(frozen=True)
class _Round:
    """What a round has to do, and how many actors of each stage do it."""

    settings: Settings  # with `auto` in them
    stages: Sequence[Stage]
    known: Known
    fresh: int  # candidates that need a preview
    at_hand: int  # survivors that are there already
    began: float
    sizes: tuple[int, int] = (1, 1)

    def best(self, room: list[int], loads: tuple[Load, Load], at_hand: bool) -> tuple[int, int] | None:
        """The best sizes for what is left; None where not even the least has a place."""
        pools = self.settings.pools
        least = [pools.least(stage) if stage in self.stages else 0 for stage in BALANCED]
        fixed = [None if stage in pools.auto else getattr(pools, stage).actors for stage in BALANCED]
        return balance.best(room, *loads, at_hand, (least[0], least[1]), (fixed[0], fixed[1]))


class Balance:
    """Chooses the sizes of a job's rounds. Settings without an `auto` it leaves as they are.

    `nodes` are as `ray.nodes()` has them; `fixed` says that no round is to be ended for other sizes. `told` is what
    there is to say of a round that begins, if anything, `closing` why the round is to end, once it is.
    """

    def __init__(
        self,
        store: Store,
        fixed: bool = False,
        nodes: Callable[[], Sequence[Mapping[str, Any]]] = ray.nodes,
        clock: Callable[[], float] = clock,
    ):
        self._store, self._nodes, self._clock = store, nodes, clock
        self._changes = 0 if fixed else _CHANGES
        self._round: _Round | None = None
        self._look_at = 0.0
        self.told: str | None = None
        self.closing: str | None = None

    @property
    def watches(self) -> bool:
        """Whether the round that began last may be ended for other sizes."""
        return self._round is not None

    def begin(self, settings: Settings, stages: Sequence[Stage], work: Work) -> Settings:
        """The settings of a round that begins, with a number for each size."""
        self.told, self.closing, self._round = None, None, None
        if not settings.pools.auto:
            return settings
        found = known(self._store, settings, work)
        fresh, later = _calls(work, found.keep_rate)
        loads = Load(fresh, found.seconds[0]), Load(later if "refine" in stages else 0.0, found.seconds[1])
        at_hand = work.rows.num_rows - round(fresh)
        here = _Round(settings, stages, found, round(fresh), at_hand, self._clock())
        sizes = here.best(self._room(settings, stages), loads, at_hand > 0)
        least = [settings.pools.sized().preview.actors, settings.pools.sized().refine.actors]
        sizes = (max(1, sizes[0]), max(1, sizes[1])) if sizes is not None else (least[0], least[1])
        pools = settings.pools.sized(dict(zip(BALANCED, sizes, strict=True)))
        if self._changes and {*BALANCED} <= {*stages}:
            self._round = replace(here, sizes=sizes)
            self._look_at = self._clock() + _LOOK_SECONDS
        named = " and ".join(f"{getattr(pools, s).actors} of {s}" for s in settings.pools.auto if s in stages)
        self.told = (
            f"pools of size auto: {named} (from {found.seconds[0]:.3g} s and {found.seconds[1]:.3g} s a call and "
            f"{found.keep_rate:.0%} of the previews that go on; {found.source})"
        )
        return settings.model_copy(update={"pools": pools})

    def look(self, states: Mapping[Stage, StageState]) -> str | None:
        """Whether the round is to be ended for other sizes: why, said once."""
        here, now = self._round, self._clock()
        if here is None or self.closing is not None or now < self._look_at or not _measured(states, here):
            return None
        self._look_at = now + _LOOK_SECONDS
        left = _left(states, here, now)
        room = self._room(here.settings, here.stages)
        options = [here.best(room, left.loads(rate, ended=True), left.queued > 0) for rate in left.rates]
        gains = {sizes: min(left.gain(here.sizes, sizes, rate) for rate in left.rates) for sizes in options if sizes}
        sizes = max(gains, key=gains.__getitem__, default=here.sizes)
        if sizes == here.sizes or gains[sizes] <= _PAYS:
            return None
        self._changes -= 1
        stays, goes = left.spans(here.sizes, sizes, left.keep_rate)
        self.closing = (
            f"sizes change from {here.sizes[0]} + {here.sizes[1]} to about {sizes[0]} + {sizes[1]} of preview and "
            f"refine: a call takes {left.seconds[0]:.3g} s and {left.seconds[1]:.3g} s and {left.keep_rate:.0%} go on, "
            f"so what is left takes {duration(goes)} instead of {duration(stays)}; nothing new begins until "
            "the calls that are open have ended"
        )
        return self.closing

    def end(self) -> bool:
        """The round is over, and not looked at any more. Whether it was to end for other sizes."""
        self._round = None
        return self.closing is not None

    def _room(self, settings: Settings, stages: Sequence[Stage]) -> list[int]:
        return cluster.room([node for node in self._nodes() if node["Alive"]], settings.pools, stages)


def _measured(states: Mapping[Stage, StageState], here: _Round) -> bool:
    """Whether stage 1 has done some waves and stage 2 one, or all that it got but what is open."""
    preview, refine = states["preview"], states["refine"]
    if preview.done < _WAVES * here.sizes[0] or preview.judged < _JUDGED:
        return False
    got = here.at_hand + preview.kept
    return refine.done >= min(here.sizes[1], max(1, got - refine.open)) if got else preview.judged >= _NONE


@dataclass(frozen=True)
class _Left:
    """What is left of a round, as far as it was measured."""

    seconds: tuple[float, float]
    keep_rate: float
    doubt: float
    """How far the share that goes on may be off: two standard deviations."""
    fresh: int  # without a preview, those under way included
    unjudged: int
    queued: int  # survivors that are there, without those that are in stage 2
    open: tuple[int, int]
    price: float
    """Seconds until the calls that are open have ended, and actors have loaded again."""

    @property
    def rates(self) -> tuple[float, ...]:
        """What the share may be."""
        return tuple(min(1.0, max(0.0, self.keep_rate + sign * self.doubt)) for sign in (-1, 0, 1))

    def loads(self, rate: float, ended: bool = False) -> tuple[Load, Load]:
        """Of both stages; once the calls that are open have `ended`, without those."""
        first = self.fresh - (self.open[0] if ended else 0)
        second = self.queued + rate * self.unjudged + (0 if ended else self.open[1])
        return Load(max(0, first), self.seconds[0]), Load(max(0.0, second), self.seconds[1])

    def spans(self, sizes: tuple[int, int], others: tuple[int, int], rate: float) -> tuple[float, float]:
        """Seconds to the end at that share: with the sizes as they are, and with others, the change included."""
        ready = self.queued > 0
        stays = balance.makespan(*self.loads(rate), sizes, ready)
        return stays, self.price + balance.makespan(*self.loads(rate, ended=True), others, ready)

    def gain(self, sizes: tuple[int, int], others: tuple[int, int], rate: float) -> float:
        """What share of the time that is left other sizes save, at that share of previews."""
        stays, goes = self.spans(sizes, others, rate)
        return 1 - goes / stays if stays else 0.0


def _left(states: Mapping[Stage, StageState], here: _Round, now: float) -> _Left:
    """From what the stages have told."""
    preview, refine, score = states["preview"], states["refine"], states["score"]
    seconds = [
        state.busy_seconds / state.done if state.done else before
        for state, before in zip((preview, refine), here.known.seconds, strict=True)
    ]
    rate = (preview.kept + 0.5) / (preview.judged + 1)
    started = max(0.0, *((state.first_joined or now) - here.began for state in (preview, refine)))
    # An actor has a second call open. Of stage 1 it is still made, of stage 2 it is given back.
    at_work = min(refine.open, here.sizes[1])
    return _Left(
        seconds=(seconds[0], seconds[1]),
        keep_rate=rate,
        doubt=2 * math.sqrt(rate * (1 - rate) / (preview.judged + 1)),
        fresh=here.fresh - preview.done,
        unjudged=max(0, here.fresh - preview.failed - score.failed - preview.judged),
        queued=max(0, here.at_hand + preview.kept - refine.done - at_work),
        open=(preview.open, at_work),
        price=started + max(seconds[0] * math.ceil(preview.open / here.sizes[0]), seconds[1] * min(1, at_work)),
    )
