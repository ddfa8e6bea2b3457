"""`ray job submit jobs/render.py` on a real head node, with prompts and output in a real S3 server."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import guides
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from support import S3, serve_head, submit
from typer.testing import CliRunner

from flashvideo_ray.cli import app
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.media import video

PROMPTS = [
    "a small red circle slides slowly to the left across a plain grey background",
    "a large blue square moves to the right on a white background",
]
# After the names of prompts and output, as README.md has it.
OPTIONS = guides.block("README.md", "ray job submit").partition("--output s3://bucket/run1 ")[2].split()
AS_IN_THE_README = (*OPTIONS, "--set", "progress_seconds=2")

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def head(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Ray head as a user starts one, with as many CPUs as the machine has; gives the environment of its clients."""
    ray.shutdown()
    folder = tmp_path_factory.mktemp("head")
    env = {
        **os.environ,
        **s3.env,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": os.environ.get("RAY_TMPDIR", "/tmp"),
    }
    env.pop("PYTHONPATH", None)
    with serve_head(folder, env) as clients:
        yield clients


Job = Future[subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def jobs(head: dict[str, str], s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Job]]:
    """Two jobs that are submitted at the same time: one whose prompts are there, and one whose are not."""
    prompts = tmp_path_factory.mktemp("in") / "prompts.parquet"
    pq.write_table(pa.table({"prompt": PROMPTS, "id": [*"ab"]}), prompts)
    Store(f"s3://{s3.bucket}").put("in/prompts.parquet", prompts.read_bytes())
    with ThreadPoolExecutor() as pool:

        def submitted(prompts: str, output: str, *others: str) -> Job:
            where = ("--prompts", f"s3://{s3.bucket}/{prompts}", "--output", f"s3://{s3.bucket}/{output}")
            return pool.submit(submit, head, "python", "jobs/render.py", *where, *others)

        yield {
            "right": submitted("in/prompts.parquet", "run1", *AS_IN_THE_README),
            "wrong": submitted("absent.parquet", "run2"),
        }


def contents(store: Store) -> set[str]:
    """All objects of a run but its claims."""
    return set(store.keys()) - set(store.keys("claims"))


def test_a_submitted_job_renders_into_the_bucket(jobs: dict[str, Job], s3: S3) -> None:
    job = jobs["right"].result()
    assert job.returncode == 0, job.stdout[-3000:] + job.stderr[-3000:]
    assert "SUCCEEDED" in job.stdout.upper() or "succeeded" in job.stdout

    store = Store(f"s3://{s3.bucket}/run1")
    clips = tables.read(store, "clips").to_pylist()
    assert sorted(row["id"] for row in clips) == [*"ab"]
    assert {row["status"] for row in clips} == {"rendered"}
    recipe = json.loads(store.get("run.json"))["recipe"]
    for row in clips:
        frames, info = video.decode_mp4(store.get(row["clip"]))
        assert frames.shape == (row["frames"], row["height"], row["width"], 3)
        assert (row["height"], row["width"]) == (recipe["refine"]["height"], recipe["refine"]["width"])
        assert (info.fps, info.metadata["prompt"]) == (recipe["fps"], row["prompt"])
    named = {row[column] for row in clips for column in ("clip", "poster")}
    named |= {row[c] for row in tables.read(store, "previews").to_pylist() for c in ("latents", "preview", "poster")}
    others = {"run.json", "exit.json", "summary.json", "report.html", *store.keys("ledger")}
    assert contents(store) == named | others

    # Whoever asks for the same again, from wherever: there is nothing to do.
    prompts, output = f"s3://{s3.bucket}/in/prompts.parquet", f"s3://{s3.bucket}/run1"
    again = CliRunner().invoke(app, ["render", prompts, output, *AS_IN_THE_README])
    assert (again.exit_code, "Nothing to do" in again.output) == (0, True), again.output
    assert contents(store) == named | others


def test_a_job_with_wrong_input_says_so_and_writes_nothing(jobs: dict[str, Job], s3: S3) -> None:
    job = jobs["wrong"].result()
    assert job.returncode == 1  # what `ray job submit` makes of any failure; the job itself ended with 2
    assert "absent.parquet: no such file" in job.stdout
    assert "exit code 2" in job.stdout
    assert Store(f"s3://{s3.bucket}/run2").keys() == []
