"""The base classes of errors that end a job with one message, whoever can mend them; and how errors are told of."""

from __future__ import annotations

import time
from collections.abc import Callable

_LONGEST_PAUSE = 60.0  # seconds
# The last of them is cuDNN's for a convolution none of whose ways finds room for its workspace.
_NO_MEMORY = (
    "_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "unable to find an engine to execute this computation",
)

_FILE_SYSTEMS = {"hf": "hf", "gs": "gcs", "gcs": "gcs"}  # by protocol, the extra that brings what reads it


class InputError(ValueError):
    """The input or the settings are wrong; nothing was started. The message says what to do (exit status 2)."""


class JobError(RuntimeError):
    """A job cannot go on, though nothing is wrong with what it was told. The message says where and why (status 1)."""


def message_of(error: BaseException) -> str:
    """What an error says, as text that any table and any log can hold."""
    try:
        text = str(error) or repr(error)
    except Exception:  # of a library that fails even in saying what failed
        text = "an error that cannot be shown"
    return text.encode(errors="backslashreplace").decode()


def no_file_system(url: str, error: Exception) -> str:
    """Why a place cannot be reached whose protocol nothing here knows, and what to install."""
    extra = _FILE_SYSTEMS.get(url.partition("://")[0])
    hint = f"pip install 'flashvideo-ray[{extra}]'" if extra else str(error)
    return f"{url}: what reads such places is not installed: {hint}"


def in_a_line(error: BaseException) -> str:
    """Class and message of an error, the first line of it; where Ray wraps what happened on a worker, of that."""
    cause = getattr(error, "cause", None)
    own = cause if isinstance(cause, BaseException) else error
    lines = message_of(own).strip().splitlines() or [repr(own)]
    return f"{type(own).__name__}: {lines[0]}"


def is_out_of_memory(error: BaseException) -> bool:
    """Of the host, or of a card: torch has a class for its own requests, its libraries only say so."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error) if isinstance(error, RuntimeError) else ""
    return any(words in said for words in _NO_MEMORY)


class Teller:
    """Tells of an error that comes again and again in a line, with growing pauses; of one of another class at once."""

    def __init__(self, say: Callable[[str], object], clock: Callable[[], float] = time.monotonic):
        self._say = say
        self._clock = clock
        self._kind: type[BaseException] | None = None
        self._pause = self._next = 0.0

    def tell(self, error: BaseException) -> None:
        """It has gone wrong."""
        if type(error) is not self._kind:
            self._kind, self._pause, self._next = type(error), 1.0, 0.0
        if self._clock() >= self._next:
            self._say(in_a_line(error))
            self._next = self._clock() + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def well(self) -> None:
        """It has not: the next error is news."""
        self._kind = None
