"""A host whose wall clock is wrong: Python imports this first where this folder is on its path.

Within one process, for what the package and the standard library ask of it; the monotonic clock is right, as it is on
such a host. `datetime.datetime` itself stays as it is, because compiled modules rely on its layout: the package's
modules that ask for the time get another one.
"""

import datetime
import os
import time
import types

from flashvideo_ray.ledger import claim, clock, tables

_seconds = float(os.environ["CHAOS_CLOCK"])
_right = time.time


def _wrong() -> float:
    return _right() + _seconds


# Whatever travels to another host names the clock there.
_wrong.__module__, _wrong.__qualname__ = "time", "time"


class _Datetime:
    def now(self, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(_wrong(), tz)

    def __getattr__(self, name: str) -> object:
        return getattr(datetime.datetime, name)


time.time = _wrong
for _module in (claim, clock, tables):
    _module.dt = types.SimpleNamespace(**{**vars(datetime), "datetime": _Datetime()})  # type: ignore[attr-defined]
