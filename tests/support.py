"""What tests share: prompts, settings for the tiny model, an S3 server, a Ray head."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent  # of the repository
_STARTS = 3  # of a server, on other ports each time

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


class ServerError(RuntimeError):
    """A server that tests need does not come up: it has died, or takes too long. The message ends with its log."""


class S3:
    """A SeaweedFS server with one bucket, on ten ports, which can be killed and started again at the same address."""

    bucket = "renders"

    def __init__(self, folder: Path, ports: Sequence[int] | None = None):
        identity = {
            "name": "tests",
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
            "credentials": [{"accessKey": "key", "secretKey": "secret"}],
        }
        folder.mkdir(parents=True, exist_ok=True)
        self._keys = folder / "s3.json"
        self._keys.write_text(json.dumps({"identities": [identity]}))
        services = ("master", "volume", "filer", "s3", "admin")
        ports = ports or free_ports(2 * len(services))
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

    def denied(self) -> AbstractContextManager[None]:
        """While this lasts, the keys are wrong: every request is answered 403."""
        return self._keys_changed('"secret"', '"another"')

    def read_only(self) -> AbstractContextManager[None]:
        """While this lasts, the keys may look at everything, and write nothing."""
        return self._keys_changed('"Admin", "Read", "List", "Tagging", "Write"', '"Read", "List"')

    @contextmanager
    def _keys_changed(self, old: str, new: str) -> Iterator[None]:
        right = self._keys.read_text()
        self._keys.write_text(right.replace(old, new))
        self.process.send_signal(signal.SIGHUP)  # it reads its keys again
        try:
            yield
        finally:
            self._keys.write_text(right)
            self.process.send_signal(signal.SIGHUP)

    def wait(self, seconds: float = 60.0) -> None:
        """Until it takes a put. Raises ServerError as soon as it has died."""
        import requests
        import s3fs

        store: dict[str, Any] = {"key": "key", "secret": "secret", "endpoint_url": self.endpoint}
        store["config_kwargs"] = {"connect_timeout": 5, "read_timeout": 5, "retries": {"max_attempts": 1}}
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerError(f"the S3 server ended with {self.process.returncode}: {self._told()}")
            try:
                # Whoever else listens there may never answer: the put comes after an answer.
                requests.get(self.endpoint, timeout=2)
                s3fs.S3FileSystem(skip_instance_cache=True, **store).pipe_file(f"{self.bucket}/ready", b"yes")
                return
            except Exception:
                time.sleep(0.2)
        raise ServerError(f"the S3 server took no put for {seconds:g} s: {self._told()}")

    def _told(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]


# Ports for servers: above what Ray gives its workers (10002 to 19999), below what the kernel gives to clients (from
# 32768). Each process that asks holds a range of its own, whoever else tests on this machine.
_FIRST_PORT, _RANGE, _RANGES = 20_000, 100, 120
_own: dict[str, Any] = {}  # the range of this process, and the lock on it


class Link:
    """The network between a job and a server on this machine: it can be cut, and mended."""

    def __init__(self, port: int):
        self._port = port
        self._open: set[socket.socket] = set()
        self._cut = False
        self.passed = 0  # connections that were let through
        self._listener = socket.create_server(("127.0.0.1", free_ports(1)[0]))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections, and let nobody through."""
        self._cut = True
        for each in list(self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._cut = False

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            if self._cut:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                near.close()
                continue
            self._open |= {near, far}
            self.passed += 1
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(2**16):
                sink.sendall(piece)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            self._open.discard(each)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, from a range that no other process of these tests has."""
    if _own.get("pid") != os.getpid():
        first, lock = _claim_range()
        _own.update(pid=os.getpid(), lock=lock, ports=itertools.cycle(range(first, first + _RANGE)))
    free = (port for port in itertools.islice(_own["ports"], _RANGE) if _is_free(port))
    found = list(itertools.islice(free, count))
    if len(found) < count:
        raise ServerError(f"{len(found)} of {_RANGE} ports are free, not {count}")
    return found


def _claim_range() -> tuple[int, Any]:
    for number in range(_RANGES):
        lock = open(Path(tempfile.gettempdir()) / f"flashvideo-ray-tests-ports-{number}.lock", "a")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        return _FIRST_PORT + number * _RANGE, lock
    raise ServerError("all ranges of ports are held by other processes")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: what lingers is no obstacle
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def children(title: str, of: int | None = None) -> list[psutil.Process]:
    """The processes with these words in their title that a process started, this one by default."""
    found = []
    for each in psutil.Process(of).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if title in " ".join(each.cmdline()):
                found.append(each)
    return found


def script(name: str) -> str:
    """A console script of this environment, whether or not it is on PATH."""
    return str(Path(sys.executable).parent / name)


class Days:
    """Time that passes only in pauses."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def at_a_terminal(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a command as a shell does at a terminal: it and all that it starts are a group, for which Ctrl-C is meant.

    What a script starts in the background ignores Ctrl-C, and so does all that it starts: this one does not.
    """
    heeds = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, process_group=0, preexec_fn=heeds, **options)


def ctrl_c(job: subprocess.Popen[bytes]) -> None:
    """What the terminal sends, to the command and to all that it started."""
    os.killpg(job.pid, signal.SIGINT)


@contextmanager
def serve_s3(folder: Path, ports: Callable[[int], list[int]] = free_ports) -> Iterator[S3]:
    """Run an S3 server; its address and keys are in the environment while it runs.

    One that does not come up (a port of its own may be taken by then) is started again on others.
    """
    server = _started_s3(folder, ports)
    before = {name: os.environ.get(name) for name in server.env}
    os.environ.update(server.env)
    try:
        yield server
    finally:
        server.kill()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _started_s3(folder: Path, ports: Callable[[int], list[int]]) -> S3:
    for number in range(_STARTS):
        server = S3(folder / str(number), ports(10))
        server.start()
        try:
            server.wait()
            return server
        except ServerError:
            server.kill()
            if number == _STARTS - 1:
                raise
    raise AssertionError


@contextmanager
def own_ray(**options: Any) -> Iterator[None]:
    """A Ray of this machine for one test, in place of the one that tests share."""
    import ray

    from flashvideo_ray.graph.cluster import start_ray

    ray.shutdown()
    start_ray(**{"num_cpus": 2, **options})
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def serve_head(folder: Path, env: Mapping[str, str], *options: str) -> Iterator[dict[str, str]]:
    """Run a Ray head with a dashboard, as `ray start --head` and the options make it; gives its clients' environment.

    A head that does not come up is started again on other ports.
    """
    for number in range(_STARTS):
        port, dashboard, client, agent = free_ports(4)
        theirs = {**env, "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        command = [
            script("ray"), "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats", *options,
        ]  # fmt: skip
        log = folder / f"head-{number}.log"
        with open(log, "wb") as file:
            own = {**env, "RAY_ADDRESS": f"127.0.0.1:{port}"}
            # A user's head starts its workers beforehand, and has none of the settings that spare these tests time.
            for name in ("RAY_prestart_worker_first_driver", "GLIBC_TUNABLES", "OMP_NUM_THREADS"):
                own.pop(name, None)
            head = subprocess.Popen(command, stdout=file, stderr=file, cwd=folder, env=own)
        try:
            if not _comes_up(head, theirs, dashboard):
                if number < _STARTS - 1:
                    continue
                raise ServerError(f"the Ray head ended with {head.poll()} or is silent: {log.read_text()[-2000:]}")
            yield theirs
            return
        finally:
            _end(head)


def _comes_up(head: subprocess.Popen[bytes], env: Mapping[str, str], dashboard: int) -> bool:
    """Asks what `ray job list` asks, which imports Ray each time."""
    import requests

    token = {"Authorization": f"Bearer {env['RAY_AUTH_TOKEN']}"} if "RAY_AUTH_TOKEN" in env else {}
    deadline = time.monotonic() + 120
    while head.poll() is None and time.monotonic() < deadline:
        with suppress(requests.RequestException):
            answer = requests.get(f"http://127.0.0.1:{dashboard}/api/jobs/", headers=token, timeout=30)
            if answer.status_code == 401:  # where a local Ray of this user has left a token, every later one wants it
                raise ServerError("the Ray head wants a token: its environment needs RAY_AUTH_TOKEN")
            if answer.ok:
                return True
        time.sleep(0.2)
    return False


def _end(head: subprocess.Popen[bytes]) -> None:
    """The head and all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(head.pid).children(recursive=True)
        head.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(3)
        for each in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    head.kill()
    head.wait()


def submit(env: Mapping[str, str], *words: str, seconds: float = 280.0) -> subprocess.CompletedProcess[str]:
    """`ray job submit` from the repository, until there is an agent to take the job.

    The dashboard answers before its agent does; until then a submission is refused with status 500.
    """
    deadline = time.monotonic() + seconds
    command = [script("ray"), "job", "submit", "--working-dir", ".", "--", *words]
    while True:
        left = deadline - time.monotonic()
        job = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=left)
        if job.returncode == 0 or "No available agent" not in job.stdout + job.stderr:
            return job
        time.sleep(1)


def short_lease(seconds: float) -> list[str]:
    """Settings for a lease of a few seconds, and a patience in the defaults' proportion to it."""
    from flashvideo_ray import Settings

    defaults = Settings()
    patience = seconds * defaults.store_patience_seconds / defaults.ledger.lease_seconds
    return [f"ledger.lease_seconds={seconds}", f"store_patience_seconds={patience}"]


def boxes(data: bytes) -> list[str]:
    """The top-level boxes of an MP4, in order."""
    names, at = [], 0
    while at < len(data):
        names.append(data[at + 4 : at + 8].decode())
        at += int.from_bytes(data[at : at + 4], "big")
    return names
