"""The end of a job, however it comes: its exit status in a file of the run, and a notice to whoever waits for it."""

from __future__ import annotations

import datetime as dt
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow.compute as pc

from flashvideo_ray.accounting.terminal import bill_lines, duration
from flashvideo_ray.errors import InputError, in_a_line
from flashvideo_ray.graph.notice import Notifier
from flashvideo_ray.ledger import run_file, tables
from flashvideo_ray.ledger.claim import ClaimLostError
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.media import video
from flashvideo_ray.settings import Settings

FILE = "exit.json"
SHEET = "contact-sheet.jpg"
_SHOWN = 9  # clips of a contact sheet


class Ending:
    """What is known of a job's end. `result` is set where it came to one of its own."""

    def __init__(self, output: str, settings: Settings):
        self.store, self.settings = Store(output), settings
        self.result: Any = None
        self._started = time.monotonic()

    def tell(self, error: BaseException | None) -> None:
        """Leave `exit.json`, unless the run is not this job's, and tell. Nothing here raises."""
        seconds = time.monotonic() - self._started
        status = self.result.exit_status if error is None else 2 if isinstance(error, InputError) else 1
        facts: dict[str, Any] = {
            "exit_status": status,
            "error": None if error is None else in_a_line(error),
            "ended": {} if error is not None else self.result.ended,
            "seconds": round(seconds, 1),
            "at": dt.datetime.now(dt.UTC).isoformat(),
            "command": shlex.join(sys.argv),
        }
        if not isinstance(error, InputError | ClaimLostError):  # nothing was started, or it is another job's by now
            with suppress(Exception):
                self.store.put(FILE, json.dumps(facts, indent=2).encode())
        if self.settings.notify is None:
            return
        with suppress(Exception):
            self._notify(facts, error)

    def _notify(self, facts: dict[str, Any], error: BaseException | None) -> None:
        url = self.store.url
        facts["links"] = {"report": f"{url}/report.html", "summary": f"{url}/summary.json", "exit": f"{url}/{FILE}"}
        bill = ""
        if not isinstance(error, InputError):
            with suppress(Exception):
                summary = json.loads(self.store.get("summary.json"))
                facts["counts"], facts["bill"] = summary["status"], summary["bill"]
                bill = "; ".join(bill_lines(summary["bill"]))
            if error is None:
                with suppress(Exception):
                    facts["contact_sheet"] = contact_sheet(self.store)
        if error is None:
            counts = ", ".join(f"{count} {name}" for name, count in sorted(self.result.total.items()))
            text = f"ended with exit status {facts['exit_status']} after {duration(facts['seconds'])}: {counts}. {bill}"
        else:
            text = f"ended with exit status {facts['exit_status']}: {facts['error']}. The same command carries on."
        notifier = Notifier(self.settings.notify, url)
        notifier.tell("end", f"{text} {url}/report.html", facts)
        notifier.close()


@contextmanager
def told(output: str, settings: Settings) -> Iterator[Ending]:
    """A job: however it ends, that is told."""
    ending = Ending(output, settings)
    try:
        yield ending
    except BaseException as error:
        ending.tell(error)
        raise
    ending.tell(None)


def exit_status(store: Store) -> int:
    """Of the last job that began on the run. Raises NoRunError where none has ended yet."""
    try:
        return int(json.loads(store.get(FILE))["exit_status"])
    except FileNotFoundError:
        raise run_file.NoRunError(f"{store.url}: no job has ended here ({FILE} is not there)") from None


def contact_sheet(store: Store) -> str | None:
    """Make a picture of some of the clips anew, beside the report. Returns its URL; None where there are none."""
    clips = tables.read(store, "clips", ["status", "poster"])
    keys = clips.filter(pc.equal(clips["status"], "rendered"))["poster"].drop_null().to_pylist()
    chosen = keys[:: max(1, len(keys) // _SHOWN)][:_SHOWN]
    if not chosen:
        return None
    store.put(SHEET, video.contact_sheet([store.get(key) for key in chosen]))
    return os.path.join(store.url, SHEET)
