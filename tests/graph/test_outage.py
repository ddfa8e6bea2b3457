"""A store that is away for longer than the lease of the claim: the job goes on, or ends and leaves the run alone.

And the disks of the workers, which are full before that: a job needs nothing of them.
"""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from support import S3, Link, children, script, short_lease, tiny_overrides, write_prompts

from flashvideo_ray.ledger import parquet_log
from flashvideo_ray.ledger.claim import Claim, ClaimedError
from flashvideo_ray.ledger.holder import Identity
from flashvideo_ray.ledger.store import Store


def until(done: Callable[[], bool], job: subprocess.Popen[bytes], log: Path, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert job.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)


@pytest.mark.long
def test_an_absence_longer_than_the_lease(s3: S3, tmp_path: Path, tiny_model: Path) -> None:
    # More than are encoded before this is over: a stage that has nothing left to do lets its actors go.
    prompts = write_prompts(tmp_path / "prompts.parquet", [f"a red circle moves left {n}" for n in range(2000)])
    store = Store(f"s3://{s3.bucket}/{tmp_path.name}")
    link = Link(int(s3.endpoint.rpartition(":")[2]))
    words = [word for it in [*tiny_overrides(tiny_model), *short_lease(3)] for word in ("--set", it)]
    command = [script("flashvideo-ray"), "render", prompts, store.url, "-c", "nano", *words]
    log = tmp_path / "job.log"
    with open(log, "wb") as out:
        env = {**os.environ, "AWS_ENDPOINT_URL": link.endpoint}
        job = subprocess.Popen(command, env=env, stdout=out, stderr=out)
    try:
        until(lambda: len(store.keys("clips", ".mp4")) >= 2, job, log)

        # The temporary folders of all workers are full: nothing fails, and nothing waits.
        workers = children("ray::MapWorker(", of=job.pid)  # actors: what runs tasks is let go when it idles
        assert len(workers) >= 4  # of all stages
        for each in workers:
            refuse_to_grow_files(each.pid, True)
        clips = len(store.keys("clips", ".mp4"))
        until(lambda: len(store.keys("clips", ".mp4")) >= clips + 3, job, log)
        assert [each for each in workers if not each.is_running()] == [], log.read_text()[-3000:]
        for each in workers:
            refuse_to_grow_files(each.pid, False)

        # Nobody takes the run: the job claims it again and goes on.
        link.cut()
        held = newest(store)
        time.sleep(4)
        clips = len(store.keys("clips", ".mp4"))
        link.mend()
        until(lambda: newest(store) > held and len(store.keys("clips", ".mp4")) >= clips + 3, job, log)

        # Another job takes it: this one ends, and nothing is written after that.
        link.cut()
        other = Identity(host="elsewhere", pid=7, user="ann", command="render a b")
        claimed = False
        while not claimed:
            try:
                with Claim(store, other) as claim:
                    claimed = True
                    there = objects(store)
                    link.mend()
                    assert job.wait(120) == 1, log.read_text()[-3000:]
                    claim.check()
                    assert objects(store) == there
            except ClaimedError:
                time.sleep(0.5)
        assert "render a b" in log.read_text()
    finally:
        job.kill()
    for table in ("previews", "clips"):
        parts = parquet_log.read_all(store, f"ledger/{table}-")
        rows = Counter(clip_id for part in parts.values() for clip_id in part["clip_id"].to_pylist())
        assert set(rows.values()) <= {1}  # nothing was done twice
        assert {status for part in parts.values() for status in part["status"].to_pylist()} <= {"previewed", "rendered"}


def refuse_to_grow_files(pid: int, yes: bool) -> None:
    """As a full disk does: the kernel refuses the writes of the process, and lets it read."""
    limit = 256 if yes else resource.RLIM_INFINITY
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def newest(store: Store) -> str:
    """The claim that counts."""
    return max(store.keys("claims", ".json"))


def objects(store: Store) -> dict[str, object]:
    """All objects but the claims, and when each was written."""
    found = store.fs.find(store.path(), detail=True)
    return {path: info["LastModified"] for path, info in found.items() if "/claims/" not in path}
