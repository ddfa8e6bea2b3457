"""Hosts' clocks differ by minutes: what was written in the knowledge of something is newer than that."""

from __future__ import annotations

import datetime as dt
import pickle
from pathlib import Path
from typing import Any

import pytest

from flashvideo_ray.ledger import decisions, parquet_log, requests, tables
from flashvideo_ray.ledger.clock import Clock
from flashvideo_ray.ledger.decisions import Decision
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.writer import Writer
from flashvideo_ray.selection.survivors import Opinion
from flashvideo_ray.settings import LedgerSettings


@pytest.fixture
def fast(tmp_path: Path) -> Store:
    """The run as a host sees it whose clock is two minutes ahead of this one's."""
    return Store(str(tmp_path), Clock(given=dt.datetime.now(dt.UTC) + dt.timedelta(minutes=2)))


@pytest.fixture
def here(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def row(status: str) -> dict[str, Any]:
    return {"clip_id": "a", "id": "p", "prompt": "p", "seed": 1, "candidate": 0, "status": status}


def append(store: Store, table: tables.Table, status: str) -> None:
    writer = Writer(store, table, tables.SCHEMAS[table], LedgerSettings())
    writer.append(row(status))
    writer.flush()


def test_the_later_of_two_decisions_counts(fast: Store, here: Store) -> None:
    decisions.write(fast, [Decision("a", "approved", "ann")])
    assert decisions.opinions(here) == {"a": Opinion(True, "ann")}
    decisions.write(here, [Decision("a", "rejected", "ben")])
    assert decisions.opinions(fast) == {"a": Opinion(False, "ben")}
    decisions.write(fast, [Decision("a", "cleared", "ann")])
    assert decisions.opinions(here) == {}


@pytest.mark.parametrize("table", ["previews", "clips"])
def test_a_row_of_a_job_that_has_read_another_is_newer(fast: Store, here: Store, table: tables.Table) -> None:
    append(fast, table, "failed")
    assert tables.read(here, table)["status"].to_pylist() == ["failed"]
    append(pickle.loads(pickle.dumps(here)), table, "rendered")  # as it goes to an actor
    assert tables.read(here, table)["status"].to_pylist() == ["rendered"]
    Writer(here, table, tables.SCHEMAS[table], LedgerSettings()).write(
        tables.read(here, table).drop_columns("status").append_column("status", [["rejected"]])
    )
    assert tables.read(here, table)["status"].to_pylist() == ["rejected"]


def test_a_row_that_was_taken_back_is_followed_by_newer_ones(fast: Store, here: Store) -> None:
    append(fast, "clips", "rendered")
    tables.reopen(fast, "clips", tables.read(fast, "clips"))
    assert tables.read(here, "clips").num_rows == 0
    append(here, "clips", "rendered")
    assert tables.read(here, "clips").num_rows == 1


def test_a_request_for_what_failed_is_newer_than_the_failure(fast: Store, here: Store) -> None:
    append(fast, "clips", "failed")
    [failed] = tables.read(here, "clips")["at"].to_pylist()
    requests.write(here, [{**row("refine"), "by": "ann"}])
    [part] = parquet_log.read_all(here, requests.PREFIX).values()
    assert part["at"].to_pylist()[0] - failed >= dt.timedelta(milliseconds=1)


def test_times_do_not_go_back_when_a_clock_is_set(fast: Store) -> None:
    first = fast.clock.now()
    assert first > dt.datetime.now(dt.UTC) + dt.timedelta(minutes=1)
    assert fast.clock.now() >= first
