"""The times that rows get: whose row is newest decides, and hosts' clocks differ by minutes."""

from __future__ import annotations

import datetime as dt
import threading

_TICK = dt.timedelta(milliseconds=1)  # what the coarsest table resolves


class Clock:
    """The time of this machine, but never at or before a row that it has seen.

    So a row that is written in the knowledge of another is newer than that, whatever the clock of the host says that
    wrote the other one. Safe to use from several threads.
    """

    def __init__(self, seen: dt.datetime | None = None, given: dt.datetime | None = None):
        epoch = dt.datetime.fromtimestamp(0, dt.UTC)
        self._seen, self._given = seen or epoch, given or epoch
        self._lock = threading.Lock()

    def see(self, at: dt.datetime) -> None:
        """A row with this time was read."""
        with self._lock:
            self._seen = max(self._seen, at)

    def now(self) -> dt.datetime:
        """The time for rows that are written now; it never goes back."""
        with self._lock:
            self._given = max(dt.datetime.now(dt.UTC), self._seen + _TICK, self._given)
            return self._given

    def __reduce__(self) -> tuple[type[Clock], tuple[dt.datetime, dt.datetime]]:
        return Clock, (self._seen, self._given)
