"""Objects that are written by one caller only, and removed."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flashvideo_ray.ledger.store import Store


def test_one_of_many_creates_an_object(store: Store) -> None:
    writers = [f"writer {number}".encode() for number in range(8)]
    with ThreadPoolExecutor(len(writers)) as pool:
        created = list(pool.map(lambda data: store.create("a/b", data), writers))
    [winner] = [data for data, won in zip(writers, created, strict=True) if won]
    assert store.get("a/b") == winner
    assert store.keys() == ["a/b"]
    assert store.create("a/b", winner)  # as when the answer to a write was lost and it is sent again
    assert not store.create("a/b", b"late")
    assert store.get("a/b") == winner


def test_an_object_can_be_created_again_after_it_was_deleted(store: Store) -> None:
    assert store.create("a", b"1")
    store.delete("a")
    store.delete("a")
    assert not store.exists("a")
    assert store.create("a", b"2")


def test_a_place_is_the_same_however_it_is_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    here = Store(str(tmp_path / "run"))
    for spelling in ("run", "./run/", "other/../run", f"file://{tmp_path}/run", str(tmp_path / "link" / "run")):
        assert here.is_same_place(Store(spelling)), spelling
    assert not here.is_same_place(Store("run2"))
    bucket = Store("s3://bucket/run")
    assert bucket.is_same_place(Store("s3a://bucket/run/"))
    for other in ("s3://bucket/run2", "s3://other/run", "memory://bucket/run", "bucket/run"):
        assert not bucket.is_same_place(Store(other)), other


def test_creating_where_nothing_can_be_written_raises(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file, not a folder")
    with pytest.raises(OSError):
        Store(str(tmp_path)).create("a/b", b"1")


def test_a_store_without_conditional_put_is_read_back(tmp_path: Path) -> None:
    store = Store(f"memory://{tmp_path.name}")
    assert store.create("a", b"1")
    assert not store.create("a", b"2")
    assert store.get("a") == b"1"
