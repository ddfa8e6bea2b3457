"""What reaches the console while a job runs, in a process of its own whose stderr is a file descriptor."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import os, sys
from flashvideo_ray.graph.console import without_false_alarms

os.write(2, b"before\\n")
with without_false_alarms():
    os.write(2, b"E core_worker.cc: Actor has constructor arguments in the object store and max_restarts > 0\\n")
    os.write(2, b"a real error of the core\\n")
    print("(raylet) Task failed. There are infinite retries remaining", file=sys.stderr)
    print("(raylet) Task failed. There are infinite retries remaining")
    print("(pid=gcs_server) Failed to kill actor 8b: KillActor RPC failed for actor 8b: Socket closed", file=sys.stderr)
    print("a word of Python", file=sys.stderr)
    print("a result")
os.write(2, b"after\\n")
"""


def test_alarms_that_mean_nothing_do_not_reach_the_console_and_all_else_does() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=300)
    lines = ["a real error of the core", "a word of Python", "after", "before"]
    assert (done.returncode, sorted(done.stderr.splitlines())) == (0, lines)
    assert done.stdout.splitlines() == ["a result"]


_LAST_WORDS = """
import os, sys, types
from flashvideo_ray.graph.console import without_false_alarms

def shutdown():
    ray.is_initialized = lambda: False
    os.write(2, b"(raylet) Task failed. There are infinite retries remaining\\n")
    os.write(2, b"a real error of the core\\n")

ray = types.SimpleNamespace(is_initialized=lambda: sys.argv[1] == "there before", shutdown=shutdown)
sys.modules["ray"] = ray  # it speaks when it is let go, at moments of its own choice: this one always does
with without_false_alarms():
    ray.is_initialized = lambda: True
    if sys.argv[1] != "ends well":
        raise KeyboardInterrupt if sys.argv[1] == "is stopped" else OSError
"""


@pytest.mark.parametrize("job", ["ends well", "fails", "is stopped"])
def test_ray_is_let_go_where_its_last_words_are_filtered_however_a_job_ends(job: str) -> None:
    assert _told(job)[0] == "a real error of the core"
    assert not any("retries" in line for line in _told(job))


def test_a_ray_that_was_there_before_is_left_alone() -> None:
    assert "a real error of the core" not in _told("there before")


def _told(job: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", _LAST_WORDS, job], capture_output=True, text=True, timeout=300)
    assert (done.returncode == 0) == (job == "ends well")
    return done.stderr.splitlines()
