"""What tests share: prompts, settings for the tiny model, an S3 server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent  # of the repository

PROMPTS = [
    "a red circle moves slowly left over the grey sand",
    "a blue square moves right over the water",
    "a green star moves up on the sand",
    "the red square moves down",
    "a blue circle on the grey water",
    "a green circle moves slowly right",
]


def write_prompts(path: Path, prompts: list[str] | None = None, **columns: list[Any]) -> str:
    """A Parquet file with a `prompt` column and others."""
    table = pa.table({"prompt": PROMPTS if prompts is None else prompts, **columns})
    pq.write_table(table, path)
    return str(path)


def tiny_overrides(model: Path) -> list[str]:
    """Settings that make a run use a model folder and little of this machine: a second refine actor takes seconds."""
    return [f"preview.model={model}", f"refine.model={model}", "pools.refine.size=1", "ledger.flush_seconds=0.5"]


class S3:
    """A SeaweedFS server with one bucket, which can be killed and started again."""

    bucket = "renders"

    def __init__(self, folder: Path):
        identity = {
            "name": "tests",
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
            "credentials": [{"accessKey": "key", "secretKey": "secret"}],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        services = ("master", "volume", "filer", "s3", "admin")
        ports = free_ports(2 * len(services))
        options = [
            option
            for service, port, grpc in zip(services, ports[::2], ports[1::2], strict=True)
            for option in (f"-{service}.port={port}", f"-{service}.port.grpc={grpc}")
        ]
        self._command = [
            script("weed"), "-logtostderr=true", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            "-webdav=false", "-admin.ui=false", "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
            f"-s3.config={folder / 's3.json'}", f"-bucket={self.bucket}", *options,
        ]  # fmt: skip
        self._log = folder / "weed.log"
        self.endpoint = f"http://127.0.0.1:{ports[6]}"
        self.process: subprocess.Popen[bytes]

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def wait(self) -> None:
        """Until it takes a put; its address and keys are in the environment."""
        import s3fs

        for _ in range(120):
            try:
                s3fs.S3FileSystem(skip_instance_cache=True).pipe_file(f"{self.bucket}/ready", b"yes")
                return
            except Exception:
                time.sleep(0.5)
        raise RuntimeError(f"the S3 server did not come up: {self._log.read_text()[-2000:]}")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def script(name: str) -> str:
    """A console script of this environment, whether or not it is on PATH."""
    return str(Path(sys.executable).parent / name)


@contextmanager
def serve_s3(folder: Path) -> Iterator[S3]:
    """Run an S3 server; its address and keys are in the environment while it runs."""
    server = S3(folder)
    before = {name: os.environ.get(name) for name in server.env}
    os.environ.update(server.env)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
