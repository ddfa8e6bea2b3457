"""Agreement audit: what the scores of a preview say about its clip, measured on candidates that have both.

Selection rests on it that a preview that scores badly becomes a clip that scores badly. A run with `select.audit`
refines a random share of the rejected all the same; here both ends of all that have a clip are scored, by the run's own
scorers and by others that selection never saw, and compared.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flashvideo_ray import decisions, ledger, scorers, video
from flashvideo_ray.errors import InputError
from flashvideo_ray.expressions import Rank, Requirement
from flashvideo_ray.selection import SCORE
from flashvideo_ray.settings import Settings
from flashvideo_ray.storage import Store

FILE = "audit.json"
_SCORES = "audit.parquet"  # what was measured, so that nothing is decoded twice
_AHEAD = 2  # clips that are decoded ahead; one at 1080p takes 300 MB
_RESAMPLES = 2000
_RESAMPLED_AT_ONCE = 2_000_000  # values
_ENDS = ("preview", "clip")

Array = NDArray[np.float64]


class AuditError(InputError):
    """There is nothing to audit. The message says what to do."""


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
    """One rule on both ends: rejected previews whose clip meets it, and rendered ones whose clip does not."""

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


def audit(
    store: Store,
    settings: Settings,
    held_out: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Measure and compare, and write `audit.json`.

    Args:
        store: the run.
        settings: of the run: its scorers and rules.
        held_out: names of further scorers, which measure both ends from the MP4s.
        progress: told how many of the candidates are done, of how many.

    Raises AuditError where there is nothing to compare, or for a scorer that cannot be loaded.
    """
    try:
        for name in held_out:
            scorers.load(name)
    except ValueError as error:
        raise AuditError(f"--with: {error}") from None
    previews, clips = ledger.read(store, "previews"), ledger.read(store, "clips")
    pairs = _pairs(previews, clips)
    if not any(pair["rejected"] for pair in pairs):
        raise AuditError(
            f"{store.url}: no rejected candidate has a clip to compare; set select.audit to the share of them that is "
            "to be refined all the same, such as 0.05, and start the job again"
        )
    own = [name for spec in settings.score.scorers for name in scorers.resolve(spec.name).names]
    names = dict.fromkeys(own, False) | {
        name: True for scorer in held_out for name in scorers.resolve(scorer).names if name not in own
    }
    measured = _measure(store, settings, pairs, held_out, progress)
    for pair in pairs:
        for name in names:
            known = pair["row"].get(f"{SCORE}{name}")
            pair["preview", name] = measured.get((pair["clip_id"], "preview", name)) if known is None else known
            pair["clip", name] = measured.get((pair["clip_id"], "clip", name))
    people = decisions.opinions(store)
    status = dict(zip(clips["clip_id"].to_pylist(), clips["status"].to_pylist(), strict=True))
    rejected = sum(said == "rejected" and clip_id not in people for clip_id, said in status.items())
    found = compare(pairs, names, settings, rejected)
    store.put(FILE, json.dumps(asdict(found), indent=2).encode())
    return found


def read(store: Store) -> dict[str, Any] | None:
    """The content of `audit.json`, or None where no audit was made."""
    try:
        return dict(json.loads(store.get(FILE)))
    except (FileNotFoundError, ValueError):
        return None


def compare(pairs: Sequence[Mapping[Any, Any]], names: Mapping[str, bool], settings: Settings, rejected: int) -> Audit:
    """The audit of candidates with scores on both ends.

    Args:
        pairs: candidates with `rejected` (or else rendered), `("preview", name)` and `("clip", name)`.
        names: of the scores, each with whether it is held out.
        settings: the rules, of which `require` and `percentiles` can be asked of a clip by itself.
        rejected: how many the rules of the run rejected, of which those in `pairs` are a sample.
    """
    out = np.array([pair["rejected"] for pair in pairs], bool)
    weights = np.where(out, rejected / max(1, int(out.sum())), 1.0)
    ends = {end: {name: np.array([_number(pair[end, name]) for pair in pairs]) for name in names} for end in _ENDS}
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


def _pairs(previews: pa.Table, clips: pa.Table) -> list[dict[Any, Any]]:
    """Candidates with a preview and a clip, and whether rules had rejected them."""
    scored = {row["clip_id"]: row for row in previews.to_pylist()}
    return [
        {
            "clip_id": row["clip_id"],
            "row": scored[row["clip_id"]],
            "sha256": row["sha256"],
            "rejected": row["status"] == "rejected",
        }
        for row in clips.to_pylist()
        if row["clip"] and row["clip_id"] in scored and row["status"] in ("rendered", "rejected")
    ]


def _measure(
    store: Store,
    settings: Settings,
    pairs: Sequence[Mapping[Any, Any]],
    held_out: Sequence[str],
    progress: Callable[[int, int], None] | None,
) -> dict[tuple[str, str, str], float | None]:
    """Numbers by clip_id, end and score; the run's own scorers look at clips only. What is known is not measured again.

    Clips are fetched and decoded ahead in threads, and scored here one by one: a scorer need not stand threads.
    """
    keys = {"preview": ledger.preview_key, "clip": ledger.clip_key}
    own = [(spec.name, spec.options) for spec in settings.score.scorers]
    others: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in held_out]
    wanted = {"preview": others, "clip": [*own, *others]}
    hashes = {pair["clip_id"]: pair["sha256"] for pair in pairs}
    known = {
        (row["clip_id"], row["end"], row["score"]): row["value"]
        for row in _remembered(store)
        if hashes.get(row["clip_id"]) == row["sha256"]
    }
    todo = [
        (pair, end, missing)
        for pair in pairs
        for end in _ENDS
        if (missing := [spec for spec in wanted[end] if _is_new(known, pair["clip_id"], end, spec[0])])
    ]
    built: dict[tuple[str, float], Any] = {}
    frames = _decoded(store, [keys[end](pair["clip_id"]) for pair, end, _ in todo])
    for done, ((pair, end, missing), (pictures, fps)) in enumerate(zip(todo, frames, strict=True), start=1):
        for name, options in missing:
            if (name, fps) not in built:
                built[name, fps] = scorers.load(name, options, fps=fps)
            known |= {
                (pair["clip_id"], end, score): value
                for score, value in _scores(built[name, fps], pictures, pair["row"]["prompt"]).items()
            }
        if progress is not None:
            progress(done, len(todo))
    if todo:
        _remember(store, known, hashes)
    return known


def _is_new(known: Mapping[tuple[str, str, str], Any], clip_id: str, end: str, scorer: str) -> bool:
    return any((clip_id, end, name) not in known for name in scorers.resolve(scorer).names)


def _decoded(store: Store, keys: Sequence[str]) -> Iterator[tuple[video.Frame, float]]:
    """Frames and frame rate of each MP4, in order, a few ahead."""

    def decode(key: str) -> tuple[video.Frame, float]:
        frames, info = video.decode_mp4(store.get(key))
        return frames, info.fps

    waiting: deque[Future[tuple[video.Frame, float]]] = deque()
    with ThreadPoolExecutor(_AHEAD, thread_name_prefix="decode") as pool:
        for key in keys:
            waiting.append(pool.submit(decode, key))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _scores(scorer: scorers.Scorer, frames: video.Frame, prompt: str) -> dict[str, float | None]:
    """A scorer's numbers; None for all of them where it raises, as in a run."""
    try:
        return {name: float(value) for name, value in scorer(frames, prompt).items() if name in scorer.names}
    except Exception:
        return dict.fromkeys(scorer.names)


def _remembered(store: Store) -> list[dict[str, Any]]:
    try:
        return pq.read_table(pa.BufferReader(store.get(_SCORES))).to_pylist()
    except (FileNotFoundError, pa.ArrowInvalid):
        return []


def _remember(
    store: Store, known: Mapping[tuple[str, str, str], float | None], hashes: Mapping[str, str | None]
) -> None:
    columns: dict[str, list[Any]] = {"clip_id": [], "end": [], "score": [], "value": [], "sha256": []}
    for (clip_id, end, score), value in known.items():
        row = {"clip_id": clip_id, "end": end, "score": score, "value": value, "sha256": hashes[clip_id]}
        for name, item in row.items():
            columns[name].append(item)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    store.put(_SCORES, sink.getvalue().to_pybytes())


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
        refused, accepted = out & ~passes["preview"], ~out
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


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
