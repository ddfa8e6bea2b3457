"""Candidates: which (prompt, seed) pairs there are, and the id that says all that decides their pixels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.prompts import CANDIDATE, PREVIEW_URL, PromptError, digest

_SEEDS = 2**63
_SHOWN = 60  # characters of a text


def candidates(prompts: pa.Table, count: int, stage1: Mapping[str, Any], fingerprint: str, first: int = 0) -> pa.Table:
    """One row for each (prompt, seed) pair: `count` candidates of every prompt, numbered from `first`.

    Adds `candidate` and `clip_id`, a hex digest of all that decides the preview: prompt, negative prompt, seed, the
    stage-1 settings and the fingerprint of the stage-1 weights; and where the preview exists already, of its URL: its
    content is not known yet. Candidate k of a prompt has seed `seed + k`. Rows that
    have a `candidate` are that one, with their own seed, and no others are made of them; with `first`, what is made are
    further ones of their prompts. Raises PromptError if two rows give the same candidate.
    """
    if CANDIDATE in prompts.column_names:
        if not first:
            return _named(prompts, stage1, fingerprint)
        prompts = _whole(prompts)
    repeated = prompts.take(
        pa.array([row for row in range(prompts.num_rows) for _ in range(first + count)], pa.int64())
    )
    numbers = [k for _ in range(prompts.num_rows) for k in range(first + count)]
    seeds = [(seed + k) % _SEEDS for seed, k in zip(repeated["seed"].to_pylist(), numbers, strict=True)]
    repeated = repeated.set_column(repeated.schema.get_field_index("seed"), "seed", pa.array(seeds, pa.int64()))
    made = _named(repeated.append_column(CANDIDATE, pa.array(numbers, pa.int32())), stage1, fingerprint)
    return made.filter(pc.greater_equal(made[CANDIDATE], first)) if first else made


def check_distinct(prompts: pa.Table, count: int, stage1: Mapping[str, Any], fingerprint: str) -> None:
    """Raise PromptError if two prompts give the same candidate; costs little where few have their text in common."""
    texts = prompts.group_by(["prompt", "negative_prompt"]).aggregate([([], "count_all")])
    shared = texts.filter(pc.greater(texts["count_all"], 1))["prompt"].combine_chunks()
    candidates(prompts.filter(pc.is_in(prompts["prompt"], shared)), count, stage1, fingerprint)


def _whole(rows: pa.Table) -> pa.Table:
    """The prompts that rows of single candidates belong to, with the seed of candidate 0."""
    places: dict[str, int] = {}
    for place, name in enumerate(rows["id"].to_pylist()):
        places.setdefault(name, place)
    prompts = rows.take(pa.array([*places.values()], pa.int64()))
    both = zip(prompts["seed"].to_pylist(), prompts[CANDIDATE].to_pylist(), strict=True)
    seeds = pa.array([(seed - number) % _SEEDS for seed, number in both], pa.int64())
    return prompts.drop_columns([CANDIDATE]).set_column(prompts.schema.get_field_index("seed"), "seed", seeds)


def _named(rows: pa.Table, stage1: Mapping[str, Any], fingerprint: str) -> pa.Table:
    """Candidates with their clip_ids."""
    recipe = json.dumps([dict(stage1), fingerprint], sort_keys=True)
    texts, negatives, seeds = (rows[name].to_pylist() for name in ("prompt", "negative_prompt", "seed"))
    previews = (
        [[url] for url in rows[PREVIEW_URL].to_pylist()] if PREVIEW_URL in rows.column_names else [[]] * len(texts)
    )
    ids = [
        digest(recipe, text, negative or "", str(seed), *preview)
        for text, negative, seed, preview in zip(texts, negatives, seeds, previews, strict=True)
    ]
    if len(set(ids)) < len(ids):
        raise PromptError(_clash(rows, ids))
    return rows.append_column("clip_id", pa.array(ids, pa.string()))


def _clash(rows: pa.Table, ids: list[str]) -> str:
    """Which two prompts have a candidate in common. They are named by their ids: rows may have been left out before."""
    before: dict[str, int] = {}
    for row, clip_id in enumerate(ids):
        if before.setdefault(clip_id, row) != row:
            break
    one, other = (rows.slice(place, 1).to_pylist()[0] for place in (before[clip_id], row))
    return (
        f"the prompts with the ids {one['id']!r} and {other['id']!r} have the same text {one['prompt'][:_SHOWN]!r}, "
        f"and candidate {one[CANDIDATE]} of one has the seed {one['seed']} that candidate {other[CANDIDATE]} of the "
        "other has; drop one, change its seed, or set prompts.duplicates to drop or seed"
    )
