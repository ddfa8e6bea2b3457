"""Prompts: every form of input, and one clear message for every kind of mistake."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import S3, write_prompts

from flashvideo_ray.identity import candidates
from flashvideo_ray.prompts import PromptError, read_prompts


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
        ({"text": ["a"]}, "no column 'prompt' .*rename 'text' to 'prompt'"),
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
    ],
)
def test_every_mistake_has_its_message(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    with pytest.raises(PromptError, match=message):
        read_prompts(str(tmp_path / "p.parquet"), reserved={"status"})


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
        ("p.jsonl", b'{"prompt": "\xff"}\n', "cannot be read"),
        ("p.txt", b"a cat", "ends with .parquet, .jsonl, .csv"),
    ],
)
def test_a_file_that_is_something_else(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match=message):
        read_prompts(str(tmp_path / name))


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
    with pytest.raises(PromptError, match="rows 1 and 2 have the same prompt, and candidate 1 of one has the seed 6"):
        candidates(read_prompts(url), 2, {}, "")
