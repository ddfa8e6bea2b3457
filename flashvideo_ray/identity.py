"""Candidates: which (prompt, seed) pairs there are, and the id that says all that decides their pixels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from flashvideo_ray.prompts import PromptError, digest


def candidates(prompts: pa.Table, count: int, stage1: Mapping[str, Any], fingerprint: str) -> pa.Table:
    """One row for each (prompt, seed) pair: `count` candidates of every prompt, numbered from 0.

    Adds `candidate` and `clip_id`, a hex digest of all that decides the preview: prompt, negative prompt, seed, the
    stage-1 settings and the fingerprint of the stage-1 weights. Candidate k of a prompt has seed `seed + k`. Raises
    PromptError if two rows give the same candidate.
    """
    recipe = json.dumps([dict(stage1), fingerprint], sort_keys=True)
    repeated = prompts.take(pa.array([row for row in range(prompts.num_rows) for _ in range(count)]))
    numbers = [k for _ in range(prompts.num_rows) for k in range(count)]
    seeds = [(seed + k) % 2**63 for seed, k in zip(repeated["seed"].to_pylist(), numbers, strict=True)]
    texts, negatives = repeated["prompt"].to_pylist(), repeated["negative_prompt"].to_pylist()
    ids = [
        digest(recipe, text, negative or "", str(seed))
        for text, negative, seed in zip(texts, negatives, seeds, strict=True)
    ]
    if len(set(ids)) < len(ids):
        first: dict[str, int] = {}
        for row, clip_id in enumerate(ids):
            if clip_id in first:
                a, b = first[clip_id] // count + 1, row // count + 1
                raise PromptError(
                    f"rows {a} and {b} have the same prompt, and candidate {first[clip_id] % count} of one has the "
                    f"seed {seeds[row]} that candidate {row % count} of the other has; drop one or change its seed"
                )
            first[clip_id] = row
    return (
        repeated.set_column(repeated.schema.get_field_index("seed"), "seed", pa.array(seeds, pa.int64()))
        .append_column("candidate", pa.array(numbers, pa.int32()))
        .append_column("clip_id", pa.array(ids, pa.string()))
    )
