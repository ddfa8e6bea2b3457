"""What Ray's core writes to the console though nothing is wrong, kept from it."""

from __future__ import annotations

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

    The core writes past Python, to the file descriptor, so a pipe takes its place; what Python writes goes straight to
    the console as before, which stays a terminal if it is one. Nothing is done where sys.stderr is not descriptor 2.
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
    sys.stderr = open(os.dup(console), "w", buffering=1, encoding=before.encoding, errors="backslashreplace")  # noqa: SIM115
    try:
        yield
    finally:
        with suppress(OSError):  # of a console on a full disk
            sys.stderr.close()
        sys.stderr = before
        os.dup2(console, 2)
        reader.join(1.0)  # a process that was started meanwhile may keep the pipe open


def _pass_on(read: int, console: int) -> None:
    with open(read, "rb") as lines:
        for line in lines:
            if not any(alarm in line for alarm in _FALSE_ALARMS):
                with suppress(OSError):
                    os.write(console, line)
