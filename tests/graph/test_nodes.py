"""A node that breaks while others work."""

from __future__ import annotations

import json
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
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.store import Store

RENDERER = {"renderer": 1}  # one actor of stage 2 on each node


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A head for the other pools, and two nodes for stage 2, one of which breaks at its first clip."""
    ray.shutdown()
    nodes = Cluster()
    nodes.add_node(num_cpus=2, include_dashboard=False)
    nodes.sound = nodes.add_node(num_cpus=1, resources=RENDERER)
    nodes.add_node(num_cpus=1, resources=RENDERER, env_vars={"BROKEN_BY": str(tmp_path / "broken")})
    ray.init(address=nodes.address, logging_level="warning", runtime_env={"worker_process_setup_hook": "faulty.known"})
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def test_a_node_that_breaks_is_left_out_and_without_another_the_job_ends_with_its_name(
    cluster: Cluster, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "model", [("refine", "nan", "a blue star")])  # which is no prompt of these
    prompts = write_prompts(tmp_path / "prompts.parquet", PROMPTS)
    overrides = [*tiny_overrides(model), "pools.refine.size=2", "pools.refine.resources={renderer: 1}"]
    with stages_inline():
        flashvideo_ray.preview(prompts, str(tmp_path / "run"), Settings.load("nano", overrides))
    result = flashvideo_ray.refine(str(tmp_path / "run"))
    assert result.ended == {"rendered": len(PROMPTS)}
    assert (tmp_path / "broken").exists()
    assert [fault.stage for fault in result.left_out] == ["refine"]
    assert "the card has fallen off the bus" in result.left_out[0].cause
    [told] = json.loads((tmp_path / "run" / "summary.json").read_text())["troubles"]
    assert str(result.left_out[0]) in told

    cluster.remove_node(cluster.sound)
    with pytest.raises(JobError, match=r"refine on .*: OSError: the card has fallen off the bus"):
        flashvideo_ray.render(prompts, str(tmp_path / "other"), Settings.load("nano", [*overrides, "seed=1"]))
    assert tables.read(Store(str(tmp_path / "other")), "previews").num_rows == len(PROMPTS)
