"""Exports in every format, read by the libraries that people read them with: the table in docs/datasets.md."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import ROOT

from flashvideo_ray import export
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.media import video

SPLITS = {"train": 0.8, "val": 0.2}
FORMATS = ("webdataset", "hf", "parquet", "jsonl")
Sample = tuple[bytes, str, float, str]  # its MP4, caption, score, split
DOCS = (ROOT / "docs" / "datasets.md").read_text()


@pytest.fixture(scope="module", autouse=True)
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What `datasets` keeps of files that it has read is gone with the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def exports(built: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run in each format, with media, in shards of a few clips."""
    folder = tmp_path_factory.mktemp("exported")
    for name in FORMATS:
        options = export.Options(
            format=name,  # type: ignore[arg-type]
            copy_media=name in ("parquet", "jsonl"),
            caption="title",
            splits=SPLITS,
            shard_bytes=90_000 if name in ("parquet", "jsonl") else 200_000,
        )
        done = export.export(built.url, str(folder / name), options)
        assert (done.added, done.rows, done.withdrawn) == (100, 100, 0)
    return {name: folder / name for name in FORMATS}


@pytest.fixture(scope="module")
def expected(built: Store) -> dict[str, Sample]:
    """What every reader must find, from the ledger and the store of the run, by clip_id."""
    clips = {row["clip_id"]: row for row in tables.read(built, "clips").to_pylist() if row["status"] == "rendered"}
    scores = {row["clip_id"]: row["score_motion"] for row in tables.read(built, "previews").to_pylist()}
    return {
        clip_id: (
            built.get(row["clip"]),
            row["title"],
            scores[clip_id],
            export.split_of(row["prompt"], SPLITS),
        )
        for clip_id, row in clips.items()
    }


def by_webdataset(folder: Path, kind: str) -> Iterator[tuple[str, Sample]]:
    import webdataset

    for shards in (sorted(glob.glob(f"{folder}/data/{split}-*.tar")) for split in SPLITS):
        for sample in webdataset.WebDataset(shards, shardshuffle=False):
            row = json.loads(sample["json"])
            yield sample["__key__"], (sample["mp4"], sample["txt"].decode(), row["score_motion"], row["split"])


def by_datasets(folder: Path, kind: str) -> Iterator[tuple[str, Sample]]:
    import datasets

    for split, rows in datasets.load_dataset(str(folder)).items():
        for row in rows:
            if kind == "webdataset":
                about, mp4 = row["json"], row["mp4"]
                mp4 = mp4["bytes"] if isinstance(mp4, dict) else mp4
                yield row["__key__"], (mp4, row["txt"], about["score_motion"], split)
            else:
                yield _row(folder, row, split)


def by_ray(folder: Path, kind: str) -> Iterator[tuple[str, Sample]]:
    import ray.data

    files = sorted(glob.glob(f"{folder}/data/*"))
    if kind == "webdataset":
        for row in ray.data.read_webdataset(files, decoder=None).take_all():
            about = json.loads(row["json"])
            yield about["clip_id"], (row["mp4"], row["txt"].decode(), about["score_motion"], about["split"])
        return
    read = ray.data.read_json if kind == "jsonl" else ray.data.read_parquet
    more = {"lines": True} if kind == "jsonl" else {}
    for row in read(files, **more).take_all():
        yield _row(folder, row)


def by_pandas(folder: Path, kind: str) -> Iterator[tuple[str, Sample]]:
    import pandas

    for file in sorted(glob.glob(f"{folder}/data/*")):
        rows = pandas.read_json(file, lines=True) if kind == "jsonl" else pandas.read_parquet(file)
        for row in rows.to_dict("records"):
            yield _row(folder, row)


def by_duckdb(folder: Path, kind: str) -> Iterator[tuple[str, Sample]]:
    import duckdb

    read = "read_json_auto" if kind == "jsonl" else "read_parquet"
    with duckdb.connect() as connection:
        for row in connection.sql(f"SELECT * FROM {read}('{folder}/data/*')").to_arrow_table().to_pylist():
            yield _row(folder, row)


def by_torch(folder: Path, kind: str) -> Iterator[tuple[str, Sample]]:
    """The loaders of the docs, which give frames: one for shards of tar files, one for tables."""
    names: dict[str, Any] = {"DATASET": str(folder)}
    exec(_code("torch-webdataset" if kind == "webdataset" else "torch-table"), names)
    for split in SPLITS:
        for batch in names["loader"](split, batch_size=7):
            for clip_id, frames, caption, motion in zip(
                batch["clip_id"], batch["frames"], batch["caption"], batch["motion"], strict=True
            ):
                yield clip_id, (frames.numpy(), caption, float(motion), split)


def _row(folder: Path, row: dict[str, Any], split: str | None = None) -> tuple[str, Sample]:
    mp4 = row["video"]["bytes"] if isinstance(row["video"], dict) else (folder / row["video"]).read_bytes()
    return row["clip_id"], (mp4, row["caption"], row["score_motion"], split or row["split"])


def _code(name: str) -> str:
    """A block of code of the docs by the comment on its first line."""
    [found] = re.findall(rf"```python\n(# {name}:.*?)```", DOCS, re.DOTALL)
    return str(found)


READERS: dict[str, Callable[[Path, str], Iterator[tuple[str, Any]]]] = {
    "webdataset": by_webdataset,
    "datasets": by_datasets,
    "ray.data": by_ray,
    "pandas": by_pandas,
    "DuckDB": by_duckdb,
    "torch DataLoader": by_torch,
}


def table() -> dict[tuple[str, str], bool]:
    """Of docs/datasets.md, which reader reads which format."""
    lines = DOCS[DOCS.index("| reader |") :].split("\n\n")[0].splitlines()
    formats = [cell.strip(" `") for cell in lines[0].strip("|").split("|")[1:]]
    found = {}
    for line in lines[2:]:
        reader, *cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
        found |= {(kind, reader): cell == "yes" for kind, cell in zip(formats, cells, strict=True)}
    return found


CELLS = [cell for cell, works in table().items() if works]


def test_the_table_in_the_docs_names_every_reader_and_format():
    assert set(table()) == {(kind, reader) for kind in FORMATS for reader in READERS}


@pytest.mark.parametrize(("kind", "reader"), CELLS, ids=[f"{reader}-{kind}" for kind, reader in CELLS])
def test_a_dataset_reads_back_as_the_run_has_it(
    kind: str, reader: str, exports: dict[str, Path], expected: dict[str, Sample], request: pytest.FixtureRequest
):
    if reader == "ray.data":
        request.getfixturevalue("local_ray")
    found = dict(READERS[reader](exports[kind], kind))

    assert found.keys() == expected.keys()
    for clip_id, (mp4, caption, motion, split) in expected.items():
        frames, seen, score, part = found[clip_id]
        assert (seen, part) == (caption, split)
        assert score == pytest.approx(motion, rel=1e-6)
        if isinstance(frames, bytes):
            assert frames == mp4
        else:
            assert np.array_equal(frames, video.decode_mp4(mp4)[0])


def test_the_frames_of_an_exported_clip_are_those_of_the_run(exports: dict[str, Path], expected: dict[str, Sample]):
    import io

    import av

    row = pq.read_table(next(iter(sorted(exports["hf"].glob("data/*"))))).to_pylist()[0]
    with av.open(io.BytesIO(row["video"]["bytes"])) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]

    assert (len(frames), *frames[0].shape) == (row["frames"], row["height"], row["width"], 3)


def test_every_format_has_the_same_splits(exports: dict[str, Path]):
    def splits(name: str) -> dict[str, str]:
        rows = pq.read_table(exports[name] / "index").to_pylist()
        return {row["clip_id"]: row["split"] for row in rows}

    assert len({json.dumps(splits(name), sort_keys=True) for name in FORMATS}) == 1
    assert set(splits("hf").values()) == set(SPLITS)


def test_the_readmes_two_commands_give_a_batch_in_pytorch(built: Store, tmp_path: Path):
    readme = (ROOT / "README.md").read_text()
    section = readme[readme.index("## A dataset for training") :]
    [command] = re.findall(r"flashvideo-ray (export runs/demo .*)", section)
    code = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    (tmp_path / "runs").mkdir()
    os.symlink(built.path(), tmp_path / "runs" / "demo")

    from typer.testing import CliRunner

    from flashvideo_ray.cli import app

    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        told = CliRunner().invoke(app, command.split("#")[0].split())
        assert told.exit_code == 0, told.output
        exec(code, names)

    assert len(code.strip().splitlines()) <= 10
    assert names["frames"].shape == (4, 5, 64, 96, 3)
    assert len(names["captions"]) == 4
