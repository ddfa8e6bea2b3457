"""The end of a job, however it comes: its exit status in a file of the run, and a notice to whoever waits for it."""

from __future__ import annotations

import datetime as dt
import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow.compute as pc

from flashvideo_ray.accounting.terminal import bill_lines, duration
from flashvideo_ray.errors import InputError, in_a_line
from flashvideo_ray.graph.notice import Notifier
from flashvideo_ray.ledger import run_file, tables
from flashvideo_ray.ledger.claim import Claim, at_work, scope_of
from flashvideo_ray.ledger.shard import Shard
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.media import video
from flashvideo_ray.settings import Settings

FILE = "exit.json"
FOLDER = "exit"  # of jobs on shares of the prompts: exit/shard-3-of-8.json
SHEET = "contact-sheet.jpg"
_SHOWN = 9  # clips of a contact sheet


class Ending:
    """What is known of a job's end. `result` is set where it came to one of its own."""

    def __init__(self, output: str, settings: Settings, shard: Shard | None = None):
        self.store, self.settings, self.shard = Store(output), settings, shard
        self.result: Any = None
        self.notifier = Notifier(settings.notify, self.store.url, None if shard is None else str(shard))
        self._started = time.monotonic()
        self._left = False

    @contextmanager
    def left_under(self, claim: Claim) -> Iterator[None]:
        """The part of a job that holds the run: however it ends, that is left there before the claim is released.

        So a job that begins in the next moment does not find how the one before it ended.
        """
        try:
            yield
        except BaseException as error:
            self._leave_if_held(claim, error)
            raise
        self._leave_if_held(claim, None)

    def tell(self, error: BaseException | None) -> None:
        """Tell of the end, and leave it where there was nothing to hold the run for. Nothing here raises.

        A job that was refused, or came to nothing before it held the run, leaves what the one before it said; one that
        found nothing to do while another is at work leaves the end to that.
        """
        facts = self._facts(error)
        with suppress(Exception):
            if error is None and not self._left and not at_work(self.store, scope_of(self.shard)):
                self._leave(facts)
        if self.settings.notify is None:
            return
        with suppress(Exception):
            self._notify(facts, error)

    def _leave_if_held(self, claim: Claim, error: BaseException | None) -> None:
        with suppress(Exception):  # of a claim that is lost: it is another job's run by now
            claim.check()
            if error is None and self.settings.notify is not None:
                with suppress(Exception):
                    contact_sheet(self.store)
            self._leave(self._facts(error))

    def _leave(self, facts: Mapping[str, Any]) -> None:
        self.store.put(file_of(self.shard), json.dumps(facts, indent=2).encode())
        self._left = True

    def _facts(self, error: BaseException | None) -> dict[str, Any]:
        return {
            "exit_status": self.result.exit_status if error is None else 2 if isinstance(error, InputError) else 1,
            "error": None if error is None else in_a_line(error),
            "ended": {} if error is not None else self.result.ended,
            "seconds": round(time.monotonic() - self._started, 1),
            "at": dt.datetime.now(dt.UTC).isoformat(),
            "command": shlex.join(sys.argv),
        }

    def _notify(self, facts: dict[str, Any], error: BaseException | None) -> None:
        url = self.store.url
        files = {"report": "report.html", "summary": "summary.json", "exit": file_of(self.shard)}
        facts["links"] = {name: f"{url}/{file}" for name, file in files.items()}
        how = f"ended with exit status {facts['exit_status']}"
        bill = ""
        if not isinstance(error, InputError):
            with suppress(Exception):
                summary = json.loads(self.store.get("summary.json"))
                facts["counts"], facts["bill"] = summary["status"], summary["bill"]
                bill = "; ".join(bill_lines(summary["bill"]))
            if error is None and self.store.exists(SHEET):
                facts["contact_sheet"] = f"{url}/{SHEET}"
        if error is None:
            counts = ", ".join(f"{count} {name}" for name, count in sorted(self.result.total.items()))
            text = f"{how} after {duration(facts['seconds'])}: {counts}. {bill}"
        else:
            text = f"{how}: {facts['error']}. The same command carries on."
        self.notifier.tell("end", f"{text} {url}/report.html", facts)
        self.notifier.close()  # with what was told before


@contextmanager
def told(output: str, settings: Settings, shard: Shard | None = None) -> Iterator[Ending]:
    """A job: however it ends, that is told."""
    ending = Ending(output, settings, shard)
    try:
        yield ending
    except BaseException as error:
        ending.tell(error)
        raise
    ending.tell(None)


@contextmanager
def refusals_told(output: str, settings: Settings, shard: Shard | None = None) -> Iterator[None]:
    """What comes before a job: if that refuses it, or fails, that is told as the job's end."""
    try:
        yield
    except BaseException as error:
        Ending(output, settings, shard).tell(error)
        raise


def file_of(shard: Shard | None) -> str:
    """Where a job leaves how it ended."""
    return FILE if shard is None else f"{FOLDER}/{shard.name}.json"


def forget(store: Store, shard: Shard | None) -> None:
    """Remove what tells of jobs before one that begins; ends of jobs on other shares, of as many, stay."""
    for key in store.keys(FOLDER, ".json"):
        if shard is None or key == file_of(shard) or not key.endswith(f"-of-{shard.count}.json"):
            store.delete(key)
    store.delete(FILE)


def exit_status(store: Store) -> int:
    """Of the last job that began on the run; of jobs on all shares together the worst: 1, then 3, then 0.

    Raises NoRunError where none has ended yet, or those on some shares have not.
    """
    if store.exists(FILE):
        return int(json.loads(store.get(FILE))["exit_status"])
    ended = store.keys(FOLDER, ".json")
    if not ended:
        raise run_file.NoRunError(f"{store.url}: no job has ended here ({FILE} is not there)")
    count = int(ended[0].removesuffix(".json").rpartition("-")[2])
    shards = [Shard(number, count) for number in range(1, count + 1)]
    if missing := [str(shard) for shard in shards if file_of(shard) not in ended]:
        raise run_file.NoRunError(f"{store.url}: of its shards {', '.join(missing)} have not ended")
    found = [int(json.loads(store.get(key))["exit_status"]) for key in ended]
    return next((status for status in (1, 2, 3) if status in found), 0)


def contact_sheet(store: Store) -> None:
    """Make a picture of some of the clips anew, beside the report, if there are any."""
    clips = tables.read(store, "clips", ["status", "poster"])
    keys = clips.filter(pc.equal(clips["status"], "rendered"))["poster"].drop_null().to_pylist()
    chosen = keys[:: max(1, len(keys) // _SHOWN)][:_SHOWN]
    if chosen:
        store.put(SHEET, video.contact_sheet([store.get(key) for key in chosen]))
