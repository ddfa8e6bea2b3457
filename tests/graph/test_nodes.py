"""Nodes that break, or fail whatever they get, while another works."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from inline import stages_inline
from ray.cluster_utils import Cluster
from support import PROMPTS, tiny_overrides, write_prompts
from tiny import save_model

import flashvideo_ray
from flashvideo_ray import Settings
from flashvideo_ray.errors import JobError
from flashvideo_ray.graph.quota import Quota
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.store import Store

RENDERER = {"renderer": 1}  # one actor of stage 2 on each node
ALIKE = 2


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A head for the other pools, and three nodes for stage 2.

    One breaks at its first clip, one fails all it gets, and the sound one is slower than both.
    """
    ray.shutdown()
    nodes = Cluster()
    nodes.add_node(num_cpus=2, include_dashboard=False)
    struck = os.pathsep.join(str(tmp_path / name) for name in ("broken", *(f"failed-{n}" for n in range(ALIKE))))
    nodes.sound = nodes.add_node(num_cpus=1, resources=RENDERER, env_vars={"PATIENT": struck})
    nodes.broken = nodes.add_node(num_cpus=1, resources=RENDERER, env_vars={"BROKEN_BY": str(tmp_path / "broken")})
    nodes.add_node(num_cpus=1, resources=RENDERER, env_vars={"FAILING": str(tmp_path)})
    ray.init(address=nodes.address, logging_level="warning", runtime_env={"worker_process_setup_hook": "faulty.known"})
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.mark.long
def test_bad_nodes_are_left_out_and_without_a_sound_one_the_job_ends_for_a_reason(
    cluster: Cluster, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "model", [("refine", "nan", "a blue star")])  # which is no prompt of these
    texts = [*PROMPTS, *(f"{prompt} slowly" for prompt in PROMPTS)]
    prompts = write_prompts(tmp_path / "prompts.parquet", texts)
    overrides = [*tiny_overrides(model), "pools.refine.size=3", "pools.refine.resources={renderer: 1}"]
    overrides.append(f"max_equal_failures={ALIKE}")
    settings, other = Settings.load("nano", overrides), Settings.load("nano", [*overrides, "seed=1"])
    with stages_inline():
        flashvideo_ray.preview(prompts, str(tmp_path / "run"), settings)
        flashvideo_ray.preview(prompts, str(tmp_path / "other"), other)
    result = flashvideo_ray.render(prompts, str(tmp_path / "run"), settings)
    assert result.ended == result.total == {"rendered": len(texts)}  # what the bad ones failed was tried elsewhere
    causes = {fault.cause.partition(": ")[2]: fault for fault in result.left_out}
    assert {fault.stage for fault in result.left_out} == {"refine"}
    assert {*causes} == {"the card has fallen off the bus", "an illegal memory access was encountered"}
    [told] = json.loads((tmp_path / "run" / "summary.json").read_text())["troubles"]
    assert all(str(fault) in told for fault in result.left_out)

    # Nobody but the one that fails all it gets, and the one that is broken: both are left out, and named; all is open.
    cluster.remove_node(cluster.sound)
    with pytest.raises(JobError, match=r"(?s)an illegal memory access.*OSError: the card has fallen off the bus"):
        flashvideo_ray.render(prompts, str(tmp_path / "other"), other)
    store = Store(str(tmp_path / "other"))
    assert tables.read(store, "clips").num_rows == 0

    # Nobody else at all: the stage is stopped, the rest stays open.
    cluster.remove_node(cluster.broken)
    result = flashvideo_ray.render(prompts, str(tmp_path / "other"), other)
    assert result.stopped is not None
    assert "an illegal memory access was encountered" in result.stopped.cause
    lost = result.ended["failed"]
    assert (result.exit_status, {*result.ended}) == (3, {"failed"})
    assert ALIKE <= lost <= ALIKE + 1  # a call may have begun beside the last one
    assert (tables.read(store, "previews").num_rows, tables.read(store, "clips").num_rows) == (len(texts), lost)


@pytest.mark.long
def test_a_job_that_has_enough_ends_though_a_node_has_gone_with_its_call(tmp_path: Path) -> None:
    """A spot machine is taken back while it makes a clip, and no other comes; then the budget is spent."""
    ray.shutdown()
    nodes = Cluster()
    nodes.add_node(num_cpus=2, resources={"head": 1}, include_dashboard=False)
    begun, never = tmp_path / "begun", tmp_path / "never"
    env = {"BEGUN": str(begun), "PATIENT": str(never)}
    spot = nodes.add_node(num_cpus=1, resources=RENDERER, env_vars=env)
    ray.init(address=nodes.address, logging_level="warning", runtime_env={"worker_process_setup_hook": "faulty.known"})
    model = save_model(tmp_path / "model", [("refine", "nan", "a blue star")])  # which is no prompt of these
    prompts = write_prompts(tmp_path / "prompts.parquet", PROMPTS)
    places = ["pools.text.resources={head: 1}", "pools.refine.resources={renderer: 1}"]
    settings = Settings.load("nano", [*tiny_overrides(model), *places])
    with stages_inline():
        flashvideo_ray.preview(prompts, str(tmp_path / "run"), settings)

    def take_back() -> None:
        while not begun.exists():
            time.sleep(0.5)
        nodes.remove_node(spot, allow_graceful=False)

    taking = threading.Thread(target=take_back)
    taking.start()
    result = flashvideo_ray.render(prompts, str(tmp_path / "run"), settings, quota=Quota(hours=50 / 3600, unit="cpu"))
    taking.join()
    assert result.ended == {"skipped": len(PROMPTS)}
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0 < summary["pools"]["refine"]["held_seconds"] < summary["pools"]["text"]["held_seconds"] - 20
    ray.shutdown()
    nodes.shutdown()
