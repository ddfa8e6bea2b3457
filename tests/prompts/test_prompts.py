"""Prompts: every form of input, and one clear message for every kind of mistake."""

import datetime as dt
import io
import math
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import S3, write_prompts

from flashvideo_ray.identity import candidates
from flashvideo_ray.prompts import Duplicates, PromptError, checked, read_prompts, visible


def test_a_prompt_alone_is_enough(tmp_path: Path) -> None:
    table = read_prompts(write_prompts(tmp_path / "p.parquet", ["a cat", "a dog"]))
    assert table["prompt"].to_pylist() == ["a cat", "a dog"]
    assert len(set(table["id"].to_pylist())) == 2
    assert table["negative_prompt"].to_pylist() == [None, None]


def test_ids_and_seeds_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    forth = read_prompts(write_prompts(tmp_path / "forth.parquet", ["a cat", "a dog"])).to_pylist()
    back = read_prompts(write_prompts(tmp_path / "back.parquet", ["a dog", "a cat"])).to_pylist()
    assert forth == back[::-1]
    other = read_prompts(str(tmp_path / "forth.parquet"), base_seed=1)
    assert other["seed"].to_pylist() != [row["seed"] for row in forth]


def test_own_ids_seeds_and_other_columns_are_kept(tmp_path: Path) -> None:
    url = write_prompts(
        tmp_path / "p.parquet",
        ["a cat", "a cat"],
        id=[7, 8],
        seed=[3, None],
        negative_prompt=["x", None],
        mood=["a", "b"],
    )
    table = read_prompts(url)
    assert table["id"].to_pylist() == ["7", "8"]
    assert table["seed"].to_pylist()[0] == 3
    assert table["seed"].to_pylist()[1] is not None
    assert table["negative_prompt"].to_pylist() == ["x", None]
    assert table["mood"].to_pylist() == ["a", "b"]


def test_folders_globs_and_other_formats(tmp_path: Path) -> None:
    write_prompts(tmp_path / "b.parquet", ["b"])
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "id": "one"}\n{"prompt": "c, with a comma", "id": "two"}\n')
    (tmp_path / "_SUCCESS").write_text("")
    with pytest.raises(PromptError, match="id is null"):
        read_prompts(str(tmp_path))
    write_prompts(tmp_path / "b.parquet", ["b"], id=["three"])
    assert read_prompts(str(tmp_path))["prompt"].to_pylist() == ["a", "c, with a comma", "b"]
    assert read_prompts(str(tmp_path / "*.parquet"))["prompt"].to_pylist() == ["b"]
    (tmp_path / "c.csv").write_text('id,prompt\n007,"two\nlines"\n')
    assert read_prompts(str(tmp_path / "c.csv")).to_pylist()[0]["id"] == "007"
    assert read_prompts(str(tmp_path / "c.csv")).to_pylist()[0]["prompt"] == "two\nlines"


def test_text_stays_text_however_it_is_stored(tmp_path: Path) -> None:
    (tmp_path / "a[1].jsonl").write_text('{"prompt": "2024-01-02", "id": "2024-01-02"}\n')
    assert read_prompts(str(tmp_path / "a[1].jsonl"))["id"].to_pylist() == ["2024-01-02"]
    words = pa.array(["a", "b", "c"])
    pq.write_table(
        pa.table({"prompt": words.dictionary_encode(), "tag": words.dictionary_encode()}), tmp_path / "1.parquet"
    )
    pq.write_table(
        pa.table({"prompt": words.slice(1).cast(pa.large_string()), "tag": words.slice(1)}), tmp_path / "2.parquet"
    )
    with pytest.raises(
        PromptError, match=r"1\.parquet row 2 and 2\.parquet row 1, 1\.parquet row 3 and 2\.parquet row 2 are the same"
    ):
        read_prompts(str(tmp_path / "*.parquet"))


def test_prompts_in_an_object_store(s3: S3) -> None:
    import s3fs

    sink = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["a", "b"]}), sink)
    s3fs.S3FileSystem().pipe_file(f"{s3.bucket}/prompts/one.parquet", sink.getvalue())
    for url in ("prompts/one.parquet", "prompts", "prompts/*.parquet"):
        assert read_prompts(f"s3://{s3.bucket}/{url}").num_rows == 2
    with pytest.raises(PromptError, match="no such file"):
        read_prompts(f"s3://{s3.bucket}/prompt")
    with pytest.raises(PromptError, match="s3://no-such-bucket/a"):
        read_prompts("s3://no-such-bucket/a")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"]}, "no column 'prompt' .columns: text.; if it is 'text', say so: --column 'prompt=text'"),
        ({"prompt": ["a", None, "c", None]}, "row 2, row 4: prompt is null"),
        ({"prompt": ["a", " ", ""]}, "row 2, row 3: prompt is empty"),
        ({"prompt": ["", *"abcdef"], "id": [*"xxxyyzz"]}, "row 2, row 3: the id 'x' was used before .row 1"),
        ({"prompt": ["", *"abcdef"], "id": [*"xxxyyzz"]}, "row 1: prompt is empty"),
        ({"prompt": ["a", "b"], "id": ["x", None]}, "row 2: id is null"),
        ({"prompt": [1, 2]}, "column 'prompt' holds int64, expected text"),
        ({"prompt": ["a"], "seed": ["1"]}, "column 'seed' holds string, expected whole numbers"),
        ({"prompt": ["a"], "seed": [1.5]}, "column 'seed' holds double"),
        ({"prompt": ["a", "b"], "seed": [1, -1]}, "row 2: seed is outside"),
        ({"prompt": ["a"], "id": [1.5]}, "column 'id' holds double"),
        ({"prompt": ["a"], "negative_prompt": [1]}, "column 'negative_prompt' holds int64"),
        ({"prompt": ["a", "b", "a"]}, "row 1 and row 3 are the same prompt with the same seed"),
        ({"prompt": ["a"], "status": ["x"]}, "column status has a name that the ledger uses"),
        ({"prompt": ["a"], "score_motion": [1.0]}, "column score_motion has a name that the ledger uses"),
        ({"prompt": ["a"], "far": pa.array([2**50], pa.timestamp("s"))}, "column 'far' holds timestamp"),
        ({"prompt": pa.array([], pa.string())}, "no rows"),
        ({"prompt": [""] * 9}, "row 1, row 2, row 3, row 4, row 5 and 4 more: prompt is empty"),
        ({"prompt": ["a", "b", "a\0b"]}, "row 3: prompt holds a NUL character"),
        ({"prompt": ["a"], "id": ["x\0"]}, "row 1: id holds a NUL character"),
        ({"prompt": ["a", "b"], "negative_prompt": [None, "\0"]}, "row 2: negative_prompt holds a NUL character"),
        ({"prompt": ["a", "a"], "id": [*"xy"], "seed": [3, 3]}, "row 1 and row 2 are the same prompt with the same"),
    ],
)
def test_every_mistake_has_its_message(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    with pytest.raises(PromptError, match=message):
        read_prompts(str(tmp_path / "p.parquet"), reserved={"status", "score_*"})


def test_rows_are_named_by_file_where_there_are_several(tmp_path: Path) -> None:
    write_prompts(tmp_path / "a.parquet", ["a", "b"])
    write_prompts(tmp_path / "b.parquet", ["c", ""])
    with pytest.raises(PromptError, match=r"b\.parquet row 2: prompt is empty"):
        read_prompts(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.parquet", b"no parquet", "cannot be read"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": 3}\n', "row 1|row 2"),
        (
            "p.jsonl",
            b'{"prompt": "a"}\n{"prompt": "\xff"}\n',
            "row 2: column 'prompt' cannot be read: its text must be UTF-8",
        ),
        ("p.csv", b"id,prompt\nx,a\ny,\xff\n", "row 2: column 'prompt' cannot be read: its text must be UTF-8"),
        ("p.csv", b"prompt,mood,prompt\na,b,c\n", "p.csv: there are several columns named prompt; rename or drop"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "a", "prompt": "b"}\n', "row 2: 'prompt' stands there twice"),
        ("p.md", b"a cat", "ends with .parquet, .jsonl, .csv"),
    ],
)
def test_a_file_that_is_something_else(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match=message):
        read_prompts(str(tmp_path / name))


def test_text_that_is_not_utf_8_is_named_by_its_row(tmp_path: Path) -> None:
    raw = pa.array([b"a", b"\xff\xfe", b"c", b"\xe4"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    sound = pa.array([*"abcd"])
    for name, table in {
        "prompt": pa.table({"prompt": text}),
        "mood": pa.table({"prompt": sound, "mood": text.dictionary_encode()}),
        "tags": pa.table({"prompt": sound, "tags": pa.ListArray.from_arrays([0, 1, 2, 3, 4], text)}),
    }.items():
        pq.write_table(table, tmp_path / "p.parquet")
        with pytest.raises(PromptError, match=rf"row 2, row 4: column '{name}' cannot be read: its text must be UTF-8"):
            read_prompts(str(tmp_path / "p.parquet"))


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(PromptError, match=r"p\.parquet: there are several columns named prompt; rename or drop"):
        read_prompts(str(tmp_path / "p.parquet"))


def test_whatever_arrow_holds_is_carried_unchanged(tmp_path: Path) -> None:
    moment = dt.datetime(2026, 11, 25, 3, 4, 5, 678901, dt.UTC)
    columns = {
        "tags": pa.array([["x", None], [], None]),
        "weights": pa.array([[0.5, math.nan], [], None]),
        "camera": pa.array([{"lens": 35.0, "path": ["in", "out"]}, {"lens": math.nan, "path": None}, None]),
        "labels": pa.array([[("a", math.nan)], [], None], pa.map_(pa.string(), pa.float64())),
        "price": pa.array([Decimal("1.10"), None, Decimal("0.01")], pa.decimal128(9, 2)),
        "at_night": pa.array([moment, None, moment], pa.timestamp("us", tz="UTC")),
        "day": pa.array([moment.date(), None, moment.date()]),
        "difficulty": pa.array([0.1, math.nan, None]),
        "half": pa.array([1.5, math.nan, None], pa.float16()),
        "raw": pa.array([b"\0\xff", b"", None]),
        "nothing": pa.nulls(3),
    }
    pq.write_table(pa.table({"prompt": [*"abc"], **columns}), tmp_path / "p.parquet")
    table = read_prompts(str(tmp_path / "p.parquet"))
    for name, column in columns.items():
        assert table.schema.field(name).type == column.type
        assert repr(table[name].to_pylist()) == repr(column.to_pylist())


def test_times_in_whole_seconds_have_the_type_that_the_ledger_gives_back(tmp_path: Path) -> None:
    """Otherwise the next job with the same prompts would be refused for a column of another type."""
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "when": "2020-01-01 10:00:00"}\n')
    table = read_prompts(str(tmp_path / "a.jsonl"))
    pq.write_table(table, tmp_path / "ledger.parquet")
    assert pq.read_schema(tmp_path / "ledger.parquet").field("when").type == table.schema.field("when").type
    assert table["when"].to_pylist() == [dt.datetime(2020, 1, 1, 10)]


def test_a_column_without_any_value_agrees_with_every_type(tmp_path: Path) -> None:
    write_prompts(tmp_path / "a.parquet", ["a"], mood=["calm"], seed=[3])
    write_prompts(
        tmp_path / "b.parquet", ["b"], mood=pa.array([None], pa.float64()), seed=pa.array([None], pa.float64())
    )
    (tmp_path / "c.csv").write_text("prompt,mood\nc,\n")
    table = read_prompts(str(tmp_path))
    assert table["mood"].to_pylist() == ["calm", None, None]
    assert table["seed"].to_pylist()[0] == 3
    empty = {name: pa.array([None], pa.float64()) for name in ("seed", "negative_prompt")}
    assert read_prompts(write_prompts(tmp_path / "b.parquet", ["b"], **empty)).num_rows == 1


def test_keys_of_partitioned_folders_are_carried(tmp_path: Path) -> None:
    for folder, prompt in (("date=2026-11-25/shot=007", "a"), ("date=a%20b/shot=__HIVE_DEFAULT_PARTITION__", "b")):
        (tmp_path / folder).mkdir(parents=True)
        write_prompts(tmp_path / folder / "part.parquet", [prompt])
    write_prompts(tmp_path / "date=a%20b" / "part.parquet", ["c"], date=["a b"])
    (tmp_path / "_tmp").mkdir()
    write_prompts(tmp_path / "_tmp" / "half.parquet", ["half"])
    found = {row["prompt"]: (row["date"], row["shot"]) for row in read_prompts(str(tmp_path)).to_pylist()}
    assert found == {"a": ("2026-11-25", "007"), "b": ("a b", None), "c": ("a b", None)}
    [row] = read_prompts(str(tmp_path / "date=2026-11-25/shot=007/part.parquet")).to_pylist()
    assert row["date"] == "2026-11-25"
    write_prompts(tmp_path / "date=a%20b" / "part.parquet", ["c"], date=["another"])
    with pytest.raises(PromptError, match="column 'date' and the folder date=a b do not agree"):
        read_prompts(str(tmp_path))
    write_prompts(tmp_path / "date=a%20b" / "part.parquet", [""])
    with pytest.raises(PromptError, match=r"date=a%20b/part\.parquet row 1: prompt is empty"):
        read_prompts(str(tmp_path))


def test_duplicates_are_dropped_or_get_seeds_of_their_own_where_one_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = write_prompts(tmp_path / "p.parquet", [*"abaa"], mood=["calm", "wild", "dark", "wild"])
    with pytest.raises(
        PromptError, match=r"row 1 and row 3, row 1 and row 4 are the same prompt .* prompts\.duplicates"
    ):
        read_prompts(url)
    dropped = read_prompts(url, duplicates="drop")
    assert dropped["mood"].to_pylist() == ["calm", "wild"]
    assert "2 of 4 prompts repeat another one and were dropped: row 1 and row 3, row 1 and row 4" in caplog.text
    seeded = read_prompts(url, duplicates="seed")
    assert seeded["prompt"].to_pylist() == [*"abaa"]
    assert len(set(seeded["id"].to_pylist())) == len(set(seeded["seed"].to_pylist())) == 4
    assert seeded.slice(0, 2).select(["id", "seed"]).equals(dropped.select(["id", "seed"]))
    assert candidates(seeded, 4, {}, "")["clip_id"].to_pylist()

    named = write_prompts(tmp_path / "named.parquet", ["a", "a", "b"], id=[*"xyx"], seed=[3, 3, 4])
    with pytest.raises(PromptError, match="row 3: the id 'x' was used before"):
        read_prompts(named, duplicates="drop")
    repeated = write_prompts(tmp_path / "repeated.parquet", ["a", "a", "a"], id=[*"xyx"], seed=[3, 3, 3])
    assert read_prompts(repeated, duplicates="drop")["id"].to_pylist() == ["x"]
    with pytest.raises(PromptError, match="row 3: the id 'x' was used before"):
        read_prompts(repeated, duplicates="seed")


def test_seeds_of_candidates_that_overlap_are_as_good_as_the_same(tmp_path: Path) -> None:
    url = write_prompts(tmp_path / "p.parquet", [*"abaa"], seed=[3, 4, 6, 8], id=[*"xyzw"])

    def seeds(duplicates: Duplicates, count: int = 4) -> dict[str, list[int]]:
        made = candidates(read_prompts(url, duplicates=duplicates, span=count), count, {}, "").to_pylist()
        return {name: [row["seed"] for row in made if row["id"] == name] for name in "xyzw"}

    with pytest.raises(PromptError, match=r"'x' and 'z' .* seed 6 .* set prompts\.duplicates to drop or seed"):
        seeds("refuse")
    assert seeds("refuse", 2) == seeds("drop", 2) == {"x": [3, 4], "y": [4, 5], "z": [6, 7], "w": [8, 9]}
    assert seeds("drop") == {"x": [3, 4, 5, 6], "y": [4, 5, 6, 7], "z": [], "w": [8, 9, 10, 11]}
    moved = seeds("seed")
    assert (moved["x"], moved["w"]) == ([3, 4, 5, 6], [8, 9, 10, 11])
    assert not {*moved["x"], *moved["w"]} & {*moved["z"]}


def test_what_cannot_be_seen_is_shown() -> None:
    assert visible("a\x1b[31mb\u202ec\x85\u2066") == "a\\x1b[31mb\\u202ec\\x85\\u2066"
    assert visible("ein Hund \U0001f469\u200d\U0001f680,\r\nשלום\t") == "ein Hund \U0001f469\u200d\U0001f680,\r\nשלום\t"


def test_half_a_surrogate_pair_is_no_text() -> None:
    with pytest.raises(PromptError, match="surrogate"):
        checked([{"prompt": "a \ud800"}])


@pytest.mark.parametrize("url", ["absent.parquet", "absent/*.parquet", "absent", "nosuch://a/b.parquet"])
def test_a_place_where_nothing_is(tmp_path: Path, url: str) -> None:
    with pytest.raises(PromptError, match=r"absent|nosuch"):
        read_prompts(url if "://" in url else str(tmp_path / url))


def test_candidates_have_a_seed_and_a_name_each(tmp_path: Path) -> None:
    prompts = read_prompts(write_prompts(tmp_path / "p.parquet", ["a", "b"], seed=[5, 5]))
    table = candidates(prompts, 3, {"steps": 4}, "f00d")
    assert table["seed"].to_pylist() == [5, 6, 7, 5, 6, 7]
    assert table["candidate"].to_pylist() == [0, 1, 2, 0, 1, 2]
    names = table["clip_id"].to_pylist()
    assert len(set(names)) == 6
    assert candidates(prompts, 3, {"steps": 4}, "f00d")["clip_id"].to_pylist() == names
    assert not set(names) & set(candidates(prompts, 3, {"steps": 5}, "f00d")["clip_id"].to_pylist())
    assert not set(names) & set(candidates(prompts, 3, {"steps": 4}, "beef")["clip_id"].to_pylist())


def test_two_rows_that_would_make_the_same_clip(tmp_path: Path) -> None:
    url = write_prompts(tmp_path / "p.parquet", ["a", "a"], id=["x", "y"], seed=[5, 6])
    assert candidates(read_prompts(url), 1, {}, "")["clip_id"].to_pylist()
    with pytest.raises(
        PromptError, match="the ids 'x' and 'y' have the same text 'a', and candidate 1 of one has the seed 6"
    ):
        candidates(read_prompts(url), 2, {}, "")
