"""A store that refuses for a while is asked again, with the credentials that there are by then."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import S3

from flashvideo_ray.ledger.patience import PatientStore
from flashvideo_ray.ledger.store import Store


def give_keys(file: Path, secret: str) -> None:
    file.write_text(f"[default]\naws_access_key_id = key\naws_secret_access_key = {secret}\n")


@pytest.fixture
def keys(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file with keys that the server refuses, and nothing else that says who this is."""
    import s3fs

    file = tmp_path / "credentials"
    give_keys(file, "expired")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    s3fs.S3FileSystem.clear_instance_cache()
    yield file
    s3fs.S3FileSystem.clear_instance_cache()


def test_keys_that_are_renewed_are_used(s3: S3, keys: Path, tmp_path: Path) -> None:
    store = PatientStore(f"s3://{s3.bucket}/{tmp_path.name}", 300.0)
    renewal = threading.Timer(2.0, give_keys, (keys, "secret"))
    renewal.start()
    store.put("a", b"1")
    assert store.get("a") == b"1"
    keys.write_text("")  # whoever renews them is writing the file
    other = PatientStore(store.url, 300.0)
    other.reconnect()
    threading.Timer(1.0, give_keys, (keys, "secret")).start()
    assert other.create("b", b"2")
    other.reconnect()
    other.delete("b")
    assert other.keys() == ["a"]


def test_who_is_refused_for_good_is_told_why(s3: S3, keys: Path, tmp_path: Path) -> None:
    store = PatientStore(f"s3://{s3.bucket}/{tmp_path.name}", 20.0)
    with pytest.raises(PermissionError, match=r"/a: refused, with fresh credentials too \(SignatureDoesNotMatch"):
        store.put("a", b"1")


def test_a_folder_without_the_right_to_write_is_final(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file, not a folder")
    with pytest.raises(OSError):
        PatientStore(str(tmp_path), 300.0).put("a/b", b"1")
    assert Store(str(tmp_path)).keys() == ["a"]
