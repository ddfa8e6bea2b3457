"""What a person sees while a run goes on: a live table at a terminal, a line every so often in a job's log."""

from __future__ import annotations

import datetime as dt
import time
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from flashvideo_ray.accounting import forecast
from flashvideo_ray.accounting.forecast import Pace
from flashvideo_ray.accounting.terminal import duration, forecast_line
from flashvideo_ray.graph import logs
from flashvideo_ray.graph.tracker import StageState
from flashvideo_ray.ledger.claim import clock
from flashvideo_ray.settings import STAGES, Settings, Stage

_SILENT_SECONDS = 60.0
_SILENT_CALLS = 3  # so many would have ended in the meantime


class Progress:
    """Shows the state of each stage (done / total, rate, time left, how much of its pool works), and when all ends.

    `totals` is how many rows each stage gets at most, and of `text` that is all of them; how many previews meet the
    rules is not known when a run starts. `before` are the candidates that ended in the job's earlier rounds.
    """

    def __init__(
        self,
        settings: Settings,
        totals: Mapping[Stage, int],
        stages: tuple[Stage, ...] = STAGES,
        before: Mapping[str, int] | None = None,
    ):
        self.settings = settings
        self._before = Counter(before)
        self.totals = totals
        self.stages = stages
        self.console = Console(stderr=True)
        self._live: Live | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def update(self, states: Mapping[Stage, StageState], counts: Mapping[str, int], last: bool = False) -> None:
        """Show this state: a live table, or a line if one is due (every `progress_seconds`, and at the end)."""
        totals = self.expected(states, counts)
        rows = [self._row(stage, states.get(stage, StageState()), totals[stage]) for stage in self.stages]
        if self._live is not None:
            title = f"{_counts(counts)}; {self._forecast(states, totals)}"
            table = Table("stage", "done", "rate", "time left", "pool", title=title)
            for row in rows:
                table.add_row(*row)
            self._live.update(table)
        elif last or time.monotonic() - self._last_line >= self.settings.progress_seconds:
            self._last_line = time.monotonic()
            parts = [f"{stage} {done}, {rate}, {left}, {pool}" for stage, done, rate, left, pool in rows]
            print(logs.line(" | ".join([_counts(counts), *parts, self._forecast(states, totals)])), flush=True)

    def expected(self, states: Mapping[Stage, StageState], counts: Mapping[str, int]) -> dict[Stage, int]:
        """How many calls each stage will have had at the end; `counts` are of all rounds."""
        own = Counter(counts)
        own.subtract(self._before)
        return expected(self.totals, states, own, self.stages)

    def say(self, text: str) -> None:
        """A line by itself."""
        print(logs.line(text), flush=True)

    def _forecast(self, states: Mapping[Stage, StageState], totals: Mapping[Stage, int]) -> str:
        found = forecast.of_pools(paces(states, totals, clock()), self.settings)
        told = forecast.as_dict(found, self.settings.prices.currency)
        return forecast_line(told, dt.datetime.now(dt.UTC))

    def _row(self, stage: Stage, state: StageState, total: int) -> tuple[str, str, str, str, str]:
        pool = getattr(self.settings.pools, stage)
        rate, left = pace(state, total, clock())
        up = f"{min(state.open, state.actors)}/{pool.actors} busy"
        if state.actors == 0:  # not yet, or, where its node is gone, no more
            up = "done" if 0 < total <= state.done else "starting"
        return stage, f"{state.done}/{total}", rate, left, up


def pace(state: StageState, total: int, now: float) -> tuple[str, str]:
    """How fast a stage is and how long it still takes, unless it has been silent for longer than its calls explain."""
    if not state.rate or state.last_end is None:
        return "-", "-"
    if _is_silent(state, total, now):
        return f"none has ended for {duration(now - state.last_end)}", "-"
    return _rate(state.rate), duration(max(0, total - state.done) / state.rate) + " left"


def _is_silent(state: StageState, total: int, now: float) -> bool:
    """Whether the stage has ended nothing for longer than its calls take, with some to come."""
    if not state.rate or state.last_end is None or state.done >= total:
        return False
    return now - state.last_end > max(_SILENT_SECONDS, _SILENT_CALLS / state.rate)


def paces(states: Mapping[Stage, StageState], totals: Mapping[Stage, int], now: float) -> list[Pace]:
    """How the stages do, for a forecast; a stage that has fallen silent has no rate."""
    found = []
    for stage, total in totals.items():
        state = states.get(stage, StageState())
        rate = 0.0 if _is_silent(state, total, now) else state.rate
        found.append(Pace(stage, state.done, total, rate, state.actors, state.held_seconds))
    return found


def expected(
    totals: Mapping[Stage, int],
    states: Mapping[Stage, StageState],
    counts: Mapping[str, int],
    stages: tuple[Stage, ...] = STAGES,
) -> dict[Stage, int]:
    """How many rows each stage will have had at the end, as far as is known: none comes that failed or ended before.

    Of previews that are not judged yet, stage 2 gets the same share as of those that are.
    """
    found: dict[Stage, int] = {}
    failed, over = 0, True  # in the stages so far, and whether they have nothing more to give
    for stage in stages:
        state = states.get(stage, StageState())
        total = totals.get(stage, 0)
        if stage == "refine":
            gets = totals["text"] - failed - counts.get("skipped", 0) - _rejected(totals, states, failed)
            total = min(total, gets)
        else:
            total -= failed
        if stage == "rate" and over and state.done and not state.open:
            total = 0  # it does not see what the scores before it have rejected
        found[stage] = max(total, state.done)
        over = over and state.done >= found[stage]
        failed += state.failed
    return found


def _rejected(totals: Mapping[Stage, int], states: Mapping[Stage, StageState], failed: int) -> int:
    """How many previews stage 2 does not get, those counted that are to be judged yet.

    By what was judged, not by what has come out of the graph: there the rejected may stand behind the survivors.
    """
    preview = states.get("preview", StageState())
    share = (preview.kept + 1) / (preview.judged + 1)  # so that the first few do not decide
    unjudged = max(0, totals.get("preview", 0) - failed - preview.judged)
    return preview.judged - preview.kept + round(unjudged * (1 - share))


def _rate(per_second: float) -> str:
    if per_second <= 0:
        return "-"
    return f"{per_second:.1f}/s" if per_second >= 1 else f"{per_second * 60:.1f}/min"


def _counts(counts: Mapping[str, int]) -> str:
    return (
        ", ".join(
            f"{counts[name]} {name}" for name in ("rendered", "rejected", "failed", "previewed") if counts.get(name)
        )
        or "0 ended"
    )
