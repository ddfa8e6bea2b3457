"""A run for each night: `{date}` in OUTPUT, what no earlier night has, and one night at a time on a pattern."""

from __future__ import annotations

import datetime as dt
import re
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from flashvideo_ray.accounting.summary import statuses
from flashvideo_ray.errors import InputError
from flashvideo_ray.graph import signals
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.claim import Claim, ClaimLostError, scope_of
from flashvideo_ray.ledger.holder import Identity
from flashvideo_ray.ledger.shard import Shard
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.texts import COLUMNS
from flashvideo_ray.settings import Settings

DATE = "{date}"
_ENDED = frozenset({"rendered", "rejected"})
_Text = tuple[str, str, str]  # the prompt's id, its text, and its negative prompt or nothing


class NightError(InputError):
    """A date or a pattern that cannot be used."""


@dataclass(frozen=True)
class Night:
    """One run of a pattern such as `s3://bucket/nights/{date}`."""

    pattern: str
    date: str  # as 2026-11-26, so that dates sort as they follow

    @classmethod
    def of(cls, pattern: str, date: str | None = None) -> Night:
        """That of a date, or of today (UTC). Raises NightError."""
        if pattern.count(DATE) != 1:
            raise NightError(f"{pattern}: needs {DATE} once, as in s3://bucket/nights/{DATE}")
        if not pattern.partition(DATE)[0].strip("/") or pattern.partition(DATE)[0].endswith("://"):
            raise NightError(f"{pattern}: needs a folder before {DATE}, where nights wait for one another")
        return cls(pattern, _date(date))

    @property
    def output(self) -> str:
        """Where its run is."""
        return self.pattern.replace(DATE, self.date)

    @property
    def root(self) -> str:
        """The folder that all nights of the pattern are below."""
        return self.pattern.partition(DATE)[0].rpartition("/")[0]

    def earlier(self) -> list[str]:
        """The runs of the pattern with dates before this one, the oldest first."""
        root = Store(self.root)
        below = self.pattern.removeprefix(self.root).lstrip("/")
        path = re.compile(re.escape(below).replace(re.escape(DATE), r"(\d{4}-\d\d-\d\d)") + "/run.json")
        # Folders of nights, not the thousands of objects within: the glob goes down by one name each.
        found = root.fs.glob(root.path(below.replace(DATE, "????-??-??") + "/run.json"))
        matches = [path.fullmatch(key.removeprefix(root.path()).lstrip("/")) for key in found]
        dates = sorted(match[1] for match in matches if match is not None and match[1] < self.date)
        return [self.pattern.replace(DATE, date) for date in dates]


def _date(text: str | None) -> str:
    if text is None:
        return dt.datetime.now(dt.UTC).date().isoformat()
    try:
        return dt.date.fromisoformat(text).isoformat()
    except ValueError:
        raise NightError(f"--date {text}: write it like 2026-11-26") from None


@contextmanager
def held(night: Night, settings: Settings, takeover: bool = False, shard: Shard | None = None) -> Iterator[None]:
    """Hold the pattern, so that no two nights pay for the same prompts. Raises ClaimedError, or ClaimLostError later.

    Of a share of the prompts, that share of all nights.

    The claim on the run itself is another one.
    """
    lease, patience = settings.ledger.lease_seconds, settings.store_patience_seconds
    who, scope = Identity.of_this_process(), scope_of(shard)
    with Claim(Store(night.root), who, lease, takeover, patience, scope) as claim:
        over, waits = threading.Event(), threading.current_thread()

        def watch() -> None:
            claim.lost.wait()
            if not over.is_set():
                signals.interrupt(waits)

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        except KeyboardInterrupt:
            if claim.lost.is_set():
                raise ClaimLostError(claim.reason) from None
            raise
        finally:
            over.set()


def without_done(prompts: pa.Table, runs: Sequence[str]) -> pa.Table:
    """The prompts (`id`, `prompt`, `negative_prompt`) that none of these runs has done.

    A prompt is done where all its candidates ended as rendered or rejected. One that was skipped, failed or is still
    open is carried over, and so is one whose text was edited since.
    """
    if not runs:
        return prompts
    done: set[_Text] = set()
    for run in runs:
        done |= _done(Store(run))
    keep = [text not in done for text in _texts(prompts)]
    return prompts.filter(pa.array(keep, pa.bool_()))


def _done(store: Store) -> set[_Text]:
    ledger = {table: tables.read(store, table, [*COLUMNS, "status"]) for table in tables.SCHEMAS}
    status = statuses(ledger["previews"], ledger["clips"])
    ended = dict(zip(status["clip_id"].to_pylist(), status["status"].to_pylist(), strict=True))
    found: dict[_Text, set[str]] = defaultdict(set)
    for table in ledger.values():
        for clip_id, text in zip(table["clip_id"].to_pylist(), _texts(table), strict=True):
            found[text].add(ended.get(clip_id, "open"))
    return {text for text, states in found.items() if states <= _ENDED}


def _texts(table: pa.Table) -> Iterator[_Text]:
    columns = [table[name].to_pylist() for name in ("id", "prompt", "negative_prompt")]
    return ((id_, prompt, negative or "") for id_, prompt, negative in zip(*columns, strict=True))
