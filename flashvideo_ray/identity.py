"""Candidates: which (prompt, seed) pairs there are, and the id that says all that decides their pixels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from flashvideo_ray.prompts import PromptError, digest


def candidates(
    prompts: pa.Table, count: int, stage1: Mapping[str, Any], fingerprint: str, drop: bool = False
) -> pa.Table:
    """One row for each (prompt, seed) pair: `count` candidates of every prompt, numbered from 0.

    Adds `candidate` and `clip_id`, a hex digest of all that decides the preview: prompt, negative prompt, seed, the
    stage-1 settings and the fingerprint of the stage-1 weights. Candidate k of a prompt has seed `seed + k`. If two
    rows give the same candidate, it stays where it has the lower number with `drop`; otherwise PromptError is raised.
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
    first: dict[str, int] = {}
    for row in sorted(range(len(ids)), key=numbers.__getitem__):
        before = first.setdefault(ids[row], row)
        if before != row and not drop:
            a, b = sorted((before, row))
            raise PromptError(
                f"rows {a // count + 1} and {b // count + 1} have the same prompt, and candidate {numbers[a]} of one "
                f"has the seed {seeds[a]} that candidate {numbers[b]} of the other has; drop one, change its seed, or "
                "set prompts.duplicates to drop or seed"
            )
    made = (
        repeated.set_column(repeated.schema.get_field_index("seed"), "seed", pa.array(seeds, pa.int64()))
        .append_column("candidate", pa.array(numbers, pa.int32()))
        .append_column("clip_id", pa.array(ids, pa.string()))
    )
    return made.take(pa.array(sorted(first.values()))) if len(first) < len(ids) else made
