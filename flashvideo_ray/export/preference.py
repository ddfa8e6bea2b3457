"""Pairs of candidates of one prompt, one chosen and one rejected: what preference tuning learns from."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import permutations
from typing import Any

import pyarrow as pa

from flashvideo_ray.export.options import Options
from flashvideo_ray.export.samples import (
    KEY_OF,
    Found,
    Medium,
    caption_of,
    meets,
    own_columns,
    score_columns,
    splits_of,
)
from flashvideo_ray.scorers import columns
from flashvideo_ray.selection.survivors import check_rules, select
from flashvideo_ray.settings import SelectSettings

SIDES = ("chosen", "rejected")
_OF_PROMPT = ("id", "prompt", "negative_prompt", "caption", "split")
_OF_SIDE = ("clip_id", "seed", "candidate", "status", "rank")
_SAID = ("decision", "decided_by")
_ID_DIGITS = 20
Row = dict[str, Any]


def pairs(candidates: pa.Table, options: Options, rules: SelectSettings, sizes: Mapping[str, int]) -> Found:
    """Pairs of a run's candidates, in the order of `pair_id`.

    Of one prompt (id, prompt, negative prompt) a person's word goes first: one approved, one rejected. Otherwise the
    rank (of the run, or `options.rank`) says which is better, by more than nothing and at least `least_margin`; such a
    pair goes against nobody: what is chosen meets the run's requirements and was rejected by no person, what is
    rejected was approved by none. No candidate that failed or has no score is in a pair, nor one without its video.
    Raises RuleError, ExportError.
    """
    rows, gaps = _usable(candidates, options, rules, sizes)
    prompts: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        prompts[row["id"], row["prompt"], row["negative_prompt"] or ""].append(row)
    found: list[Row] = []
    why: dict[str, str] = {}
    for siblings in prompts.values():
        good = []
        for chosen, rejected in permutations(siblings, 2):
            pair = _pair(chosen, rejected)
            against = _against(pair, chosen, rejected, options.least_margin)
            if against is None:
                good.append(pair)
            else:
                why[pair["pair_id"]] = against
        good.sort(key=_place)
        found += good[: options.pairs_a_prompt]
        for pair in good[options.pairs_a_prompt :]:
            why[pair["pair_id"]] = f"not among the first {options.pairs_a_prompt} of its prompt"
    found.sort(key=lambda pair: str(pair["pair_id"]))
    key = KEY_OF[options.media_of]
    return Found(
        key="pair_id",
        rows=_columns(found, candidates, options),
        media=tuple(Medium(side, f"{side}_{key}", f"{side}_sha256" if key == "clip" else None) for side in SIDES),
        why=why,
        otherwise="one of its candidates failed, has no score, does not meet the filter or has no video any more",
        gaps=gaps,
    )


def _usable(
    candidates: pa.Table, options: Options, rules: SelectSettings, sizes: Mapping[str, int]
) -> tuple[list[Row], dict[str, int]]:
    """Candidates that may be in a pair, with `rank`, and whether each meets the rules; and why others may not."""
    key = KEY_OF[options.media_of]
    judging = rules.model_copy(
        update={"keep": None, "duplicates": None, "rank": options.rank or rules.rank, "missing": "fail"}
    )
    scores = score_columns(candidates)
    check_rules(judging, [columns.name_of(name) for name in scores])
    verdicts = select(candidates, judging).select(["status", "rank"]).to_pylist()
    captions, wanted = caption_of(candidates, options), meets(candidates, options)
    usable, gaps = [], Counter[str]()
    shown = {name: name for name in (*_OF_PROMPT, *_OF_SIDE, *_SAID, *scores, key, "sha256")} | own_columns(candidates)
    rows = candidates.select([name for name in shown if name in candidates.column_names])
    rows = rows.rename_columns([shown[name] for name in rows.column_names])
    for row, verdict, caption, is_wanted in zip(rows.to_pylist(), verdicts, captions, wanted, strict=True):
        if not is_wanted:
            continue
        if row["status"] == "failed":
            gaps["failed"] += 1
        elif verdict["status"] == "failed" or _is_unscored(row, verdict, scores, judging):
            gaps["no score"] += 1
        elif caption is None:
            gaps[f"no text in the column {options.caption}"] += 1
        elif row[key] not in sizes:
            gaps[f"no {key}"] += 1
        else:
            meets_rules = verdict["status"] != "rejected"
            usable.append({**row, "rank": verdict["rank"], "caption": caption, "meets_rules": meets_rules})
    return usable, dict(gaps)


def _is_unscored(row: Row, verdict: Row, scores: list[str], rules: SelectSettings) -> bool:
    if rules.rank is not None:
        return verdict["rank"] is None
    return bool(scores) and all(row[name] is None for name in scores)


def _pair(chosen: Row, rejected: Row) -> Row:
    names = f"{chosen['clip_id']}/{rejected['clip_id']}"
    is_said = (chosen["decision"], rejected["decision"]) == ("approved", "rejected")
    people = dict.fromkeys([chosen["decided_by"], rejected["decided_by"]])
    is_ranked = chosen["rank"] is not None and rejected["rank"] is not None
    sides = {
        f"{side}_{name}": value
        for side, row in zip(SIDES, (chosen, rejected), strict=True)
        for name, value in row.items()
    }
    return {
        **chosen,
        **sides,
        "pair_id": hashlib.sha256(names.encode()).hexdigest()[:_ID_DIGITS],
        "decided": "people" if is_said else "rank",
        "decided_by": ", ".join(map(str, people)) if is_said else None,
        "margin": chosen["rank"] - rejected["rank"] if is_ranked else None,
    }


def _against(pair: Row, chosen: Row, rejected: Row, least_margin: float) -> str | None:
    """Why it is no pair, or None if it is one."""
    if pair["decided"] == "people":
        return None
    if chosen["decision"] == "rejected":
        return f"{chosen['clip_id']} was rejected by {chosen['decided_by']}"
    if rejected["decision"] == "approved":
        return f"{rejected['clip_id']} was approved by {rejected['decided_by']}"
    if not chosen["meets_rules"]:
        return f"{chosen['clip_id']} does not meet the run's rules"
    if pair["margin"] is None:
        return "no rank compares them"
    if pair["margin"] <= 0 or pair["margin"] < least_margin:
        return f"margin {pair['margin']:.4g}"
    return None


def _place(pair: Row) -> tuple[bool, float, str]:
    margin = -math.inf if pair["margin"] is None else pair["margin"]
    return pair["decided"] != "people", -margin, pair["pair_id"]


def _columns(found: list[Row], candidates: pa.Table, options: Options) -> pa.Table:
    types = {field.name: field.type for field in candidates.schema} | {"caption": pa.string(), "rank": pa.float64()}
    key = KEY_OF[options.media_of]
    own = own_columns(candidates)
    of_side = (*_OF_SIDE, *score_columns(candidates), key, *(("sha256",) if key == "clip" else ()))
    fields = [
        pa.field("pair_id", pa.string()),
        *(pa.field(name, types.get(name, pa.string())) for name in _OF_PROMPT if name != "split"),
        pa.field("decided", pa.string()),
        pa.field("decided_by", pa.string()),
        pa.field("margin", pa.float64()),
        *(pa.field(f"{side}_{name}", types[name]) for side in SIDES for name in of_side),
    ]
    rows = pa.Table.from_pylist(found, schema=pa.schema(fields))
    place = rows.schema.get_field_index("caption") + 1
    rows = rows.add_column(place, "split", splits_of(rows["prompt"], options))
    for name, shown in own.items():
        rows = rows.append_column(shown, pa.array([pair[shown] for pair in found], types[name]))
    return rows
