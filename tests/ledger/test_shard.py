"""A share of the prompts: stable, whole together, and the same in every job that takes it."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pytest

from flashvideo_ray.graph.quota import Quota
from flashvideo_ray.ledger.shard import Shard, ShardError


def prompts(*numbers: int) -> pa.Table:
    return pa.table({"id": [f"p{number}" for number in numbers], "prompt": ["a"] * len(numbers)})


def test_what_a_shard_is_read_from() -> None:
    assert Shard.parse("3/8") == Shard(3, 8)
    assert str(Shard.parse(" 1 / 1 ")) == "1/1"
    for text in ("", "3", "0/8", "9/8", "-1/8", "3/8/2", "a/b", "1/99999", "3.0/8"):
        with pytest.raises(ShardError, match=r"write the job's number and how many there are, such as 3/8"):
            Shard.parse(text)


def test_each_prompt_is_of_one_share_and_shares_are_alike_in_size() -> None:
    table = prompts(*range(4000))
    shares = [Shard(number, 8).of(table)["id"].to_pylist() for number in range(1, 9)]
    assert sorted(name for share in shares for name in share) == sorted(table["id"].to_pylist())
    assert all(400 < len(share) < 600 for share in shares)


def test_a_file_that_grows_or_is_sorted_otherwise_moves_no_prompt() -> None:
    before = Shard(2, 5).of(prompts(*range(30)))["id"].to_pylist()
    after = Shard(2, 5).of(prompts(*reversed(range(-50, 300))))["id"].to_pylist()
    assert {*before} == {*after} & {*prompts(*range(30))["id"].to_pylist()}
    assert before == ["p5", "p11", "p17", "p20", "p26"]  # in every version: runs go on under the next one
    assert Shard(1, 1).of(prompts(*range(9))) == prompts(*range(9))


def test_candidates_of_a_prompt_are_of_one_share() -> None:
    rows = pa.concat_tables([prompts(*range(30))] * 4)
    counts = Counter(Shard(1, 3).of(rows)["id"].to_pylist())
    assert {*counts.values()} == {4}


def test_shares_of_a_number_of_clips_are_that_number_together_and_hours_are_of_each_job() -> None:
    parts = [Quota(accept=10, hours=2.0).part(Shard(number, 8)) for number in range(1, 9)]
    assert sum(part.accept or 0 for part in parts) == 10
    assert {part.accept for part in parts} == {1, 2}
    assert {part.hours for part in parts} == {2.0}
    assert Quota(accept=10).part(None) == Quota(accept=10)
