"""New decisions from the ledger alone: other rules over the scores that are there, without a GPU and without Ray."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.accounting.summary import with_clip
from flashvideo_ray.graph.verdicts import judged
from flashvideo_ray.ledger import decisions, jobs, run_file, tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.texts import Texts
from flashvideo_ray.settings import Settings

_DECISION = ("status", "reason", "rank")
_IN = ("previewed", "approved")


@dataclass(frozen=True)
class Selection:
    """What new rules do to a run.

    `changes` counts previews by their status before and after; `admitted` are survivors without a clip, `spared` the
    rendered ones that the new rules would not have admitted: they stay. Of the admitted, `pruned` have no latents any
    more. `refine_seconds` is the mean of the run, None before the first clip.
    """

    previews: int
    survivors: int
    changes: dict[tuple[str, str], int]
    admitted: int
    pruned: int
    spared: int
    refine_seconds: float | None


def reselect(store: Store, settings: Settings, *, write: bool = True) -> Selection:
    """Decide anew on all previews of a run's present prompts by `settings.select`, and by what people said.

    Writes previews whose decision changed and the rules into run.json; `refine` renders what is admitted now. With
    `write`, hold the claim of the run.
    """
    previews = Texts.read(store).present(tables.read(store, "previews"))
    clips = tables.read(store, "clips", ["clip_id", "status", "clip", "refine_seconds"])
    now = judged(previews, settings, decisions.opinions(store)).select(previews.column_names)
    differs = pa.array([False] * previews.num_rows)
    for name in _DECISION:
        same = pc.fill_null(pc.equal(previews[name], now[name]), False)
        both_null = pc.and_(previews[name].is_null(), now[name].is_null())
        differs = pc.or_(differs, pc.invert(pc.or_(same, both_null)))
    moved = pc.not_equal(previews["status"], now["status"])
    before, after = previews["status"].filter(moved).to_pylist(), now["status"].filter(moved).to_pylist()
    survives = pc.is_in(now["status"], pa.array(_IN))
    rendered = clips.filter(pc.equal(clips["status"], "rendered"))["clip_id"].combine_chunks()
    has_clip = pc.is_in(now["clip_id"], rendered)
    admitted = pc.and_(survives, pc.invert(has_clip))
    selection = Selection(
        previews=previews.num_rows,
        survivors=pc.sum(survives).as_py() or 0,
        changes=dict(Counter(zip(before, after, strict=True))),
        admitted=pc.sum(admitted).as_py() or 0,
        pruned=pc.sum(pc.and_(admitted, now["latents"].is_null())).as_py() or 0,
        spared=pc.sum(pc.and_(pc.invert(survives), has_clip)).as_py() or 0,
        refine_seconds=_mean_refine(clips),
    )
    if write:
        tables.supersede(store, "previews", now.filter(differs))
        run = run_file.read_run(store)
        assert run is not None, "the previews of a run stand beside its run.json"
        run["settings"]["select"] = settings.select.model_dump(mode="json")
        store.put("run.json", json.dumps(run, indent=2).encode())
        told = jobs.newest_settings(store, run) | {"select": run["settings"]["select"]}
        jobs.note(store, run, told)
    return selection


def _mean_refine(clips: pa.Table) -> float | None:
    """Seconds, of the calls that made a clip."""
    if "refine_seconds" not in clips.column_names:
        return None
    mean: float | None = pc.mean(clips.filter(with_clip(clips))["refine_seconds"]).as_py()
    return mean
