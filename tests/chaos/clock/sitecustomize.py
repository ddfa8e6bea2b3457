"""A host whose wall clock is wrong: Python imports this first where this folder is on its path.

Within one process, and only what Python asks for; the monotonic clock is right, as it is on such a host.
"""

import datetime
import os
import time

_seconds = float(os.environ["CHAOS_CLOCK"])
_right = time.time


def _wrong() -> float:
    return _right() + _seconds


class _Datetime(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
        return datetime.datetime.fromtimestamp(_wrong(), tz)


time.time = _wrong
datetime.datetime = _Datetime  # type: ignore[misc]
