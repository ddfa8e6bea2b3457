"""Lines in the logs of a job and of its workers: text or, on demand, JSON with the candidate that each is about."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Literal

Form = Literal["text", "json"]
_about: ContextVar[Mapping[str, str] | None] = ContextVar("about", default=None)
_form: Form = "text"
_SEPARATE = ("diffusers", "transformers")  # when they are imported they give themselves handlers of their own


@contextmanager
def about(stage: str, clip_id: str) -> Iterator[None]:
    """What this thread says within is about that candidate in that stage."""
    token = _about.set({"stage": stage, "clip_id": clip_id})
    try:
        yield
    finally:
        _about.reset(token)


def use(form: Form) -> None:
    """From here on this process writes its lines so, and what libraries tell `logging`."""
    global _form
    _form = form
    root = logging.getLogger()
    others = [handler for handler in root.handlers if not isinstance(handler.formatter, _Json)]
    if form == "text":
        root.handlers[:] = others
        return
    if len(others) == len(root.handlers):
        handler = _Stderr()
        handler.setFormatter(_Json())
        root.handlers[:] = [handler]
    for name in _SEPARATE:
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True


def line(text: str, level: str = "info") -> str:
    """The text, or the JSON object that says it."""
    return text if _form == "text" else _object(level, text, dt.datetime.now(dt.UTC))


def say(text: str) -> None:
    """A line in the worker's log. A log that cannot be written, on a disk that is full, costs no candidate."""
    _write(line(text, "warning"))


def _write(text: str) -> None:
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


class _Stderr(logging.Handler):
    """What is the process's stderr when something is said: a job's console has another one for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        """See Handler."""
        _write(self.format(record))


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """See Formatter."""
        more = {} if record.exc_info is None else {"traceback": self.formatException(record.exc_info)}
        at = dt.datetime.fromtimestamp(record.created, dt.UTC)
        return _object(record.levelname.lower(), record.getMessage(), at, logger=record.name, **more)


def _object(level: str, message: str, at: dt.datetime, **more: Any) -> str:
    return json.dumps({"at": at.isoformat(), "level": level, "message": message, **(_about.get() or {}), **more})
