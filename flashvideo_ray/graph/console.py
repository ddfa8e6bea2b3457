"""What Ray's core writes to the console though nothing is wrong, kept from it."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Literal, TextIO

# Ray Data keeps these arguments for as long as the actors live, and asks for as many restarts as it takes. An actor
# that is to be ended may have ended by itself.
_FALSE_ALARMS = (
    b"has constructor arguments in the object store and max_restarts",
    b"infinite retries",
    b"KillActor RPC failed for actor",
)


@contextmanager
def without_false_alarms() -> Iterator[None]:
    """Within it, lines that are no news do not reach the console.

    The core writes past Python, to the file descriptor of stderr, so a pipe takes its place. What Python writes (Ray's
    thread among it, that passes on what others say, and the core's words to sys.stdout) goes straight to the console,
    which stays a terminal if it is one. Nothing is done to a stream that is not the process's own.

    Ray, if it was started or connected to within, is let go at the end, however that comes: its last words, about what
    was cut short, are no news either.
    """
    with ExitStack() as streams:
        if _is_own(sys.stderr, 2):
            console = os.dup(2)
            streams.enter_context(_instead_of("stderr", console))
            streams.enter_context(_filtered_descriptor(console))
        if _is_own(sys.stdout, 1):
            streams.enter_context(_instead_of("stdout", 1))
        if not _has_ray():
            streams.callback(_let_ray_go)
        yield


def _has_ray() -> bool:
    ray = sys.modules.get("ray")  # nobody has imported it for an input that was wrong
    return ray is not None and ray.is_initialized()


def _let_ray_go() -> None:
    if _has_ray():
        sys.modules["ray"].shutdown()


def _is_own(stream: TextIO, descriptor: int) -> bool:
    try:
        return stream.fileno() == descriptor
    except (AttributeError, OSError, ValueError):
        return False


@contextmanager
def _instead_of(name: Literal["stdout", "stderr"], descriptor: int) -> Iterator[None]:
    """While it lasts, a stream of `sys` is one that leaves out what is no news, and writes to the descriptor."""
    before: TextIO = getattr(sys, name)
    before.flush()
    straight = open(os.dup(descriptor), "wb")  # noqa: SIM115
    setattr(sys, name, _Console(straight, encoding=before.encoding, errors="backslashreplace", line_buffering=True))
    try:
        yield
    finally:
        with suppress(OSError):  # of a console on a full disk
            getattr(sys, name).close()
        setattr(sys, name, before)


@contextmanager
def _filtered_descriptor(console: int) -> Iterator[None]:
    """While it lasts, what is written to descriptor 2 goes through a pipe, and what is news to the console."""
    read, write = os.pipe()
    os.dup2(write, 2)
    os.close(write)
    reader = threading.Thread(target=_pass_on, args=[read, console], daemon=True)
    reader.start()
    try:
        yield
    finally:
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
