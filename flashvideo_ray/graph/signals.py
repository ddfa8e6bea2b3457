"""How a job is interrupted: by Ctrl-C, and by SIGTERM in the same way, so that what is in memory is written first."""

from __future__ import annotations

import signal
import threading


def stop_on_sigterm() -> None:
    """Let SIGTERM (`ray job stop`, a node that is taken away) raise KeyboardInterrupt in the main thread.

    Call it after `ray.init`, which puts a handler of its own there. Elsewhere than in the main thread it does nothing.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def interrupt(thread: threading.Thread) -> None:
    """Raise KeyboardInterrupt in a thread that waits, if it is the main one: others hear of no signal."""
    if thread is threading.main_thread():
        signal.pthread_kill(thread.ident or 0, signal.SIGINT)
