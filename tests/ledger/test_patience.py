"""A store that refuses for a while is asked again, with the credentials that there are by then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import S3, Days

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


class Answers(PatientStore):
    """A store whose answers are told by the moment."""

    def __init__(self, patience: float, answer: Callable[[float], Exception | None], days: Days):
        super().__init__("memory://run", patience)
        self._answer, self._days = answer, days

    def ask(self) -> float:
        """When it was answered well."""
        return self._wait_for(self._once, "key")

    def _once(self) -> float:
        if (error := self._answer(self._days.now)) is not None:
            raise error
        return self._days.now


@pytest.fixture
def days(monkeypatch: pytest.MonkeyPatch) -> Days:
    found = Days()
    monkeypatch.setattr("flashvideo_ray.ledger.patience.time", found)
    return found


def test_a_refusal_before_an_absence_does_not_make_one_after_it_final(days: Days) -> None:
    """As a store that ends gives them, and one that begins."""

    def answer(now: float) -> Exception | None:
        refuses, away = PermissionError("not now"), OSError(503, "away")
        return refuses if now < 5 else away if now < 100 else refuses if now < 110 else None

    assert 110 <= Answers(300.0, answer, days).ask() < 300
    with pytest.raises(PermissionError):
        Answers(300.0, lambda now: PermissionError("never"), days).ask()


def test_credentials_that_cannot_be_read_for_a_moment_are_read_again(days: Days) -> None:
    class Renewed(Answers):
        def reconnect(self) -> None:
            if days.now < 5:
                raise OSError("the file is not there: it is being replaced")

    assert Renewed(300.0, lambda now: PermissionError("expired") if now < 10 else None, days).ask() >= 10


class CannotSayError(PermissionError):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


def test_an_error_that_cannot_be_shown_is_waited_for_like_others(days: Days) -> None:
    assert Answers(300.0, lambda now: CannotSayError() if now < 10 else None, days).ask() >= 10
    with pytest.raises(PermissionError, match="cannot be shown"):
        Answers(300.0, lambda now: CannotSayError(), days).ask()
