"""The run directory: one recipe, parts that are only added, the newest row of each candidate."""

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import S3

from flashvideo_ray import ledger
from flashvideo_ray.settings import LedgerSettings
from flashvideo_ray.storage import Store


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(str(tmp_path / "run"))
    s3: S3 = request.getfixturevalue("s3")
    return Store(f"s3://{s3.bucket}/{tmp_path.name}-{request.node.name}")


def row(clip_id: str, status: str = "rendered", **columns: Any) -> dict[str, Any]:
    return {"clip_id": clip_id, "id": "p", "prompt": "a", "seed": 1, "candidate": 0, "status": status, **columns}


def test_what_is_put_is_read_whole(store: Store) -> None:
    store.put("a/b.bin", b"12")
    store.put("a/b.bin", b"345")
    store.put("c", b"")
    assert store.get("a/b.bin") == b"345"
    assert store.exists("a/b.bin")
    assert not store.exists("a")
    assert not store.exists("d")
    assert store.keys() == ["a/b.bin", "c"]
    assert store.keys("a", ".bin") == ["a/b.bin"]
    assert store.keys("absent") == []
    with pytest.raises(FileNotFoundError):
        store.get("absent")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError):
        store.put("a", b"1")
    assert store.keys() == []
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_run_has_one_recipe(store: Store) -> None:
    recipe = {"seed": 0, "refine": {"noise_step": 675, "model": "f00d"}}
    first = ledger.open_run(store, recipe, {"command": "render"})
    assert ledger.open_run(store, recipe, {"command": "again"}) == first == ledger.read_run(store)
    with pytest.raises(ledger.RecipeError, match=r"refine\.noise_step: 675 there, 650 now"):
        ledger.open_run(store, {"seed": 0, "refine": {"noise_step": 650, "model": "f00d"}}, {})


def test_rows_become_durable_in_parts(store: Store) -> None:
    schema = ledger.extended(ledger.CLIPS, [pa.field("mood", pa.string())])
    writer = ledger.Writer(store, "clips", schema, LedgerSettings(flush_rows=2, flush_seconds=3600))
    writer.append(row("a", mood="x", not_a_column=3))
    writer.flush_if_due()
    assert ledger.read(store, "clips").num_rows == 0
    writer.append(row("b", "failed", error="E", attempts=1))
    writer.flush_if_due()
    writer.flush_if_due()
    assert len(store.keys("ledger")) == 1
    writer.append(row("c"))
    writer.flush()
    writer.flush()
    assert len(store.keys("ledger")) == 2
    table = ledger.read(store, "clips")
    assert table["clip_id"].to_pylist() == ["a", "b", "c"]
    assert table["mood"].to_pylist() == ["x", None, None]
    assert ledger.read(store, "previews").num_rows == 0


def test_time_makes_rows_durable_too(store: Store) -> None:
    writer = ledger.Writer(store, "clips", ledger.CLIPS, LedgerSettings(flush_rows=100, flush_seconds=1e-6))
    writer.append(row("a"))
    writer.flush_if_due()
    assert ledger.read(store, "clips").num_rows == 1


def test_the_newest_row_of_a_candidate_counts(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for status in ("failed", "rendered"):
        writer = ledger.Writer(store, "clips", ledger.CLIPS, LedgerSettings())
        writer.append(row("a", status))
        writer.append(row(f"only {status}", status))
        writer.flush()
    table = ledger.read(store, "clips", ["clip_id", "status"])
    assert dict(zip(table["clip_id"].to_pylist(), table["status"].to_pylist(), strict=True)) == {
        "a": "rendered",
        "only failed": "failed",
        "only rendered": "rendered",
    }


def test_a_part_can_be_read_by_anything_that_reads_parquet(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    writer = ledger.Writer(store, "previews", ledger.PREVIEWS, LedgerSettings())
    writer.append(row("a", "previewed", preview_seconds=1.5))
    writer.flush()
    [part] = (tmp_path / "ledger").iterdir()
    [read] = pq.read_table(part).to_pylist()
    assert (read["clip_id"], read["preview_seconds"]) == ("a", 1.5)
    assert abs(dt.datetime.now(dt.UTC) - read["at"]) < dt.timedelta(minutes=1)


def test_rows_that_could_not_be_written_wait_for_the_next_flush(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    writer = ledger.Writer(store, "clips", ledger.CLIPS, LedgerSettings())
    writer.append(row("a"))
    (tmp_path / "ledger").write_text("in the way")
    with pytest.raises(OSError):
        writer.flush()
    (tmp_path / "ledger").unlink()
    writer.flush()
    assert ledger.read(store, "clips")["clip_id"].to_pylist() == ["a"]
