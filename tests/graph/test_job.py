"""`ray job submit jobs/render.py` on a real head node, with prompts and output in a real S3 server."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from support import ROOT, S3, free_ports, script

from flashvideo_ray import video
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.store import Store

PROMPTS = [
    "a small red circle slides slowly to the left across a plain grey background",
    "a large blue square moves to the right on a white background",
    "a green triangle grows in front of a dark background",
    "a yellow star moves up on a grey background",
]


@pytest.fixture(scope="module")
def head(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Ray head as a user starts one, with as many CPUs as the machine has; gives the environment of its clients."""
    ray.shutdown()
    folder = tmp_path_factory.mktemp("head")
    port, dashboard, client, agent = free_ports(4)
    env = {
        **os.environ,
        **s3.env,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_TMPDIR": "/tmp",
    }
    env.pop("PYTHONPATH", None)
    command = [
        script("ray"), "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats",
    ]  # fmt: skip
    with open(folder / "head.log", "wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env={**env, "RAY_ADDRESS": f"127.0.0.1:{port}"}
        )
    try:
        _wait_for_jobs(env["RAY_ADDRESS"], env["RAY_AUTH_TOKEN"], process, folder / "head.log")
        yield env
    finally:
        started = [process, *psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        time.sleep(3)
        for each in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()


def _wait_for_jobs(address: str, token: str, head: subprocess.Popen[bytes], log: Path) -> None:
    """Until a job is taken: the dashboard answers before the agent is there that starts jobs ("No available agent")."""
    body = json.dumps({"entrypoint": "true"}).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    deadline = time.monotonic() + 180
    while head.poll() is None and time.monotonic() < deadline:
        try:
            urlopen(Request(f"{address}/api/jobs/", body, headers), timeout=30).close()
            return
        except OSError:  # refused, 500
            time.sleep(0.5)
    raise RuntimeError(f"the head did not come up: {log.read_text()[-2000:]}")


def submit(head: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [script("ray"), "job", "submit", "--working-dir", ".", "--", "python", "jobs/render.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=head, capture_output=True, text=True, timeout=280)


def contents(store: Store) -> set[str]:
    """All objects of a run but its claims."""
    return set(store.keys()) - set(store.keys("claims"))


def test_a_submitted_job_renders_into_the_bucket(head: dict[str, str], s3: S3, tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": PROMPTS, "id": [*"abcd"]}), tmp_path / "prompts.parquet")
    Store(f"s3://{s3.bucket}").put("in/prompts.parquet", (tmp_path / "prompts.parquet").read_bytes())
    arguments = (
        *("--prompts", f"s3://{s3.bucket}/in/prompts.parquet", "--output", f"s3://{s3.bucket}/run1"),
        *("--config", "nano", "--set", "progress_seconds=2"),
    )
    job = submit(head, *arguments)
    assert job.returncode == 0, job.stdout[-3000:] + job.stderr[-3000:]
    assert "SUCCEEDED" in job.stdout.upper() or "succeeded" in job.stdout

    store = Store(f"s3://{s3.bucket}/run1")
    clips = tables.read(store, "clips").to_pylist()
    assert sorted(row["id"] for row in clips) == [*"abcd"]
    assert {row["status"] for row in clips} == {"rendered"}
    recipe = json.loads(store.get("run.json"))["recipe"]
    for row in clips:
        frames, info = video.decode_mp4(store.get(row["clip"]))
        assert frames.shape == (row["frames"], row["height"], row["width"], 3)
        assert (row["height"], row["width"]) == (recipe["refine"]["height"], recipe["refine"]["width"])
        assert (info.fps, info.metadata["prompt"]) == (recipe["fps"], row["prompt"])
    named = {row[column] for row in clips for column in ("clip", "poster")}
    named |= {row[c] for row in tables.read(store, "previews").to_pylist() for c in ("latents", "preview", "poster")}
    others = {"run.json", "summary.json", "report.html", *store.keys("ledger")}
    assert contents(store) == named | others

    again = submit(head, *arguments)
    assert again.returncode == 0
    assert "Nothing to do" in again.stdout
    assert contents(store) == named | others


def test_a_job_with_wrong_input_says_so_and_writes_nothing(head: dict[str, str], s3: S3) -> None:
    job = submit(head, "--prompts", f"s3://{s3.bucket}/absent.parquet", "--output", f"s3://{s3.bucket}/run2")
    assert job.returncode == 1  # what `ray job submit` makes of any failure; the job itself ended with 2
    assert "absent.parquet: no such file" in job.stdout
    assert "exit code 2" in job.stdout
    assert Store(f"s3://{s3.bucket}/run2").keys() == []
