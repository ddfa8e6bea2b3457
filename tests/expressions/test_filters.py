"""Filters as people write them: what they say of the rows of a table, what they refuse."""

import datetime as dt
import math
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvideo_ray.expressions.filters import Filter
from flashvideo_ray.expressions.rules import RuleError

NIGHT = dt.datetime(2026, 11, 25, 3, 0, tzinfo=dt.UTC)
ROWS = pa.table(
    {
        "n": pa.array([0, 1, 2, 3]),
        "status": ["rendered", "failed", "rejected", None],
        "prompt": pa.array(["a cat", "a dog", "it's", "a catfish"]).dictionary_encode(),
        "motion": pa.array([0.4, None, math.nan, 3.0]),
        "half": pa.array([0.5, 1.5, None, math.nan], pa.float16()),
        "price": pa.array([Decimal("1.10"), None, Decimal("0.10"), Decimal("2.00")], pa.decimal128(9, 2)),
        "seed": pa.array([2**62 + 1, 2**62, 5, None]),
        "audit": pa.array([True, False, None, True]),
        "at": pa.array([NIGHT, NIGHT + dt.timedelta(hours=12), None, NIGHT], pa.timestamp("ms", tz="UTC")),
        "day": pa.array([NIGHT.date(), None, NIGHT.date(), None]),
        "tags": pa.array([["x"], None, [], ["y"]]),
        "nothing": pa.nulls(4),
    }
)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("status == 'failed'", [1]),
        ('status != "failed"', [0, 2]),
        ("not status == 'failed'", [0, 2]),
        ("status in ('failed', 'rejected')", [1, 2]),
        ("status in ['failed']", [1]),
        ("status in ('failed')", [1]),
        ("status not in ('failed', 'rejected')", [0]),
        ("status is null", [3]),
        ("status is not null and n > 0", [1, 2]),
        ("'cat' in prompt", [0, 3]),
        ("'cat' not in prompt", [1, 2]),
        ('prompt == "it\'s"', [2]),
        ("motion > 0.4 or n == 1", [1, 3]),
        ("motion is null", [1, 2]),
        ("not motion > 1", [0]),
        ("0 < n < 3 and status is not None", [1, 2]),
        ("n / (n - 1) > 1.4", [2, 3]),
        ("not n / (n - 1) > 1.4", [0]),
        ("n in (0, 2.0, 9)", [0, 2]),
        ("half > 1", [1]),
        ("price * 2 >= 2.2", [0, 3]),
        (f"seed == {2**62}", [1]),
        (f"seed < {2**70}", [0, 1, 2]),
        ("-n <= -2", [2, 3]),
        ("audit", [0, 3]),
        ("not audit", [1]),
        ("audit == false", [1]),
        ("at >= '2026-11-25 15:00'", [1]),
        ("at < '2026-11-25T16:00+02:00'", [0, 3]),
        ("day == '2026-11-25'", [0, 2]),
        ("tags is null", [1]),
        ("nothing is null and n < 1", [0]),
        ("nothing == 'x' or nothing > 1 or nothing", []),
        ("'x' in nothing or n == 2", [2]),
    ],
)
def test_what_a_filter_means(text: str, rows: list[int]) -> None:
    found = Filter.parse(text)
    assert ROWS.filter(found.over(ROWS))["n"].to_pylist() == rows
    assert ROWS.slice(0, 0).filter(found.over(ROWS.slice(0, 0))).num_rows == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "write it like"),
        ("status = 'failed'", "cannot read the filter"),
        ("status", None),  # only the table tells what it is
        ("'failed'", "is no condition"),
        ("1 == 1", "the same for all rows"),
        ("true", "the same for all rows|no condition"),
        ("status == null", "compares with null; write `is null`"),
        ("status in ('a', null)", "compares with null; write `is null`"),
        ("status is 'failed'", "`is` before something other than null; write =="),
        ("n > (n > 1)", "allowed are columns"),
        ("n and (1 + n)", "is no condition"),
        ("__import__('os').system('true')", "is no condition"),
        ("status.x == 1", "allowed are columns"),
        ("n ** 9 > 1", "allowed are columns"),
        ("(lambda: 1)() > n", "allowed are columns"),
        ("[n for n in (1, 2)] > n", "allowed are columns"),
        ("f'{n}' == n", "allowed are columns"),
        ("n == b'x'", "allowed are columns"),
        ("not " * 120 + "n > 1", "parts; at most|write it like"),
        ("n > 1 or " * 100 + "n > 1", "characters; at most"),
    ],
)
def test_anything_else_is_refused(text: str, message: str | None) -> None:
    if message is None:
        Filter.parse(text)
        return
    with pytest.raises(RuleError, match=message):
        Filter.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stauts == 'failed'", "uses stauts, which is no column here; did you mean status?"),
        ("zzz > 1", "uses zzz, which is no column here; there are at, audit, day"),
        ("status > 1", "compares a column of string with 1; texts stand in quotes"),
        ("n == '1'", "compares a column of int64 with '1'; texts stand in quotes"),
        ("status", "has status as a condition, which holds .*string.*; compare it"),
        ("not n", "has n as a condition"),
        ("status + 1 > 2", "computes with a column of string"),
        ("tags == 'x'", "lists and the like can only be `is null`"),
        ("audit == 1", "both must be of one kind"),
        ("at > 'yesterday'", "'yesterday', which is no time; write it like 2026-11-25"),
        ("status in prompt", "write 'text' in COLUMN"),
        ("1 in n", "write 'text' in COLUMN"),
    ],
)
def test_what_the_table_does_not_allow_is_named(text: str, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        Filter.parse(text).over(ROWS)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        found = Filter.parse(text)
    except RuleError:
        return
    assert found.names
