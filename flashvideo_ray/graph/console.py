"""What Ray's core writes to the console though nothing is wrong, kept from it."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Ray Data keeps these arguments for as long as the actors live, and asks for as many restarts as it takes.
_FALSE_ALARMS = (b"has constructor arguments in the object store and max_restarts", b"infinite retries")


@contextmanager
def without_false_alarms() -> Iterator[None]:
    """Within it, lines that are no news do not reach the console.

    The core writes past Python, to the file descriptor, so a pipe takes its place. What Python writes, Ray's thread
    among it that passes on what others say, goes straight to the console, which stays a terminal if it is one. Nothing
    is done where sys.stderr is not descriptor 2.
    """
    try:
        direct = sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):
        direct = False
    if not direct:
        yield
        return
    before = sys.stderr
    before.flush()
    console = os.dup(2)
    read, write = os.pipe()
    os.dup2(write, 2)
    os.close(write)
    reader = threading.Thread(target=_pass_on, args=[read, console], daemon=True)
    reader.start()
    straight = open(os.dup(console), "wb")  # noqa: SIM115
    sys.stderr = _Console(straight, encoding=before.encoding, errors="backslashreplace", line_buffering=True)
    try:
        yield
    finally:
        with suppress(OSError):  # of a console on a full disk
            sys.stderr.close()
        sys.stderr = before
        os.dup2(console, 2)
        reader.join(1.0)  # a process that was started meanwhile may keep the pipe open


class _Console(io.TextIOWrapper):
    """What is no news is not written, nor the end of its line, which `print` writes by itself."""

    _left_out = False

    def write(self, text: str) -> int:
        """See TextIOWrapper."""
        ends, self._left_out = self._left_out and text == "\n", False
        if not ends and not any(alarm.decode() in text for alarm in _FALSE_ALARMS):
            return super().write(text)
        self._left_out = not text.endswith("\n")
        return len(text)


def _pass_on(read: int, console: int) -> None:
    with open(read, "rb") as lines:
        for line in lines:
            if not any(alarm in line for alarm in _FALSE_ALARMS):
                with suppress(OSError):
                    os.write(console, line)
