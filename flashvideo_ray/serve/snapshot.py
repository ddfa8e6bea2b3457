"""All candidates of a run at one moment, to be filtered, sorted and paged through."""

from __future__ import annotations

import base64
import datetime as dt
import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

from flashvideo_ray.errors import InputError

STATUSES = (
    "queued",
    "previewing",
    "previewed",
    "approved",
    "refining",
    "rendered",
    "rejected",
    "failed",
    "skipped",
    "cancelled",
)
DECIDABLE = ("previewed", "approved", "rejected")  # about these a decision counts
_ORDERS = 64  # kept for one snapshot


class QueryError(InputError):
    """A filter, a sorting or a cursor that cannot be used. The message names it."""


class Candidate(NamedTuple):
    """One candidate. Keys of media are relative to the run; None where the object is not there.

    A tuple because a run has many: a frozen dataclass takes five times as long to make.
    """

    clip_id: str
    prompt_id: str
    prompt: str
    negative_prompt: str | None
    seed: int
    candidate: int
    status: str
    reason: str | None
    rank: float | None
    scores: dict[str, float | None]
    decision: dict[str, Any] | None
    latents: str | None
    preview: str | None
    preview_poster: str | None
    clip: str | None
    clip_poster: str | None
    sha256: str | None
    preview_seconds: float | None
    refine_seconds: float | None
    preview_note: str | None
    """What stage 1 did otherwise than asked, for want of memory; `refine_note` likewise."""
    refine_note: str | None
    preview_device: str | None
    refine_device: str | None
    error: str | None
    at: dt.datetime
    """When anything about it changed last."""
    made: dt.datetime
    """When it came into the run: when its preview was made or, before that, when it was asked for."""
    wish: str | None
    wished_at: dt.datetime | None
    job: str | None
    key: str | None
    body: str | None
    has_preview: bool

    @property
    def survives(self) -> bool:
        """Whether stage 2 may have it: selection let it through, or a person approved it."""
        return self.has_preview and self.status in ("previewed", "approved")

    @property
    def is_pruned(self) -> bool:
        """Whether what stage 2 takes of its preview was removed: `render` alone makes it anew."""
        return self.has_preview and self.latents is None


@dataclass(frozen=True)
class Filter:
    """Which candidates are meant."""

    status: frozenset[str] = frozenset()
    prompt_id: str | None = None
    job: str | None = None
    q: str = ""
    least: tuple[tuple[str, float], ...] = ()
    most: tuple[tuple[str, float], ...] = ()

    @classmethod
    def parse(cls, given: Mapping[str, Any], scores: Sequence[str]) -> Self:
        """From `status` (one or many), `prompt_id`, `job`, `q`, `min_<score>` and `max_<score>`. Raises QueryError."""
        status = given.get("status") or ()
        status = [status] if isinstance(status, str) else status
        if not isinstance(status, Sequence) or not all(name in STATUSES for name in status):
            raise QueryError(f"status: expected some of {', '.join(STATUSES)}")
        bounds: dict[str, list[tuple[str, float]]] = {"min_": [], "max_": []}
        for name, value in given.items():
            if name in ("status", "prompt_id", "job", "q"):
                continue
            kind, score = name[:4], name[4:]
            if kind not in bounds or score not in (*scores, "rank"):
                raise QueryError(f"{name}: there is no such filter; scores are {', '.join(scores) or 'none yet'}")
            bounds[kind].append((score, _number(name, value)))
        texts = {name: given.get(name) for name in ("prompt_id", "job", "q")}
        for name, text in texts.items():
            if text is not None and not isinstance(text, str):
                raise QueryError(f"{name}: expected text")
        return cls(
            frozenset(status), texts["prompt_id"], texts["job"], (texts["q"] or "").casefold(),
            tuple(bounds["min_"]), tuple(bounds["max_"]),
        )  # fmt: skip

    def matches(self, candidate: Candidate, status: str) -> bool:
        """Whether the candidate is meant; `status` is its status at this moment."""
        return (
            (not self.status or status in self.status)
            and (self.prompt_id is None or candidate.prompt_id == self.prompt_id)
            and (self.job is None or candidate.job == self.job)
            and (not self.q or self.q in candidate.prompt.casefold())
            and all(_value(candidate, name, -math.inf) >= bound for name, bound in self.least)
            and all(_value(candidate, name, math.inf) <= bound for name, bound in self.most)
        )


@dataclass(frozen=True)
class Page:
    """Some of the candidates that match, how many there are in all, and where the next page begins."""

    items: list[Candidate]
    next: str | None
    total: int


@dataclass(frozen=True)
class _Order:
    """Candidates in one order: those with a value, ascending, then those without."""

    keys: list[tuple[Any, str]]
    missing: list[str]

    def after(self, cursor: _Cursor | None, falling: bool) -> tuple[int, int]:
        """How many with a value and how many without one stand before the place that the cursor names."""
        if cursor is None:
            return 0, 0
        if cursor.value is None:
            return len(self.keys), bisect_right(self.missing, cursor.clip_id)
        place = (cursor.value, cursor.clip_id)
        try:
            return len(self.keys) - bisect_left(self.keys, place) if falling else bisect_right(self.keys, place), 0
        except TypeError:
            raise QueryError("cursor: it belongs to another sorting") from None


class Snapshot:
    """Immutable. What it worked out for one question is kept for the next."""

    def __init__(self, candidates: dict[str, Candidate], scores: tuple[str, ...]):
        self.candidates = candidates
        self.scores = scores
        self._orders: dict[Any, _Order] = {}

    @cached_property
    def prompts(self) -> dict[str, list[Candidate]]:
        """Candidates by prompt id."""
        found: dict[str, list[Candidate]] = {}
        for candidate in self.candidates.values():
            found.setdefault(candidate.prompt_id, []).append(candidate)
        return found

    @cached_property
    def seconds(self) -> dict[str, dict[str, tuple[int, float]]]:
        """By stage and device, how many candidates have a time and its sum."""
        found: dict[str, dict[str, tuple[int, float]]] = {"preview": {}, "refine": {}}
        for c in self.candidates.values():
            times = (("preview", c.preview_device, c.preview_seconds), ("refine", c.refine_device, c.refine_seconds))
            for stage, device, seconds in times:
                if seconds is not None:
                    count, total = found[stage].get(device or "", (0, 0.0))
                    found[stage][device or ""] = (count + 1, total + seconds)
        return found

    def total(self, stage: str) -> float:
        """Seconds of a stage, of all candidates."""
        return sum(total for _, total in self.seconds[stage].values())

    def mean(self, stage: str) -> float | None:
        """Mean seconds of the calls of a stage that went well, or None where nothing was measured."""
        times = [
            c.preview_seconds if stage == "preview" else c.refine_seconds if c.clip is not None else None
            for c in self.candidates.values()
        ]
        known = [seconds for seconds in times if seconds is not None]
        return sum(known) / len(known) if known else None

    def matching(self, wanted: Filter, active: Mapping[str, str]) -> list[Candidate]:
        """The candidates that match, in no order; `active` has the status of those that are being worked on."""
        return [c for c in self.candidates.values() if wanted.matches(c, active.get(c.clip_id, c.status))]

    def page(self, wanted: Filter, active: Mapping[str, str], sort: str, cursor: str | None, limit: int) -> Page:
        """A page. The cursor is the place of the last one shown, so that nothing is shown twice when others come."""
        name, falling = sort.removeprefix("-"), sort.startswith("-")
        order = self._order(name, wanted, active)
        start, start_missing = order.after(_Cursor.parse(cursor), falling)
        if falling:
            end = len(order.keys) - start
            known = order.keys[max(0, end - limit) : end][::-1]
        else:
            known = order.keys[start : start + limit]
        chosen = [clip_id for _, clip_id in known]
        chosen += order.missing[start_missing : start_missing + limit - len(chosen)]
        items = [self.candidates[clip_id] for clip_id in chosen]
        left = len(order.keys) - start - len(known) + len(order.missing) - start_missing - (len(chosen) - len(known))
        place = _Cursor(_sortable(items[-1], name), chosen[-1]).text() if left and items else None
        return Page(items, place, len(order.keys) + len(order.missing))

    def _order(self, name: str, wanted: Filter, active: Mapping[str, str]) -> _Order:
        if name not in ("rank", "made", "at", "prompt", *self.scores):
            raise QueryError(f"sort: {name!r} is none of rank, made, at, prompt, {', '.join(self.scores)}")
        place = (name, wanted, frozenset(active.items()))
        if place not in self._orders:
            values = [(_sortable(c, name), c.clip_id) for c in self.matching(wanted, active)]
            known = sorted(pair for pair in values if pair[0] is not None)
            if len(self._orders) >= _ORDERS:
                self._orders.clear()
            self._orders[place] = _Order(known, sorted(clip_id for value, clip_id in values if value is None))
        return self._orders[place]


@dataclass(frozen=True)
class _Cursor:
    value: Any
    clip_id: str

    def text(self) -> str:
        return base64.urlsafe_b64encode(json.dumps([self.value, self.clip_id]).encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str | None) -> Self | None:
        if text is None:
            return None
        try:
            value, clip_id = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        except (ValueError, TypeError):
            raise QueryError("cursor: not one that this service gave") from None
        if not isinstance(clip_id, str) or not isinstance(value, str | int | float | None):
            raise QueryError("cursor: not one that this service gave")
        return cls(value, clip_id)


def _sortable(candidate: Candidate, name: str) -> Any:
    if name in ("made", "at"):
        moment: dt.datetime = getattr(candidate, name)
        return moment.timestamp()
    if name == "prompt":
        return candidate.prompt.casefold()
    return _value(candidate, name, None)


def _value(candidate: Candidate, name: str, missing: Any) -> Any:
    """A score or the rank; `missing` where there is none: it fails every bound."""
    value = candidate.rank if name == "rank" else candidate.scores.get(name)
    return missing if value is None or not math.isfinite(value) else value


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, bool):
        raise QueryError(f"{name}: expected a number")
    return number
