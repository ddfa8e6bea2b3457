"""Exports in every format, read by the libraries that people read them with: the table in docs/datasets.md."""

from __future__ import annotations

import glob
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from export_run import docs_module
from support import ROOT

from flashvideo_ray import export
from flashvideo_ray.ledger import decisions, tables
from flashvideo_ray.ledger.decisions import Decision
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
def grown(built: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The run, in which a person has rejected some clips that the datasets have already."""
    folder = tmp_path_factory.mktemp("grown") / "run"
    shutil.copytree(built.path(), folder)
    return Store(str(folder))


@pytest.fixture(scope="module")
def exports(grown: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run in each format, with media, in shards of a few clips; of each split one clip is withdrawn."""
    folder = tmp_path_factory.mktemp("exported")
    options = {
        name: export.Options(
            format=name,  # type: ignore[arg-type]
            copy_media=name in ("parquet", "jsonl"),
            caption="title",
            splits=SPLITS,
            shard_bytes=90_000 if name in ("parquet", "jsonl") else 200_000,
        )
        for name in FORMATS
    }
    for name in FORMATS:
        done = export.export(grown.url, str(folder / name), options[name])
        assert (done.added, done.rows, done.withdrawn) == (100, 100, 0)
    rows = pq.read_table(folder / "hf" / "index").to_pylist()
    gone = [next(row["clip_id"] for row in rows if row["split"] == split) for split in SPLITS]
    decisions.write(grown, [Decision(clip_id, "rejected", "cat") for clip_id in gone])
    for name in FORMATS:
        done = export.export(grown.url, str(folder / name), options[name])
        assert (done.added, done.rows, done.withdrawn) == (0, 98, 2)
    return {name: folder / name for name in FORMATS}


@pytest.fixture(scope="module")
def expected(grown: Store, exports: dict[str, Path]) -> dict[str, Sample]:
    """What every reader must find, from the ledger and the store of the run, by clip_id."""
    people = decisions.opinions(grown)
    clips = {
        row["clip_id"]: row
        for row in tables.read(grown, "clips").to_pylist()
        if row["status"] == "rendered" and (row["clip_id"] not in people or people[row["clip_id"]].approved)
    }
    scores = {row["clip_id"]: row["score_motion"] for row in tables.read(grown, "previews").to_pylist()}
    return {
        clip_id: (
            grown.get(row["clip"]),
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
    """The loaders of the docs with two workers, which give frames: one for shards of tar files, one for tables."""
    code = docs_module("torch-webdataset" if kind == "webdataset" else "torch-table", folder)
    for split in SPLITS:
        loader = code.loader(split, batch_size=7, workers=2)
        pickle.dumps((loader.dataset, loader.collate_fn))  # as workers get them where they are not forked
        for batch in loader:
            for clip_id, frames, caption, motion in zip(
                batch["clip_id"], batch["frames"], batch["caption"], batch["motion"], strict=True
            ):
                yield clip_id, (frames.numpy(), caption, float(motion), split)


def _row(folder: Path, row: dict[str, Any], split: str | None = None) -> tuple[str, Sample]:
    mp4 = row["video"]["bytes"] if isinstance(row["video"], dict) else (folder / row["video"]).read_bytes()
    return row["clip_id"], (mp4, row["caption"], row["score_motion"], split or row["split"])


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
    rows = list(READERS[reader](exports[kind], kind))
    if reader != "torch DataLoader":  # its code in the docs leaves them out by itself
        gone = pq.read_table(exports[kind] / "withdrawn.parquet")["clip_id"].to_pylist()
        assert set(gone) < {clip_id for clip_id, _ in rows}
        rows = [row for row in rows if row[0] not in gone]
    found = dict(rows)

    assert found.keys() == expected.keys()
    assert len(rows) == len(found)
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
