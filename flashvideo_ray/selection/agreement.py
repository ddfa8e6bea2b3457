"""How well scores of previews foretell those of clips: correlations, and rates of wrong decisions. Pure functions.

Of the rejected only a sample has a clip, so what is said of all candidates counts each of them for as many as it stands
for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flashvideo_ray.expressions.rules import Rank, Requirement
from flashvideo_ray.settings import Settings

_RESAMPLES = 2000
_RESAMPLED_AT_ONCE = 2_000_000  # values
_ENDS = ("preview", "clip")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """One candidate with a clip, and its scores on both ends by name; None where a scorer failed."""

    rejected: bool  # by rules, and refined all the same; else rendered
    preview: Mapping[str, float | None]
    clip: Mapping[str, float | None]


@dataclass(frozen=True)
class Share:
    """A share of so many, with its 95 % Wilson interval; None of none."""

    hits: int
    of: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ScoreAgreement:
    """One score on both ends.

    `correlation` is Spearman's, weighted so that the audited count for all that were rejected; `low` and `high` are
    its 95 % bootstrap interval. `separation` is the chance that a random rendered clip scores above a random
    rejected one: .5 if selection does nothing for this score.
    """

    name: str
    held_out: bool  # selection never saw it
    count: int
    correlation: float | None
    low: float | None
    high: float | None
    separation: float | None


@dataclass(frozen=True)
class RuleAgreement:
    """One rule on both ends.

    `false_rejects`: of the audited whose preview fails it, those whose clip meets it. `false_accepts`: of the rendered
    whose preview meets it, those whose clip fails it.
    """

    rule: str
    false_rejects: Share
    false_accepts: Share


@dataclass(frozen=True)
class Audit:
    """The audit of a run. The last of `rules` is all of them together."""

    rendered: int
    rejected: int  # by rules, in the whole run
    audited: int
    scores: tuple[ScoreAgreement, ...]
    rules: tuple[RuleAgreement, ...]
    notes: tuple[str, ...]


def compare(pairs: Sequence[Pair], names: Mapping[str, bool], settings: Settings, rejected: int) -> Audit:
    """The audit of candidates with scores on both ends.

    Args:
        pairs: the candidates.
        names: of the scores, each with whether it is held out.
        settings: the rules, of which `require` and `percentiles` can be asked of a clip by itself.
        rejected: how many the rules of the run rejected, of which those in `pairs` are a sample.
    """
    out = np.array([pair.rejected for pair in pairs], bool)
    weights = np.where(out, rejected / max(1, int(out.sum())), 1.0)
    ends = {
        "preview": {name: _column([pair.preview.get(name) for pair in pairs]) for name in names},
        "clip": {name: _column([pair.clip.get(name) for pair in pairs]) for name in names},
    }
    scored = dict(names)
    if settings.select.rank is not None:
        rank = Rank.parse(settings.select.rank)
        for columns in ends.values():
            columns[rank.text] = np.broadcast_to(rank.over(columns), len(pairs)).astype(float)
        scored[rank.text] = False
    notes = []
    if settings.select.keep is not None or settings.select.duplicates is not None:
        notes.append(
            "keep and duplicates compare candidates with one another; they are not asked of clips, and previews that "
            "only they rejected are in no rate"
        )
    if rejected > out.sum():
        notes.append(
            f"{int(out.sum())} of {rejected} rejected candidates have a clip; in correlations and percentiles each of "
            f"them counts {rejected / out.sum():.3g} times"
        )
    return Audit(
        rendered=int((~out).sum()),
        rejected=rejected,
        audited=int(out.sum()),
        scores=tuple(
            _score_agreement(name, held_out, ends["preview"][name], ends["clip"][name], out, weights)
            for name, held_out in scored.items()
        ),
        rules=tuple(_rule_agreements(ends, out, weights, settings)),
        notes=tuple(notes),
    )


def spearman(x: Array, y: Array, weights: Array | None = None) -> float:
    """Spearman's rank correlation, ties averaged; with weights, of a population where each value is there so often.

    NaN where one of them does not vary.
    """
    return float(_correlations(x, y, np.ones((1, len(x))) if weights is None else weights[None])[0])


def wilson(hits: int, of: int, z: float = 1.96) -> Share:
    """A share and its Wilson score interval, 95 % by default."""
    if not of:
        return Share(hits, of, None, None, None)
    share = hits / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * np.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return Share(hits, of, share, float(max(0.0, middle - half)), float(min(1.0, middle + half)))


def _score_agreement(
    name: str, held_out: bool, preview: Array, clip: Array, out: NDArray[np.bool_], weights: Array
) -> ScoreAgreement:
    both = np.isfinite(preview) & np.isfinite(clip)
    x, y, w, out = preview[both], clip[both], weights[both], out[both]
    value = spearman(x, y, w) if len(x) > 2 else float("nan")
    low, high = _bootstrap(x, y, w, out) if np.isfinite(value) else (None, None)
    separation = _above(y[~out], y[out])
    return ScoreAgreement(name, held_out, int(both.sum()), value if np.isfinite(value) else None, low, high, separation)


def _bootstrap(x: Array, y: Array, weights: Array, out: NDArray[np.bool_]) -> tuple[float | None, float | None]:
    """The 95 % interval of the correlation; rendered and rejected are drawn apart, so both stay as many as they are."""
    generator = np.random.default_rng(0)
    groups = [rows for rows in (np.flatnonzero(out), np.flatnonzero(~out)) if len(rows)]
    found = []
    at_once = max(1, _RESAMPLED_AT_ONCE // len(x))
    for start in range(0, _RESAMPLES, at_once):
        count = min(at_once, _RESAMPLES - start)
        times = np.zeros((count, len(x)))  # how often each candidate was drawn
        for rows in groups:
            times[:, rows] = generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=count)
        found.append(_correlations(x, y, times * weights))
    values = np.concatenate(found)
    values = values[np.isfinite(values)]
    if not len(values):
        return None, None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _rule_agreements(
    ends: Mapping[str, Mapping[str, Array]], out: NDArray[np.bool_], weights: Array, settings: Settings
) -> Iterator[RuleAgreement]:
    """Each rule asked of both ends, and all of them together."""
    met = {
        text: {end: np.broadcast_to(Requirement.parse(text).over(ends[end]), len(out)) for end in _ENDS}
        for text in settings.select.require
    }
    for name, percent in settings.select.percentiles.items():
        # Of each end its own limit, over all candidates of the run.
        met[f"{name} at the {percent:g}th percentile"] = {
            end: columns[name] >= _percentile(columns[name], percent, weights) for end, columns in ends.items()
        }
    if len(met) > 1:
        met["all of them"] = {end: np.all([each[end] for each in met.values()], axis=0) for end in _ENDS}
    for rule, passes in met.items():
        refused, accepted = out & ~passes["preview"], ~out & passes["preview"]
        yield RuleAgreement(
            rule,
            wilson(int((refused & passes["clip"]).sum()), int(refused.sum())),
            wilson(int((accepted & ~passes["clip"]).sum()), int(accepted.sum())),
        )


def _correlations(x: Array, y: Array, weights: Array) -> Array:
    """Spearman's correlation of the same values under each row of weights [rows, values]; NaN where one is constant."""
    total = weights.sum(1, keepdims=True)
    a, b = _ranks(x, weights), _ranks(y, weights)
    a, b = (each - (weights * each).sum(1, keepdims=True) / total for each in (a, b))
    spread = np.sqrt((weights * a * a).sum(1) * (weights * b * b).sum(1))
    return np.divide((weights * a * b).sum(1), spread, out=np.full(len(weights), np.nan), where=spread > 1e-9)


def _ranks(values: Array, weights: Array) -> Array:
    """The middle of each value's place in order, where each takes as much room as its weight; equals share theirs."""
    order = np.argsort(values, kind="stable")
    _, starts, inverse = np.unique(values[order], return_index=True, return_inverse=True)
    room = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks = np.empty_like(weights)
    ranks[:, order] = (np.cumsum(room, axis=1) - room / 2)[:, inverse]
    return ranks


def _percentile(values: Array, percent: float, weights: Array) -> float:
    """The least value that at least so many percent of the weight do not exceed."""
    there = np.isfinite(values)
    order = np.argsort(values[there])
    below = np.cumsum(weights[there][order]) / weights[there].sum()
    return float(values[there][order][np.searchsorted(below, percent / 100)]) if there.any() else float("nan")


def _above(ones: Array, others: Array) -> float | None:
    """The chance that one of the first is greater than one of the second; equals count half."""
    if not len(ones) or not len(others):
        return None
    order = np.sort(others)
    less, equal_too = np.searchsorted(order, ones, "left"), np.searchsorted(order, ones, "right")
    return float(((less + equal_too) / 2).mean() / len(others))


def _column(values: Sequence[float | None]) -> Array:
    return np.array([np.nan if value is None else value for value in values], np.float64)
