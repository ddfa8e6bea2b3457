"""The run directory: one recipe, parts that are only added, the newest row of each candidate."""

import datetime as dt
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flashvideo_ray.ledger import parquet_log, run_file, tables
from flashvideo_ray.ledger.parquet_log import Compaction, DamagedPartError, UnreadablePartError
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.writer import Writer
from flashvideo_ray.settings import LedgerSettings


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
    about = {"settings": {}, "candidates": 4, "command": "render"}
    first = run_file.open_run(store, recipe, about)
    again = run_file.open_run(store, recipe, {**about, "candidates": 5})
    assert again == {**first, "candidates": 5} == run_file.read_run(store)
    with pytest.raises(run_file.RecipeError, match=r"refine\.noise_step: 675 there, 650 now"):
        run_file.open_run(store, {"seed": 0, "refine": {"noise_step": 650, "model": "f00d"}}, {})


def test_rows_become_durable_in_parts(store: Store) -> None:
    schema = tables.extended(tables.CLIPS, [pa.field("mood", pa.string())])
    writer = Writer(store, "clips", schema, LedgerSettings(flush_rows=2, flush_seconds=3600))
    writer.append(row("a", mood="x", not_a_column=3))
    writer.flush_if_due()
    assert tables.read(store, "clips").num_rows == 0
    writer.append(row("b", "failed", error="E", attempts=1))
    writer.flush_if_due()
    writer.flush_if_due()
    assert len(store.keys("ledger")) == 1
    writer.append(row("c"))
    writer.flush()
    writer.flush()
    assert len(store.keys("ledger")) == 2
    table = tables.read(store, "clips")
    assert table["clip_id"].to_pylist() == ["a", "b", "c"]
    assert table["mood"].to_pylist() == ["x", None, None]
    assert tables.read(store, "previews").num_rows == 0


def test_time_makes_rows_durable_too(store: Store) -> None:
    writer = Writer(store, "clips", tables.CLIPS, LedgerSettings(flush_rows=100, flush_seconds=1e-6))
    writer.append(row("a"))
    writer.flush_if_due()
    assert tables.read(store, "clips").num_rows == 1


def test_the_newest_row_of_a_candidate_counts(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for status in ("failed", "rendered"):
        writer = Writer(store, "clips", tables.CLIPS, LedgerSettings())
        writer.append(row("a", status))
        writer.append(row(f"only {status}", status))
        writer.flush()
    table = tables.read(store, "clips", ["clip_id", "status"])
    assert dict(zip(table["clip_id"].to_pylist(), table["status"].to_pylist(), strict=True)) == {
        "a": "rendered",
        "only failed": "failed",
        "only rendered": "rendered",
    }


def test_a_part_can_be_read_by_anything_that_reads_parquet(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    writer = Writer(store, "previews", tables.PREVIEWS, LedgerSettings())
    writer.append(row("a", "previewed", preview_seconds=1.5))
    writer.flush()
    [part] = (tmp_path / "ledger").iterdir()
    [read] = pq.read_table(part).to_pylist()
    assert (read["clip_id"], read["preview_seconds"]) == ("a", 1.5)
    assert abs(dt.datetime.now(dt.UTC) - read["at"]) < dt.timedelta(minutes=1)


def test_rows_that_could_not_be_written_wait_for_the_next_flush(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    writer = Writer(store, "clips", tables.CLIPS, LedgerSettings())
    writer.append(row("a"))
    (tmp_path / "ledger").write_text("in the way")
    with pytest.raises(OSError):
        writer.flush()
    (tmp_path / "ledger").unlink()
    writer.flush()
    assert tables.read(store, "clips")["clip_id"].to_pylist() == ["a"]


def test_what_a_flush_returns_from_is_durable_whoever_writes_it(tmp_path: Path) -> None:
    """Two threads flush one writer: the driver's and its heartbeat's."""
    entered, go_on = threading.Event(), threading.Event()

    class Slow(Store):
        def put(self, key: str, data: bytes) -> None:
            entered.set()
            assert go_on.wait(60)
            super().put(key, data)

    store = Slow(str(tmp_path))
    writer = Writer(store, "clips", tables.CLIPS, LedgerSettings())
    writer.append(row("a"))
    seen: list[list[str]] = []

    def second() -> None:
        writer.flush()
        seen.append(tables.read(store, "clips")["clip_id"].to_pylist())

    threads = [threading.Thread(target=writer.flush), threading.Thread(target=second)]
    threads[0].start()
    assert entered.wait(60)
    threads[1].start()
    threads[1].join(0.5)
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert seen == [["a"]]


def add_parts(store: Store, names: list[str], status: str = "rendered", **columns: Any) -> None:
    """One part for each name, with one row."""
    for name in names:
        writer = Writer(store, "clips", tables.CLIPS, LedgerSettings())
        writer.append(row(name, status, **columns))
        writer.flush()


def state(store: Store) -> dict[str, str]:
    table = tables.read(store, "clips", ["status"])
    assert table.column_names == ["status", "clip_id", "at"]
    assert table["at"].to_pylist() == sorted(table["at"].to_pylist())
    return dict(zip(table["clip_id"].to_pylist(), table["status"].to_pylist(), strict=True))


def test_compaction_keeps_the_state_and_leaves_few_parts(store: Store) -> None:
    add_parts(store, ["a", "b"], "failed")
    schema = tables.extended(tables.CLIPS, [pa.field("mood", pa.string())])
    writer = Writer(store, "clips", schema, LedgerSettings())
    writer.append(row("c", mood="x"))
    writer.flush()
    add_parts(store, ["a"], "rendered", bytes=7)
    before = tables.read(store, "clips")
    assert tables.compact(store) == {
        "clips": Compaction(parts_before=4, parts_after=1, rows=3, superseded=1),
        "previews": Compaction(0, 0, 0, 0),
        "candidates": Compaction(0, 0, 0, 0),
    }
    assert len(store.keys("ledger")) == 1
    assert tables.read(store, "clips") == before
    assert tables.compact(store)["clips"] == Compaction(1, 1, 3, 0)
    assert tables.compact(store, part_rows=3)["clips"].parts_after == 1
    add_parts(store, ["d"])
    assert tables.compact(store, part_rows=3)["clips"] == Compaction(2, 2, 4, 0)
    add_parts(store, ["e"])
    assert tables.compact(store, part_rows=3)["clips"] == Compaction(3, 2, 5, 0)
    assert list(state(store)) == ["b", "c", "a", "d", "e"]


def test_a_column_that_some_parts_lack_is_merged_though_others_call_it_required(tmp_path: Path) -> None:
    """An older version kept what the file of prompts says of its columns, and wrote others beside them."""
    store = Store(str(tmp_path))
    for name, licence in (("a", "CC0"), ("b", "CC-BY")):
        extra = [pa.field("licence", pa.string(), nullable=False)]
        writer = Writer(store, "clips", tables.extended(tables.CLIPS, extra), LedgerSettings())
        writer.append(row(name, licence=licence))
        writer.flush()
        add_parts(store, [f"{name} without"])
    parts = store.keys("ledger")
    tables.supersede(store, "clips", tables.read(store, "clips"))  # what is read can be written
    merged = [parquet_log.merge_some(store, parts[:2]), parquet_log.merge_some(store, parts[2:])]
    assert set(merged) < set(store.keys("ledger"))
    assert tables.compact(store)["clips"] == Compaction(3, 1, 4, 4)
    rows = tables.read(store, "clips")
    assert dict(zip(rows["clip_id"].to_pylist(), rows["licence"].to_pylist(), strict=True)) == {
        "a": "CC0",
        "a without": None,
        "b": "CC-BY",
        "b without": None,
    }


def test_of_rows_at_the_same_moment_the_last_one_counts_also_after_compaction(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

    def part(stamp: str, *statuses: str) -> None:
        rows = pa.Table.from_pylist([{**row("a", status), "at": at} for status in statuses], schema=tables.CLIPS)
        (tmp_path / "ledger").mkdir(exist_ok=True)
        pq.write_table(rows, tmp_path / "ledger" / f"clips-{stamp}.parquet")

    part("20260101T000000000002-ffffffff", "first", "second")
    part("20260101T000000000001-00000000", "earlier part")
    assert state(store) == {"a": "second"}
    tables.compact(store)
    assert state(store) == {"a": "second"}
    part("20260101T000000000003-00000000", "later part")
    assert state(store) == {"a": "later part"}
    tables.compact(store)
    assert state(store) == {"a": "later part"}


def test_a_candidate_that_is_taken_back_is_open_until_it_ends_again(store: Store) -> None:
    add_parts(store, ["a", "b"])
    clips = tables.read(store, "clips")
    tables.reopen(store, "clips", clips.filter(pa.array([True, False])))
    assert state(store) == {"b": "rendered"}
    tables.compact(store)
    assert state(store) == {"b": "rendered"}
    add_parts(store, ["a"], "failed")
    assert state(store) == {"a": "failed", "b": "rendered"}


def test_columns_are_read_from_large_parts_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashvideo_ray.ledger.parquet_log._WHOLE", 0)
    add_parts(store, ["a", "b"], bytes=7)
    table = tables.read(store, "clips", ["bytes", "absent", "bytes"])
    assert table.select(["bytes", "clip_id"]).to_pylist() == [{"bytes": 7, "clip_id": name} for name in "ab"]
    assert table.column_names == ["bytes", "clip_id", "at"]


@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b"", lambda b: b[:4] + bytes(len(b) - 8) + b[-4:]])
def test_a_damaged_part_is_named_and_nothing_is_built_on_it(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    store = Store(str(tmp_path))
    add_parts(store, ["a", "b"])
    first, _ = keys = store.keys("ledger")
    store.put(first, damage(store.get(first)))
    with pytest.raises(DamagedPartError, match=first):
        tables.read(store, "clips")
    with pytest.raises(DamagedPartError, match=first):
        tables.compact(store)
    assert store.keys("ledger") == keys
    told = []
    assert tables.read(store, "clips", damaged=lambda key, error: told.append(key))["clip_id"].to_pylist() == ["b"]
    assert told == [first]


@pytest.mark.parametrize("trouble", [OSError(errno.EIO, "Input/output error"), pa.ArrowMemoryError("malloc failed")])
def test_a_part_that_this_machine_fails_to_read_is_not_taken_for_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    """`verify --repair` would set it aside."""
    store = Store(str(tmp_path))
    add_parts(store, ["a"])

    def fails(source: object) -> None:
        raise trouble

    told: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(pq, "ParquetFile", fails)
        with pytest.raises(UnreadablePartError, match=f"this machine fails to read {store.keys('ledger')[0]}"):
            tables.read(store, "clips", damaged=lambda key, error: told.append(key))
    assert told == []
    assert tables.read(store, "clips")["clip_id"].to_pylist() == ["a"]


READER = """
import os, sys

from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.store import Store
store, expected, reads = Store(sys.argv[1]), {f"old {i}" for i in range(int(sys.argv[2]))}, 0
print("ready", flush=True)
while not store.exists("stop"):
    seen = tables.read(store, "clips", ["clip_id"])["clip_id"].to_pylist()
    assert len(seen) == len(set(seen)), "a row twice"
    assert expected <= set(seen), f"lost: {sorted(expected - set(seen))[:5]} of {len(expected)}"
    expected, reads = set(seen), reads + 1
    if reads == 1:
        store.put(f"read-{os.getpid()}", b"")
"""


def test_readers_and_a_writer_notice_nothing_of_compaction(store: Store) -> None:
    count = 400 if store.is_local else 40
    add_parts(store, [f"old {i}" for i in range(count)])
    command = [sys.executable, "-c", READER, store.url, str(count)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
    added, deadline = 0, time.monotonic() + 4
    while time.monotonic() < deadline or not all(store.exists(f"read-{reader.pid}") for reader in readers):
        # A newer row of a candidate, so that all parts are merged and written anew.
        add_parts(store, ["old 0", f"new {added}"])
        added += 1
        assert tables.compact(store, part_rows=10)["clips"].superseded == 1
    store.put("stop", b"")
    for reader in readers:
        assert (reader.communicate()[1], reader.returncode) == ("", 0)
    assert state(store).keys() == {f"old {i}" for i in range(count)} | {f"new {i}" for i in range(added)}


class Mortal(Store):
    """Kills its process before its n-th change of the store."""

    def __init__(self, url: str, lives: int):
        super().__init__(url)
        self.lives = lives

    def put(self, key: str, data: bytes) -> None:
        self._die_or_live()
        super().put(key, data)

    def delete(self, key: str) -> None:
        self._die_or_live()
        super().delete(key)

    def _die_or_live(self) -> None:
        self.lives -= 1
        if self.lives < 0:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_compaction_may_be_killed_at_any_moment(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    expected = {}
    fork = multiprocessing.get_context("fork")
    for lives in range(8):  # two new parts are written, six or more old ones deleted
        names = [f"{lives}.{i}" for i in range(6)]
        add_parts(store, names, "failed")
        add_parts(store, names[:3], "rendered")
        expected |= dict.fromkeys(names, "failed") | dict.fromkeys(names[:3], "rendered")
        process = fork.Process(target=tables.compact, args=(Mortal(store.url, lives), len(expected) // 2 + 1))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert state(store) == expected
    tables.compact(store)
    assert state(store) == expected
    assert len(store.keys("ledger")) == 1


def test_a_thousand_small_parts_leave_few(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    writer = Writer(store, "clips", tables.CLIPS, LedgerSettings())
    for number in range(1100):
        writer.append(row(f"clip {number}"))
        writer.flush()
        if number % 100 == 31:  # just merged
            assert state(store).keys() == {f"clip {each}" for each in range(number + 1)}
    assert len(store.keys("ledger")) <= 40
    assert tables.read(store, "clips")["clip_id"].to_pylist() == [f"clip {number}" for number in range(1100)]
    # Whoever else merged them meanwhile, as the end of another job does, is in nobody's way.
    tables.compact(store)
    for number in range(40):
        writer.append(row(f"later {number}"))
        writer.flush()
    assert len(state(store)) == 1140


def test_a_ledger_that_other_jobs_write_all_the_time_is_read_as_it_was_when_the_reader_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty shares of a run write faster than a store of theirs is listed."""
    store, listed = Store(str(tmp_path)), parquet_log._list

    def write(name: str) -> None:
        new = {**dict.fromkeys(tables.CLIPS.names), **row(name), "at": dt.datetime.now(dt.UTC)}
        parquet_log.write(store, tables.stem("clips"), pa.Table.from_pylist([new], schema=tables.CLIPS))

    def beside(where: Store, prefix: str) -> list[tuple[str, int]]:
        write(f"later {len(store.keys('ledger'))}")
        return listed(where, prefix)

    for number in range(5):
        write(f"before {number}")
    monkeypatch.setattr(parquet_log, "_list", beside)
    assert state(store).keys() >= {f"before {number}" for number in range(5)}


def test_a_merge_of_small_parts_may_be_killed_at_any_moment(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    for lives in (
        32,
        33,
        40,
        64,
        66,
    ):  # at the part that is made of 32, at the first of them to go, in the middle, after

        def write(folder: Path = tmp_path / str(lives), lives: int = lives) -> None:
            writer = Writer(Mortal(str(folder), lives), "clips", tables.CLIPS, LedgerSettings())
            for number in range(40):
                writer.append(row(f"clip {number}"))
                writer.flush()

        process = fork.Process(target=write)
        process.start()
        process.join()
        found = state(Store(str(tmp_path / str(lives))))
        assert process.exitcode == -signal.SIGKILL
        assert found.keys() >= {f"clip {number}" for number in range(32)}
