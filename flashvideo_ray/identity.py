"""Candidates: which (prompt, seed) pairs there are, and the id that says all that decides their pixels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.prompts import CANDIDATE, PREVIEW_URL, PromptError, digest

_SEEDS = 2**63
_AT_ONCE = 10_000  # rows whose texts are Python's
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
    each = first + count
    repeated = prompts if each == 1 else prompts.take(pa.array(np.repeat(np.arange(prompts.num_rows), each)))
    numbers = np.tile(np.arange(each), prompts.num_rows)
    seeds = (repeated["seed"].to_numpy().astype(np.uint64) + numbers.astype(np.uint64)) % np.uint64(_SEEDS)
    own = pa.array(seeds.astype(np.int64))
    repeated = repeated.set_column(repeated.schema.get_field_index("seed"), "seed", own)
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
    what = ["prompt", "negative_prompt", "seed", *([PREVIEW_URL] if PREVIEW_URL in rows.column_names else [])]
    parts = []
    for batch in rows.select(what).to_batches(max_chunksize=_AT_ONCE):
        each = zip(*(column.to_pylist() for column in batch.columns), strict=True)
        made = [digest(recipe, text, no or "", str(seed), *preview) for text, no, seed, *preview in each]
        parts.append(pa.array(made, pa.string()))
    ids = pa.chunked_array(parts, pa.string())
    if pc.count_distinct(ids).as_py() < len(ids):
        raise PromptError(_clash(rows, ids.to_pylist()))
    return rows.append_column("clip_id", ids)


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
