"""What reaches the console while a job runs, in a process of its own whose stderr is a file descriptor."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import os, sys
from flashvideo_ray.graph.console import without_false_alarms

os.write(2, b"before\\n")
with without_false_alarms():
    os.write(2, b"E core_worker.cc: Actor has constructor arguments in the object store and max_restarts > 0\\n")
    os.write(2, b"a real error of the core\\n")
    print("(raylet) Task failed. There are infinite retries remaining", file=sys.stderr)
    print("(raylet) Task failed. There are infinite retries remaining")
    print("a word of Python", file=sys.stderr)
    print("a result")
os.write(2, b"after\\n")
"""


def test_alarms_that_mean_nothing_do_not_reach_the_console_and_all_else_does() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=300)
    lines = ["a real error of the core", "a word of Python", "after", "before"]
    assert (done.returncode, sorted(done.stderr.splitlines())) == (0, lines)
    assert done.stdout.splitlines() == ["a result"]
