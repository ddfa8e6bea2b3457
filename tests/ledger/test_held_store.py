"""Nothing is written to a run but by the job that surely holds it."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest
from support import S3

from flashvideo_ray.ledger import held_store
from flashvideo_ray.ledger.claim import ClaimLostError, ClaimUnsureError
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.settings import Settings


class Told:
    """A permit that says what it was told."""

    def __init__(self, seconds: float = 60.0, lost: bool = False):
        self.left, self.lost = seconds, lost

    def seconds(self) -> float:
        if self.lost:
            raise ClaimLostError("another job took it")
        return self.left


@pytest.fixture(params=["local", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "run")
    s3: S3 = request.getfixturevalue("s3")
    return f"s3://{s3.bucket}/{tmp_path.name}"


def test_a_lost_run_is_not_touched(url: str) -> None:
    permit = Told()
    store = held_store.HeldStore(url, 30.0, permit)
    store.put("a", b"mine")
    permit.lost = True
    for write in (lambda: store.put("a", b"late"), lambda: store.create("b", b"late"), lambda: store.delete("a")):
        with pytest.raises(ClaimLostError):
            write()
    assert store.keys() == ["a"]
    assert store.get("a") == b"mine"


def test_while_it_is_unsure_whose_run_it_is_writing_waits(url: str) -> None:
    permit = Told(0.0)
    with pytest.raises(ClaimUnsureError):
        held_store.HeldStore(url, 0.0, permit).put("a", b"1")
    store = held_store.HeldStore(url, 0.1, permit)  # the wait does not count as the store's absence
    put = threading.Thread(target=store.put, args=("a", b"1"))
    put.start()
    time.sleep(1)
    assert store.keys() == []
    permit.left = 60.0
    put.join()
    assert store.get("a") == b"1"


@pytest.mark.parametrize("patience", [0.0, 20.0])
def test_an_upload_ends_with_the_permit(s3: S3, tmp_path: Path, patience: float) -> None:
    """The server stands still in the middle of it; with patience it is made anew when the run is surely held again."""
    plain = Store(f"s3://{s3.bucket}/{tmp_path.name}")
    outcome: list[BaseException | None] = []

    def put(store: Store) -> None:
        try:
            store.put("a", b"x" * 20_000_000)
            outcome.append(None)
        except (ClaimLostError, ClaimUnsureError) as error:
            outcome.append(error)

    settings = Settings.load(None, ["ledger.lease_seconds=2", f"store_patience_seconds={patience}"])
    with held_store.hold(plain, settings) as held:
        s3.process.send_signal(signal.SIGSTOP)
        putting = threading.Thread(target=put, args=[held])
        putting.start()
        try:
            if patience:
                time.sleep(3)
            else:
                putting.join(30)  # the server has not answered yet
                assert isinstance(outcome[0], ClaimLostError | ClaimUnsureError)
        finally:
            s3.process.send_signal(signal.SIGCONT)
        putting.join()
    assert plain.exists("a") == bool(patience)
