"""Prompts as people have them: every form of file, columns by their names, and a part of them."""

import gzip
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import serve_dataset
from support import write_prompts

from flashvideo_ray.expressions.rules import RuleError
from flashvideo_ray.identity import candidates
from flashvideo_ray.prompts import PromptError, read_prompts

ROWS = [
    {"id": "007", "prompt": "a cat, asleep", "mood": "calm", "shots": 1},
    {"id": "x 2", "prompt": 'she says "no"\tand\ngoes', "mood": None, "shots": 2},
    {"id": "ü", "prompt": "ein Hund im Schnee", "mood": "wild", "shots": 3},
]
CSV = (
    'id,prompt,mood,shots\n007,"a cat, asleep",calm,1\nx 2,"she says ""no""\tand\ngoes",,2\n'
    "ü,ein Hund im Schnee,wild,3\n"
)
FORMS = {
    "p.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "p.json": json.dumps(ROWS, indent=2),
    "p.csv": CSV,
    "p.tsv": 'id\tprompt\tmood\tshots\n007\ta cat, asleep\tcalm\t1\nx 2\t"she says ""no""\tand\ngoes"\t\t2\n'
    "ü\tein Hund im Schnee\twild\t3\n",
}


def compressed(data: bytes, codec: str) -> bytes:
    sink = pa.BufferOutputStream()
    out = pa.CompressedOutputStream(sink, codec)
    out.write(data)
    out.close()
    return bytes(sink.getvalue())


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_prompts(tmp_path: Path, name: str) -> None:
    content = FORMS[name].encode()
    same = {
        name: content,
        f"bom-{name}": b"\xef\xbb\xbf" + content,
        f"crlf-{name}": content.replace(b"\n", b"\r\n") if name in ("p.jsonl", "p.json") else content,
        f"{name}.gz": gzip.compress(content[:50]) + gzip.compress(content[50:]),
        f"{name}.zst": compressed(content, "zstd"),
    }
    for form, data in same.items():
        (tmp_path / form).write_bytes(data)
        table = read_prompts(str(tmp_path / form)).drop_columns(["seed", "negative_prompt"])
        found = [{**row, "mood": row["mood"] or None} for row in table.to_pylist()]
        assert found == ROWS, form


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    lines = ['a cat, "asleep"', "  'a dog'\tin snow ", "# three"]
    for name, data in {
        "p.txt": "\n".join(lines).encode(),
        "crlf.txt": b"\xef\xbb\xbf" + "".join(f"{line}\r\n" for line in lines).encode(),
        "p.txt.gz": gzip.compress("\n".join(lines).encode()),
        "p.txt.zst": compressed("\n".join(lines).encode(), "zstd"),
        "p.json": json.dumps(lines).encode(),
    }.items():
        (tmp_path / name).write_bytes(data)
        table = read_prompts(str(tmp_path / name))
        assert table["prompt"].to_pylist() == lines
        assert table["id"].to_pylist() == read_prompts(str(tmp_path / "p.txt"))["id"].to_pylist()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"a\n\nb\n \n", "row 2, row 4: prompt is empty"),
        ("p.txt", b"a\nb\n\n", "row 3: prompt is empty"),
        ("p.txt", b"a\nb\0c\n", "row 2: prompt holds a NUL"),
        ("p.txt", b"a\n\xff\n", "row 2: column 'prompt' cannot be read: its text must be UTF-8"),
        ("p.txt", "a\nb\n".encode("utf-16"), "it is UTF-16; save it as UTF-8"),
        ("p.csv", "prompt\na\n".encode("utf-16"), "it is UTF-16; save it as UTF-8"),
        ("p.txt", b"", "cannot be read: Empty"),
        ("p.csv", b"", "cannot be read: Empty"),
        ("p.csv", b"prompt\n", "no rows"),
        ("p.jsonl", b"", "cannot be read: Empty"),
        ("p.json", b"", "cannot be read: Expecting value"),
        ("p.json", b"[]", "no rows"),
        ("p.json", b'{"prompt": "a"}', "holds an object, and not an array"),
        ("p.json", b'{"prompt": "a"}\n{"prompt": "b"}\n', "cannot be read: Extra data: line 2"),
        ("p.json", b'"a"', "holds a str, and not an array"),
        ("p.json", b'["a", {"prompt": "b"}]', "row 1: it is a str; all must be objects, or all texts"),
        ("p.json", b'[{"prompt": "a"}, 3]', "row 2: it is a int; all must be objects"),
        ("p.json", b'[{"prompt": "a"}, {"prompt": "b", "prompt": "c"}]', "row 2: 'prompt' stands there twice"),
        ("p.json", b'[{"prompt": "a"}', "cannot be read: Expecting ',' delimiter"),
        ("p.json", b'[{"prompt": "a\xff"}]', "cannot be read: 'utf-8' codec"),
        ("p.json", b'["a", " "]', "row 2: prompt is empty"),
        ("p.csv.gz", gzip.compress(CSV.encode(), mtime=0)[:-20], "p.csv.gz: cannot be read: Truncated"),
        ("p.txt.zst", compressed(b"a\nb\n" * 99, "zstd")[:-5], "p.txt.zst: cannot be read: Truncated"),
        ("p.csv.gz", b"prompt\na\n", "p.csv.gz: cannot be read"),
        ("p.parquet.gz", b"", "p.parquet.gz: expected a file that ends with .parquet, .jsonl"),
        ("p.csv", b'prompt;mood\n"a";b\n', "no column 'prompt' .columns: prompt;mood"),
    ],
)
def test_a_strange_file_is_named_with_what_is_wrong(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match=message):
        read_prompts(str(tmp_path / name))


def test_notes_in_a_folder_are_no_prompts(tmp_path: Path) -> None:
    (tmp_path / "README.txt").write_text("About these prompts.\n")
    (tmp_path / "info.json").write_text('{"made": "yesterday"}')
    with pytest.raises(PromptError, match=r"unless asked for: .*/\*\.json"):
        read_prompts(str(tmp_path))
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"prompt\tmood\na\tcalm\n", mtime=0))
    write_prompts(tmp_path / "b.parquet", ["b"], mood=["wild"])
    assert read_prompts(str(tmp_path))["prompt"].to_pylist() == ["a", "b"]
    assert read_prompts(str(tmp_path / "*.txt"))["prompt"].to_pylist() == ["About these prompts."]


def test_columns_are_called_what_they_are_called(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = {"key": ["007", "8"], "caption": ["a", "b"], "n": [3, 4], "not this": ["x", None], "mood": ["m", "n"]}
    pq.write_table(pa.table(content), tmp_path / "p.parquet")
    rows = [dict(zip(content, row, strict=True)) for row in zip(*content.values(), strict=True)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "p.csv").write_text("key,caption,n,not this,mood\n007,a,3,x,m\n8,b,4,,n\n")
    columns = {"prompt": "caption", "id": "key", "seed": "n", "negative_prompt": "not this"}
    for name in ("p.parquet", "p.jsonl", "p.csv"):
        table = read_prompts(str(tmp_path / name), columns=columns)
        assert table.column_names == ["id", "prompt", "negative_prompt", "seed", "mood"]
        assert [list(row.values()) for row in table.to_pylist()] in (
            [["007", "a", "x", 3, "m"], ["8", "b", None, 4, "n"]],
            [["007", "a", "x", 3, "m"], ["8", "b", "", 4, "n"]],  # a CSV file knows no null
        )
        with pytest.raises(PromptError, match=r"no column 'captoin' for prompt .*did you mean 'caption'\?"):
            read_prompts(str(tmp_path / name), columns={"prompt": "captoin"})
        with pytest.raises(PromptError, match=r"no column 'zzz' for id .columns: .*caption"):
            read_prompts(str(tmp_path / name), columns={"prompt": "caption", "id": "zzz"})
    write_prompts(tmp_path / "p.parquet", ["old"], caption=["new"])
    with caplog.at_level(logging.WARNING):
        assert read_prompts(str(tmp_path / "p.parquet"), columns={"prompt": "caption"})["prompt"].to_pylist() == ["new"]
    assert "column prompt is left out" in caplog.text
    same = read_prompts(str(tmp_path / "p.parquet"), columns={"prompt": "prompt"})
    assert same["caption"].to_pylist() == ["new"]


def test_a_part_is_what_the_whole_file_would_give(tmp_path: Path) -> None:
    prompts, moods = ["a", "b", "a", "c", "", "d"], ["calm", "wild", "calm", "calm", "wild", "calm"]
    url = write_prompts(tmp_path / "p.parquet", prompts, mood=moods)
    calm = read_prompts(url, only="mood == 'calm'", duplicates="seed")
    assert calm["prompt"].to_pylist() == ["a", "a", "c", "d"]
    with pytest.raises(PromptError, match="row 5: prompt is empty"):
        read_prompts(url, only="mood == 'wild' or 'a' in prompt")
    with pytest.raises(PromptError, match="row 1 and row 3 are the same prompt"):
        read_prompts(url, only="mood == 'calm'")
    assert read_prompts(url, only="prompt in ('b', 'c')")["prompt"].to_pylist() == ["b", "c"]

    names = calm["id"].to_pylist()
    (tmp_path / "ids.txt").write_text(f"\ufeff{names[3]}\r\n\r\n{names[1]}\r\n")
    for only in (f"{names[1]}, {names[3]}", f"@{tmp_path}/ids.txt", f"id in ('{names[1]}', '{names[3]}')"):
        part = read_prompts(url, only=only, duplicates="seed")
        assert part.equals(calm.take([1, 3]))
    dropped = read_prompts(url, only="mood == 'calm'", duplicates="drop")
    assert dropped.equals(calm.take([0, 2, 3]))


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("x,nope,neither", "no prompt has the id 'nope', 'neither'; write ids as the prompts have them"),
        ("mood == 'grim'", "this holds for none of 2 prompts"),
        ("moood == 'calm'", "uses moood, which is no column here; did you mean mood?"),
        ("mood = 'calm'", "cannot read the filter"),
        ("mood > 3", "compares a column of string with 3"),
        ("@absent.txt", "--only @absent.txt: cannot be read: FileNotFoundError"),
        (" , ", "holds no id"),
        ("", "holds no id"),
    ],
)
def test_a_part_that_is_none(tmp_path: Path, only: str, message: str) -> None:
    url = write_prompts(tmp_path / "p.parquet", ["a", "b"], id=["x", "a-b c"], mood=["calm", "wild"])
    assert read_prompts(url, only="x,a-b c").num_rows == 2
    with pytest.raises((PromptError, RuleError), match=message):
        read_prompts(url, only=only)


def test_rows_that_are_single_candidates_are_made_as_they_were(tmp_path: Path) -> None:
    prompts = read_prompts(write_prompts(tmp_path / "p.parquet", ["a", "b"], mood=["m", "n"], seed=[7, 2**63 - 1]))
    whole = candidates(prompts, 3, {"steps": 4}, "f00d")
    part = whole.take([4, 0, 2, 5]).drop_columns(["clip_id"])
    pq.write_table(part, tmp_path / "part.parquet")
    again = read_prompts(str(tmp_path / "part.parquet"))
    made = candidates(again, 3, {"steps": 4}, "f00d")
    assert made.to_pylist() == [
        {name: row[name] for name in made.column_names} for row in whole.take([4, 0, 2, 5]).to_pylist()
    ]
    further = candidates(again, 2, {"steps": 4}, "f00d", first=3).sort_by(
        [("prompt", "ascending"), ("candidate", "ascending")]
    )
    expected = candidates(prompts, 2, {"steps": 4}, "f00d", first=3)
    assert further["clip_id"].to_pylist() == expected["clip_id"].to_pylist()
    assert further.column_names == made.column_names

    def refused(message: str, **columns: list[object]) -> None:
        pq.write_table(pa.table({**part.to_pydict(), **columns}), tmp_path / "wrong.parquet")
        with pytest.raises(PromptError, match=message):
            read_prompts(str(tmp_path / "wrong.parquet"), reserved={"candidate"})

    refused("row 2, row 3: candidate is null", candidate=[1, None, None, 2])
    refused("row 4: candidate is no number from 0", candidate=[1, 0, 2, -1])
    refused("row 1: seed is null", seed=[None, 1, 2, 3])
    refused("row 3: the id '.*' was used before .row 2.; rows of one id are candidates", candidate=[1, 0, 0, 2])
    refused("row 3: the id '.*' was used before", prompt=["b", "a", "other", "b"])
    pq.write_table(part.drop_columns(["id"]), tmp_path / "wrong.parquet")
    with pytest.raises(PromptError, match="rows with a candidate need id, too"):
        read_prompts(str(tmp_path / "wrong.parquet"))


def test_a_dataset_of_the_hub_is_a_folder_like_others(tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": ["a dog"]}), tmp_path / "p.parquet")
    files = {
        "data/train.jsonl.gz": gzip.compress(b'{"caption": "a cat", "mood": "calm"}\n', mtime=0),
        "data/train.parquet": (tmp_path / "p.parquet").read_bytes(),
        "README.md": b"about it",
        "info.json": b"{}",
    }
    with serve_dataset("org/name", files) as hub:
        read = "\n".join(
            [
                "import json, sys",
                "from flashvideo_ray.prompts import PromptError, read_prompts",
                "for url in sys.argv[1:]:",
                "    try:",
                "        print(json.dumps(read_prompts(url, columns={'prompt': 'caption'})['prompt'].to_pylist()))",
                "    except PromptError as error:",
                "        print(json.dumps(str(error)))",
            ]
        )
        places = ("org/name", "org/name/data/*.parquet", "org/name@main/data/train.jsonl.gz", "org/other")
        done = subprocess.run(
            [sys.executable, "-c", read, *(f"hf://datasets/{place}" for place in places)],
            env={**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    *found, missing = (json.loads(line) for line in done.stdout.splitlines())
    assert found == [["a cat", "a dog"], ["a dog"], ["a cat"]]
    assert missing.startswith("hf://datasets/org/other: ")
