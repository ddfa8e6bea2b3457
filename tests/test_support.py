"""The servers that tests start: seen when they die, started again, on ports that nobody else takes."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import S3, TESTS, ServerError, free_ports, serve_s3


@contextmanager
def taken() -> Iterator[list[int]]:
    """Ten ports, at one of which somebody listens."""
    ports = free_ports(10)
    with socket.create_server(("127.0.0.1", ports[6])):
        yield ports


def test_a_server_that_dies_is_seen_at_once(tmp_path: Path) -> None:
    with taken() as ports:
        server = S3(tmp_path, ports)
        server.start()
        started = time.monotonic()
        with pytest.raises(ServerError, match=f"port {ports[6]}"):
            server.wait(seconds=600)
        assert time.monotonic() - started < 60


def test_a_server_whose_port_is_taken_is_started_on_others(tmp_path: Path) -> None:
    with taken() as ports:
        first = iter([ports])
        with serve_s3(tmp_path, lambda count: next(first, None) or free_ports(count)) as server:
            assert server.endpoint != f"http://127.0.0.1:{ports[6]}"
            server.wait()


def test_processes_side_by_side_have_ports_of_their_own_that_no_client_is_given() -> None:
    mine = free_ports(10)
    command = [sys.executable, "-c", "import support; print(*support.free_ports(10))"]
    other = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=True)
    theirs = [int(port) for port in other.stdout.split()]
    assert len({*mine, *theirs}) == 20
    assert {port // 100 for port in mine}.isdisjoint(port // 100 for port in theirs)
    first_of_the_kernel = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(*mine, *theirs) < first_of_the_kernel
