"""Selection over tables of scores: who survives, in which order, and why the others do not."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvideo_ray.expressions.rules import RuleError
from flashvideo_ray.selection.survivors import Opinion, audited, check_rules, reasons_without_numbers, select
from flashvideo_ray.settings import SelectSettings


def previews(*rows: dict[str, Any]) -> pa.Table:
    """Rows with a prompt `p` unless they name another, and clip_ids c0, c1, …"""
    full = [{"clip_id": f"c{index}", "id": "p", "candidate": index, **row} for index, row in enumerate(rows)]
    return pa.Table.from_pylist(full, schema=_schema(full))


def _schema(rows: list[dict[str, Any]]) -> pa.Schema:
    names = dict.fromkeys(name for row in rows for name in row)
    kinds = {"clip_id": pa.string(), "id": pa.string(), "candidate": pa.int32(), "scorer_errors": pa.string()}
    return pa.schema([(name, kinds.get(name, pa.float64())) for name in names])


def decide(table: pa.Table, people: dict[str, Opinion] | None = None, **rules: Any) -> list[tuple[str, str | None]]:
    result = select(table, SelectSettings(**rules), people)
    return list(zip(result["status"].to_pylist(), result["reason"].to_pylist(), strict=True))


def test_the_first_rule_that_does_not_hold_is_the_reason_with_its_number() -> None:
    table = previews({"score_motion": 0.4, "score_flicker": 2.0}, {"score_motion": 0.6, "score_flicker": 2.0})
    assert decide(table, require=["flicker < 3", "motion >= 0.5"]) == [
        ("rejected", "motion >= 0.5 (motion = 0.4)"),
        ("previewed", None),
    ]
    assert reasons_without_numbers("motion >= 0.5 (motion = 0.4)") == "motion >= 0.5"
    assert reasons_without_numbers("(motion) > 1") == "(motion) > 1"


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_score_that_is_missing_is_treated_as_the_settings_say(value: float | None) -> None:
    table = previews({"score_alignment": value, "scorer_errors": "clip: ValueError: no such file"})
    why = "alignment > 9: no usable score alignment (clip: ValueError: no such file)"
    assert decide(table, require="alignment > 9") == [("rejected", why)]
    assert decide(table, require="alignment > 9", missing="fail") == [("failed", why)]
    assert decide(table, require="alignment > 9", missing="keep") == [("previewed", None)]


def test_the_best_of_each_prompt_survive() -> None:
    table = previews(
        {"score_alignment": 0.1},
        {"score_alignment": 0.3},
        {"score_alignment": 0.2},
        {"score_alignment": 0.05, "id": "q"},
    )
    found = decide(table, rank="alignment", keep=1)
    assert [status for status, _ in found] == ["rejected", "previewed", "rejected", "previewed"]
    assert found[0][1] == "not among the best 1 of its prompt by alignment (0.1, place 3 of 3)"
    assert select(table, SelectSettings(rank="alignment * 2"))["rank"].to_pylist() == [0.2, 0.6, 0.4, 0.1]


def test_a_rank_that_cannot_be_computed_is_treated_as_a_missing_score() -> None:
    table = previews({"score_a": 1.0, "score_b": 0.0}, {"score_a": 1.0, "score_b": 2.0})
    why = "rank a / b is no number (a = 1, b = 0)"
    assert decide(table, rank="a / b", keep=1) == [("rejected", why), ("previewed", None)]
    assert decide(table, rank="a / b", keep=1, missing="fail")[0] == ("failed", why)
    assert decide(table, rank="a / b", keep=2, missing="keep") == [("previewed", None)] * 2
    assert reasons_without_numbers(why) == "rank a / b is no number"


def test_what_a_requirement_drops_takes_no_place_among_the_best() -> None:
    table = previews({"score_a": 9.0, "score_b": 0.0}, {"score_a": 1.0, "score_b": 1.0})
    assert [status for status, _ in decide(table, require="b > 0", rank="a", keep=1)] == ["rejected", "previewed"]


def test_without_a_rank_the_first_candidates_are_kept() -> None:
    found = decide(previews({"score_a": 1.0}, {"score_a": 2.0}), keep=1)
    assert found == [("previewed", None), ("rejected", "not among the best 1 of its prompt in order (place 2 of 2)")]


def test_a_percentile_is_of_all_previews_of_the_run() -> None:
    table = previews(*({"score_motion": float(value), "id": str(value)} for value in range(10)))
    statuses = [status for status, _ in decide(table, percentiles={"motion": 70})]
    assert statuses == ["rejected"] * 7 + ["previewed"] * 3
    assert decide(table, percentiles={"motion": 70})[0][1] == "motion below the run's 70th percentile (0 < 6.3)"


def test_of_near_duplicates_the_best_survives() -> None:
    table = previews(
        {"score_hash": float(0b1111), "score_motion": 1.0},
        {"score_hash": float(0b1110), "score_motion": 2.0},
        {"score_hash": float(2**47), "score_motion": 0.0},
        {"score_hash": float(0b1110), "score_motion": 3.0, "id": "q"},
        {"score_hash": None, "score_motion": 0.0},
    )
    within = decide(table, duplicates=1, rank="motion")
    assert [status for status, _ in within] == ["rejected", "previewed", "previewed", "previewed", "previewed"]
    assert within[0][1] == "near-duplicate of a better one (c1, 1 of 48 bits differ)"
    across = decide(table, duplicates=1, duplicates_within="run", rank="motion")
    assert [status for status, _ in across] == ["rejected", "rejected", "previewed", "previewed", "previewed"]


@given(st.lists(st.integers(0, 2**48 - 1), max_size=40), st.integers(0, 24))
@settings(max_examples=50, deadline=None)
def test_no_two_survivors_are_near_duplicates(hashes: list[int], bits: int) -> None:
    table = previews(*({"score_hash": float(value ^ flip)} for value in hashes for flip in (0, 5)))
    if not hashes:
        return
    found = decide(table, duplicates=bits)
    kept = [int(v) for v, (status, _) in zip(table["score_hash"].to_pylist(), found, strict=True) if status != "rejected"]  # fmt: skip # noqa: E501
    assert all((a ^ b).bit_count() > bits for i, a in enumerate(kept) for b in kept[:i])
    dropped = [int(v) for v, (status, _) in zip(table["score_hash"].to_pylist(), found, strict=True) if status == "rejected"]  # fmt: skip # noqa: E501
    assert all(any((a ^ b).bit_count() <= bits for b in kept) for a in dropped)


def test_people_go_before_rules() -> None:
    table = previews({"score_motion": 0.0}, {"score_motion": 1.0}, {"score_motion": 1.0})
    people = {"c0": Opinion(True, "ann"), "c1": Opinion(False, "ben")}
    assert decide(table, people, require="motion > 0.5") == [
        ("approved", None),
        ("rejected", "rejected by ben"),
        ("previewed", None),
    ]


def test_no_previews_no_decisions() -> None:
    table = previews({"score_motion": 0.0}).slice(0, 0)
    assert decide(table, require="motion > 1", rank="motion", keep=1, duplicates=3, percentiles={"motion": 5}) == []


@given(st.permutations(range(6)))
@settings(deadline=None)
def test_the_order_of_rows_does_not_matter(order: list[int]) -> None:
    rows = [{"score_a": float(i % 3), "clip_id": f"c{i}", "candidate": i, "id": f"p{i // 3}"} for i in range(6)]
    rules: dict[str, Any] = {"require": "a > 0", "rank": "a", "keep": 1}
    straight = dict(zip((row["clip_id"] for row in rows), decide(previews(*rows), **rules), strict=True))
    mixed = [rows[index] for index in order]
    assert dict(zip((row["clip_id"] for row in mixed), decide(previews(*mixed), **rules), strict=True)) == straight


def test_rules_about_scores_that_nobody_gives() -> None:
    with pytest.raises(RuleError, match="uses alignment"):
        check_rules(SelectSettings(rank="alignment"), ["motion"])
    with pytest.raises(RuleError, match="add the scorer phash"):
        check_rules(SelectSettings(duplicates=3), ["motion"])
    check_rules(SelectSettings(percentiles={"motion": 10}, duplicates=3), ["motion", "hash"])


def test_the_audited_share_is_a_share_and_stays_the_same() -> None:
    ids = [f"{index:016x}" for index in range(4000)]
    share = np.mean([audited(clip_id, 0.05) for clip_id in ids])
    assert 0.035 < share < 0.065
    assert not any(audited(clip_id, 0.0) for clip_id in ids)
    assert all(audited(clip_id, 1.0) for clip_id in ids)
