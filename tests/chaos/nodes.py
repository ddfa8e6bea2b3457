"""A Ray cluster of several raylets on this machine, and the processes in it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import psutil
from ray._private import ray_constants
from ray.cluster_utils import Cluster

from flashvideo_ray.settings import Stage

_ACTORS: dict[Stage, str] = {"text": "EncodeTexts", "preview": "Preview", "score": "Score", "refine": "Refine"}
_CPUS = 4  # of a node: the pools of `settings` fit on the head and one other
REFINES = "refines"  # what a refine actor takes one of
_STARTS = 5  # of a node: Ray gives it 30 s, and the machine may be busy


class Nodes:
    """A head, on which drivers live, and nodes that may go."""

    def __init__(self, others: int) -> None:
        # A node that is gone is noticed after 5 s.
        health = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000}
        self._cluster = Cluster()
        self._add(include_dashboard=False, _system_config=health)
        self._labels: dict[str, dict[str, str]] = {}  # by node id
        self._others: list[Any] = []
        for _ in range(others):
            self.join()

    @property
    def address(self) -> str:
        return self._cluster.address

    def join(self, labels: Mapping[str, str] | None = None) -> None:
        """One more node that may go. It has room for all that refines, and gets half of it where there are two."""
        node = self._add(labels=dict(labels or {}), resources={REFINES: 2})
        self._labels[node.node_id] = dict(labels or {})
        self._others.append(node)

    def _add(self, **options: Any) -> Any:
        for left in reversed(range(_STARTS)):
            try:
                return self._cluster.add_node(num_cpus=_CPUS, **options)
            except Exception as error:  # a plain one is what Ray raises
                if not left or "timed out during startup" not in str(error):
                    raise

    def workers(self, stage: Stage | None = None, node_id: str | None = None) -> list[int]:
        """The processes of a stage's pool, or of all; on one node, or on all."""
        title = f"MapBatches({_ACTORS[stage]})" if stage else "MapBatches("
        nodes = [node for node in [self._cluster.head_node, *self._others] if node_id in (None, node.node_id)]
        return [pid for node in nodes for pid in _children(node, title)]

    def some_of(self, stage: Stage) -> str | None:
        """A node that has some of a stage's workers, but not all."""
        counts = {node.node_id: len(self.workers(stage, node.node_id)) for node in self._others}
        everywhere = len(self.workers(stage))
        return next((node_id for node_id, count in counts.items() if 0 < count < everywhere), None)

    def kill_one(self, number: int) -> list[int]:
        """SIGKILL one of the nodes that may go, the raylet and its workers, and start another one with its labels.

        Returns which processes that were.
        """
        node = self._others.pop(number % len(self._others))
        raylet = psutil.Process(_raylet(node))
        doomed = [raylet, *raylet.children(recursive=True)]
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._cluster.remove_node(node, allow_graceful=False)
        self.join(self._labels[node.node_id])
        return [process.pid for process in doomed]

    def shutdown(self) -> None:
        self._cluster.shutdown()


@contextlib.contextmanager
def serve_ray(others: int) -> Iterator[Nodes]:
    """Run a cluster; drivers that are started meanwhile use it, and need not be told."""
    before = os.environ.get("RAY_ADDRESS")
    nodes = Nodes(others)
    os.environ["RAY_ADDRESS"] = nodes.address
    try:
        yield nodes
    finally:
        nodes.shutdown()
        os.environ.pop("RAY_ADDRESS") if before is None else os.environ.update(RAY_ADDRESS=before)


def wait_until_gone(pids: list[int], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)


def _raylet(node: object) -> int:
    return node.all_processes[ray_constants.PROCESS_TYPE_RAYLET][0].process.pid  # type: ignore[attr-defined]


def _children(node: object, title: str) -> list[int]:
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(_raylet(node)).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if title in " ".join(process.cmdline()[:1]) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
    return found
