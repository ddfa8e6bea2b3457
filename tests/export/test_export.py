"""A dataset over its life: begun, killed, added to, withdrawn from; and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import export_run
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from support import S3
from typer.testing import CliRunner

from flashvideo_ray import export
from flashvideo_ray.cli import app
from flashvideo_ray.export import shards
from flashvideo_ray.expressions.rules import RuleError
from flashvideo_ray.ledger import decisions, tables
from flashvideo_ray.ledger.decisions import Decision
from flashvideo_ray.ledger.run_file import NoRunError, RecipeError
from flashvideo_ray.ledger.store import Store

TAR = export.Options(format="webdataset", splits={"train": 0.9, "val": 0.1}, shard_bytes=100_000)


def objects(store: Store, *folders: str) -> dict[str, bytes]:
    """All shards and their index, by key."""
    return {key: store.get(key) for folder in folders or ("data", "index") for key in store.keys(folder)}


def withdrawn(dest: Path) -> dict[str, str]:
    return {row["clip_id"]: row["why"] for row in pq.read_table(dest / "withdrawn.parquet").to_pylist()}


def rendered(run: Store) -> list[dict[str, Any]]:
    return [row for row in tables.read(run, "clips").to_pylist() if row["status"] == "rendered"]


def test_an_export_after_the_run_has_grown_adds_shards_and_changes_none(run: Store, tmp_path: Path):
    dest = Store(str(tmp_path / "dataset"))
    export.export(run.url, dest.url, TAR)
    before = objects(dest)

    export_run.grow(run, 20)
    done = export.export(run.url, dest.url, TAR)

    after = objects(dest)
    assert {key: after[key] for key in before} == before
    assert (done.added, done.rows) == (20, 120)
    index = pq.read_table(tmp_path / "dataset" / "index").to_pylist()
    assert {row["clip_id"] for row in index} == {row["clip_id"] for row in rendered(run)}
    assert export.export(run.url, dest.url, TAR).shards == 0
    assert objects(dest) == after


def test_shards_are_numbered_without_gaps_and_keep_to_their_size(built: Store, tmp_path: Path):
    done = export.export(built.url, str(tmp_path / "dataset"), TAR)

    dest = Store(str(tmp_path / "dataset"))
    sizes = dest.sizes("data")
    assert done.shards == len(sizes) > 5
    assert max(sizes.values()) <= TAR.shard_bytes
    for split in TAR.splits:
        there = [key for key in sorted(sizes) if key.startswith(f"data/{split}-")]
        assert there == [shards.name(split, number, "tar") for number in range(len(there))]


def test_a_clip_larger_than_a_shard_has_one_of_its_own():
    items = [shards.Item("a", "train", 10), shards.Item("b", "train", 500), shards.Item("c", "train", 10)]

    assert shards.pack(items, 100, 0, "tar", {"train": 3}) == {
        "data/train-00003.tar": ["a"],
        "data/train-00004.tar": ["b"],
        "data/train-00005.tar": ["c"],
    }


def test_checksums_of_shards_and_clips_are_in_the_index(built: Store, tmp_path: Path):
    export.export(built.url, str(tmp_path / "dataset"), TAR)

    dest = Store(str(tmp_path / "dataset"))
    told = {row["clip_id"]: row["sha256"] for row in rendered(built)}
    for row in pq.read_table(tmp_path / "dataset" / "index").to_pylist():
        shard = dest.get(row["shard"])
        with tarfile.open(fileobj=io.BytesIO(shard)) as tar:
            mp4 = tar.extractfile(f"{row['clip_id']}.mp4")
            assert mp4 is not None
            assert hashlib.sha256(mp4.read()).hexdigest() == row["video_sha256"] == told[row["clip_id"]]
        assert (row["shard_sha256"], row["shard_bytes"]) == (hashlib.sha256(shard).hexdigest(), len(shard))


KILLED = """
import os, signal, sys
from flashvideo_ray import export

options = export.Options.model_validate_json(sys.argv[3])
def progress(count, total):
    if count == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
export.export(sys.argv[1], sys.argv[2], options, on_ray="RAY_ADDRESS" in os.environ, progress=progress)
"""


def kill(run: Store, dest: Store, after: int, **environment: str) -> None:
    """Begin an export in a process that is killed when so many shards are whole."""
    words = [sys.executable, "-c", KILLED, run.url, dest.url, TAR.model_dump_json(), str(after)]
    assert subprocess.run(words, env={**os.environ, **environment}).returncode == -signal.SIGKILL
    assert dest.exists("pending.parquet")


def test_after_kill_9_the_same_command_goes_on_to_an_equal_result(run: Store, tmp_path: Path):
    dest, whole = Store(str(tmp_path / "dataset")), Store(str(tmp_path / "whole"))
    export.export(run.url, whole.url, TAR)
    kill(run, dest, after=5)
    assert len(dest.keys("data")) == 5
    # As if it had been killed a moment earlier, and in the middle of a write.
    dest.delete(dest.keys("index")[-1])
    (tmp_path / "dataset" / "data" / ".0123.partial").write_bytes(b"half")
    export_run.grow(run, 5)  # what the run has got meanwhile comes after what was begun

    export.export(run.url, dest.url, TAR)

    first = objects(whole)
    again = objects(dest)
    assert {key: again[key] for key in first} == first
    export.export(run.url, whole.url, TAR)
    assert objects(dest) == objects(whole)
    assert not dest.exists("pending.parquet")
    assert not [*(tmp_path / "dataset").rglob("*.partial")]


def test_tasks_of_ray_write_the_same_bytes_into_an_object_store_after_kill_9_too(
    built: Store, s3: S3, local_ray: None, tmp_path: Path
):
    here, there = Store(str(tmp_path / "here")), Store(f"s3://{s3.bucket}/dataset")
    export.export(built.url, here.url, TAR, on_ray=False)
    kill(built, there, after=2, RAY_ADDRESS=ray.get_runtime_context().gcs_address)
    begun = objects(there, "index")
    assert 2 <= len(begun) < len(here.keys("index"))

    export.export(built.url, there.url, TAR, on_ray=True)

    assert objects(there) == objects(here)
    assert objects(there, "index").items() >= begun.items()
    assert not there.exists("pending.parquet")
    assert there.keys("", "README.md") == ["README.md"]


def test_a_clip_rejected_afterwards_is_withdrawn_until_it_is_taken_back(run: Store, tmp_path: Path):
    dest = tmp_path / "dataset"
    export.export(run.url, str(dest), TAR)
    before, clip_id = objects(Store(str(dest))), rendered(run)[0]["clip_id"]
    assert withdrawn(dest) == {}

    decisions.write(run, [Decision(clip_id, "rejected", "cat")])
    done = export.export(run.url, str(dest), TAR)

    assert withdrawn(dest) == {clip_id: "rejected by cat"}
    assert (done.rows, done.withdrawn) == (99, 1)
    decisions.write(run, [Decision(clip_id, "cleared", "cat")])
    export.export(run.url, str(dest), TAR)
    assert withdrawn(dest) == {}
    assert objects(Store(str(dest))) == before


def test_a_clip_that_repair_took_away_is_withdrawn(run: Store, tmp_path: Path):
    dest = tmp_path / "dataset"
    export.export(run.url, str(dest), TAR)
    clip_id = rendered(run)[0]["clip_id"]

    tables.reopen(run, "clips", tables.read(run, "clips").filter(_is(run, clip_id)))
    export.export(run.url, str(dest), TAR)

    assert set(withdrawn(dest)) == {clip_id}


def _is(run: Store, clip_id: str) -> Any:
    import pyarrow.compute as pc

    return pc.equal(tables.read(run, "clips")["clip_id"], clip_id)


def test_a_damaged_clip_ends_the_export_and_a_mended_one_lets_it_go_on(run: Store, tmp_path: Path):
    row = rendered(run)[0]
    good = run.get(row["clip"])
    run.put(row["clip"], good[:-1] + bytes([good[-1] ^ 1]))

    told = CliRunner().invoke(app, _command(run, tmp_path / "dataset"))

    assert told.exit_code == 1
    assert row["clip"] in told.output
    assert "verify" in told.output
    run.put(row["clip"], good)
    assert export.export(run.url, str(tmp_path / "dataset"), _options()).rows == 100


def _options(**changes: Any) -> export.Options:
    return export.Options(format="webdataset", shard_bytes=100_000, **changes)


def _command(run: Store, dest: Path, *more: str) -> list[str]:
    return ["export", run.url, str(dest), "--format", "webdataset", "--shard-size", "100kB", *more]


def test_another_recipe_is_refused_with_the_difference(built: Store, tmp_path: Path):
    dest = str(tmp_path / "dataset")
    export.export(built.url, dest, _options(caption="title"))

    with pytest.raises(RecipeError, match=r"caption: 'title' there, 'prompt' now"):
        export.export(built.url, dest, _options())
    with pytest.raises(RecipeError, match="where"):
        export.export(built.url, dest, _options(caption="title", where="motion > 1"))
    export.export(built.url, dest, _options(caption="title", license="CC-BY-4.0"))
    card = (tmp_path / "dataset" / "README.md").read_text()
    assert "License: CC-BY-4.0." in card
    assert "\nlicense: cc-by-4.0\n" in card  # as the Hub calls it
    export.export(built.url, dest, _options(caption="title", license="within the studio"))
    assert "\nlicense: other\nlicense_name: within the studio\n" in (tmp_path / "dataset" / "README.md").read_text()


def test_a_filter_sees_columns_scores_decisions_and_the_prompt_files_own(built: Store, tmp_path: Path):
    def count(where: str) -> int:
        options = export.Options(format="jsonl", where=where)
        dest = tmp_path / str(len(list(tmp_path.iterdir())))
        return export.export(built.url, str(dest), options).rows

    scores = {row["clip_id"]: row["score_motion"] for row in tables.read(built, "previews").to_pylist()}
    moving = sum(scores[row["clip_id"]] > 5 for row in rendered(built))
    assert count("motion > 5") == count("score_motion > 5") == moving
    assert count("decision == 'approved' and decided_by == 'bob'") == export_run.DECIDED
    assert count("title == 'Star 50'") == 1
    assert count("frames == 5 and status == 'rendered'") == 100
    with pytest.raises(RuleError, match="motionn"):
        count("motionn > 5")


def test_previews_are_those_that_selection_let_through(built: Store, tmp_path: Path):
    options = export.Options(format="webdataset", media_of="previews")
    done = export.export(built.url, str(tmp_path / "dataset"), options)

    assert done.rows == 100
    rows = pq.read_table(tmp_path / "dataset" / "index").to_pylist()
    told = {row["clip_id"]: row["preview"] for row in tables.read(built, "previews").to_pylist()}
    sums = {row["clip_id"]: hashlib.sha256(built.get(told[row["clip_id"]])).hexdigest() for row in rows}
    assert {row["clip_id"]: row["video_sha256"] for row in rows} == sums


def test_splits_are_by_prompt_and_stay_as_the_run_grows(run: Store, tmp_path: Path):
    def splits() -> dict[str, str]:
        lines = [json.loads(line) for key in dest.keys("data") for line in dest.get(key).splitlines()]
        assert len({(line["prompt"], line["split"]) for line in lines}) == len({line["prompt"] for line in lines})
        return {line["prompt"]: line["split"] for line in lines}

    options = export.Options(format="jsonl", splits={"train": 0.5, "val": 0.5})
    dest = Store(str(tmp_path / "dataset"))
    export.export(run.url, dest.url, options)
    before = splits()
    export_run.grow(run, 20)
    export.export(run.url, dest.url, options)
    assert {prompt: split for prompt, split in splits().items() if prompt in before} == before


def test_a_column_that_comes_later_stays_out_and_is_named(run: Store, tmp_path: Path):
    options = export.Options(format="parquet")
    export.export(run.url, str(tmp_path / "dataset"), options)
    previews = tables.read(run, "previews")
    tables.supersede(run, "previews", previews.append_column("score_new", pa.array([1.0] * previews.num_rows)))
    export_run.grow(run, 1)

    done = export.export(run.url, str(tmp_path / "dataset"), options)

    assert done.new_columns == ("score_new",)
    assert len({str(pq.read_schema(path)) for path in (tmp_path / "dataset" / "data").iterdir()}) == 1


def test_a_column_that_a_library_has_no_type_for_is_named_before_anything_is_written(run: Store, tmp_path: Path):
    previews = tables.read(run, "previews")
    kind = pa.map_(pa.string(), pa.int64())
    more = previews.append_column("counts", pa.array([[("a", 1)]] * previews.num_rows, kind))
    tables.supersede(run, "previews", more)
    for name in ("webdataset", "hf", "preference"):
        options = export.Options(format=name, media_of="previews")  # type: ignore[arg-type]
        with pytest.raises(export.ExportError, match=r"the column counts is map.*--format parquet"):
            export.export(run.url, str(tmp_path / name), options)
        assert not (tmp_path / name).exists()
    assert export.export(run.url, str(tmp_path / "rows"), export.Options(format="parquet")).rows == 100


@pytest.mark.parametrize("kind", ["jsonl", "preference"])
def test_columns_of_the_prompts_keep_apart_from_those_of_the_dataset(run: Store, tmp_path: Path, kind: str):
    names = {"video": "prompt_prompt_video", "prompt_video": "prompt_video", "caption": "prompt_caption"}
    names |= {"split": "prompt_split", "chosen_seed": "prompt_chosen_seed", "_caption": "_caption"}
    rows = tables.read(run, "previews")
    for name in names:
        rows = rows.append_column(name, pa.array([f"my {name}"] * rows.num_rows))
    tables.supersede(run, "previews", rows)

    options = export.Options(format=kind, media_of="previews")  # type: ignore[arg-type]
    export.export(run.url, str(tmp_path / "dataset"), options)

    [file] = (tmp_path / "dataset" / "data").iterdir()
    row = json.loads(file.read_text().splitlines()[0]) if kind == "jsonl" else pq.read_table(file).to_pylist()[0]
    assert {shown: row[shown] for shown in names.values()} == {shown: f"my {name}" for name, shown in names.items()}
    assert (row["split"], row["caption"]) == ("train", row["prompt"])


def test_the_card_tells_what_the_dataset_is(built: Store, tmp_path: Path):
    export.export(built.url, str(tmp_path / "dataset"), TAR)

    card = (tmp_path / "dataset" / "README.md").read_text()
    run = json.loads(built.get("run.json"))
    for fact in (
        *run["recipe"]["fingerprints"].values(),
        "rank: alignment",
        "| prompts | 103 |",
        "| rendered | 100 |",
        "| rejected by ann | 10 |",
        "| refine: ValueError | 1 |",
        "core-seconds",
        "| `score_motion` | double | of the scorer |",
    ):
        assert fact in card
    columns = json.loads((tmp_path / "dataset" / "columns.json").read_text())
    assert {"name": "fps", "type": "double", "unit": "frames a second", "meaning": "of the clip"} in columns
    assert all(column["meaning"] for column in columns)


def test_wrong_input_ends_with_one_line_before_anything_is_written(built: Store, tmp_path: Path):
    dest = tmp_path / "dataset"
    for words, told in (
        (["--split", "train=0.9"], "add up to 0.9"),
        (["--split", "all=1"], "call all splits together `all`"),
        (["--shard-size", "many"], "--shard-size many"),
        (["--caption", "titel"], "--caption titel"),
        (["--where", "motion >"], "cannot read the filter"),
        (["--where", "motion > 100"], "does not meet motion > 100: 100 candidates"),
        (["--media"], "--media"),
        (["--rank", "motion"], "--rank"),
    ):
        result = CliRunner().invoke(app, _command(built, dest, *words))
        assert (result.exit_code, told in result.output) == (2, True), result.output
        assert not dest.exists()
    with pytest.raises(NoRunError):
        export.export(str(tmp_path / "nowhere"), str(dest), TAR)
    with pytest.raises(export.ExportError, match="the run itself"):
        export.export(built.url, built.url, TAR)
