"""Agreement audit: what the scores of a preview say about its clip, measured on candidates that have both.

Selection rests on it that a preview that scores badly becomes a clip that scores badly. A run with `select.audit`
refines a random share of the rejected all the same; here both ends of all that have a clip are scored, by the run's own
scorers and by others that selection never saw, and compared.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flashvideo_ray import scorers
from flashvideo_ray.errors import InputError
from flashvideo_ray.ledger import decisions, tables
from flashvideo_ray.ledger.keys import clip_key, preview_key
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.texts import Texts
from flashvideo_ray.media import video
from flashvideo_ray.scorers import columns
from flashvideo_ray.scorers.panel import Panel, names_of
from flashvideo_ray.selection.agreement import Audit, Pair, compare
from flashvideo_ray.settings import ScorerSettings, Settings

FILE = "audit.json"
_SCORES = "audit.parquet"  # what was measured, so that nothing is decoded twice
log = logging.getLogger("flashvideo_ray")
_AHEAD = 2  # clips that are decoded ahead; one at 1080p takes 300 MB


class AuditError(InputError):
    """There is nothing to audit. The message says what to do."""


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
        progress: told how many videos are scored, of how many.

    Raises AuditError where there is nothing to compare, or for a scorer that cannot be used.
    """
    own = names_of(settings.score.scorers)
    further = [ScorerSettings(name=name) for name in held_out]
    others = _names_of(further, own)
    texts = Texts.read(store)
    previews, clips = texts.present(tables.read(store, "previews")), texts.present(tables.read(store, "clips"))
    candidates = _candidates(previews, clips)
    if not any(row["status"] == "rejected" for row in candidates):
        raise AuditError(
            f"{store.url}: no rejected candidate has a clip to compare; set select.audit to the share of them that is "
            "to be refined all the same, such as 0.05, and start the job again"
        )
    measured = _measure(store, settings, candidates, further, progress)
    pairs = [
        Pair(
            rejected=row["status"] == "rejected",
            preview={name: row.get(columns.column(name)) for name in own}
            | {name: measured.get((row["clip_id"], "preview", name)) for name in others},
            clip={name: measured.get((row["clip_id"], "clip", name)) for name in [*own, *others]},
        )
        for row in candidates
    ]
    people = decisions.opinions(store)
    status = dict(zip(clips["clip_id"].to_pylist(), clips["status"].to_pylist(), strict=True))
    rejected = sum(said == "rejected" and clip_id not in people for clip_id, said in status.items())
    found = compare(pairs, dict.fromkeys(own, False) | dict.fromkeys(others, True), settings, rejected)
    store.put(FILE, json.dumps(asdict(found), indent=2).encode())
    return found


def read(store: Store) -> dict[str, Any] | None:
    """The content of `audit.json`, or None where no audit was made."""
    try:
        return dict(json.loads(store.get(FILE)))
    except (FileNotFoundError, ValueError, TypeError):  # `verify` tells of one that is damaged
        return None


def _names_of(held_out: Sequence[ScorerSettings], own: Sequence[str]) -> list[str]:
    """The scores of held-out scorers. Raises AuditError for a scorer that cannot be built, or is the run's own."""
    names: list[str] = []
    for spec in held_out:
        try:
            given = scorers.load(spec.name).names
        except ValueError as error:
            raise AuditError(f"--with: {error}") from None
        if both := sorted({*given} & {*own, *names}):
            raise AuditError(f"--with {spec.name}: {', '.join(both)} is measured without it; leave it out")
        names += given
    return names


def _candidates(previews: pa.Table, clips: pa.Table) -> list[dict[str, Any]]:
    """Candidates with a preview and a clip: rows of previews, with the `status` and the `stream` of their clip."""
    scored = {row["clip_id"]: row for row in previews.to_pylist()}
    return [
        # Signed anew, it is another file with the same pictures; rows from before have no hash of the stream.
        {**scored[row["clip_id"]], "status": row["status"], "stream": row["stream_sha256"] or row["sha256"]}
        for row in clips.to_pylist()
        if row["clip"] and row["clip_id"] in scored and row["status"] in ("rendered", "rejected")
    ]


def _measure(
    store: Store,
    settings: Settings,
    candidates: Sequence[Mapping[str, Any]],
    held_out: Sequence[ScorerSettings],
    progress: Callable[[int, int], None] | None,
) -> dict[tuple[str, str, str], float | None]:
    """Numbers by clip_id, end and score; the run's own scorers look at clips only. What is known is not measured again.

    Clips are fetched and decoded ahead in threads, and scored here one by one: a scorer need not stand threads.
    """
    keys = {"preview": preview_key, "clip": clip_key}
    wanted = {"preview": [*held_out], "clip": [*settings.score.scorers, *held_out]}
    streams = {row["clip_id"]: row["stream"] for row in candidates}
    known = {
        (one["clip_id"], one["end"], one["score"]): one["value"]
        for one in _remembered(store)
        if one["clip_id"] in streams and streams[one["clip_id"]] == one.get("stream")
    }
    unmeasured = [
        (row, end, missing)
        for row in candidates
        for end in keys
        if (missing := [spec for spec in wanted[end] if _is_new(known, row["clip_id"], end, spec)])
    ]
    built: dict[tuple[str, float], Panel] = {}
    frames = _decoded(store, [keys[end](row["clip_id"]) for row, end, _ in unmeasured])
    for done, ((row, end, missing), (pictures, fps)) in enumerate(zip(unmeasured, frames, strict=True), start=1):
        for spec in missing:
            if (spec.name, fps) not in built:
                built[spec.name, fps] = Panel([spec], fps)
            scored = built[spec.name, fps](pictures, row["prompt"])
            for error in scored.errors:
                log.warning("%s of %s: %s", end, row["clip_id"], error)
            known |= {(row["clip_id"], end, score): value for score, value in scored.numbers.items()}
        if progress is not None:
            progress(done, len(unmeasured))
    if unmeasured:
        _remember(store, known, streams)
    return known


def _is_new(known: Mapping[tuple[str, str, str], Any], clip_id: str, end: str, spec: ScorerSettings) -> bool:
    return any((clip_id, end, name) not in known for name in names_of([spec]))


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


def _remembered(store: Store) -> list[dict[str, Any]]:
    try:
        return pq.read_table(pa.BufferReader(store.get(_SCORES))).to_pylist()
    except (FileNotFoundError, pa.ArrowInvalid):
        return []


def _remember(
    store: Store, known: Mapping[tuple[str, str, str], float | None], streams: Mapping[str, str | None]
) -> None:
    measured: dict[str, list[Any]] = {"clip_id": [], "end": [], "score": [], "value": [], "stream": []}
    for (clip_id, end, score), value in known.items():
        row = {"clip_id": clip_id, "end": end, "score": score, "value": value, "stream": streams[clip_id]}
        for name, item in row.items():
            measured[name].append(item)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(measured), sink)
    store.put(_SCORES, sink.getvalue().to_pybytes())
