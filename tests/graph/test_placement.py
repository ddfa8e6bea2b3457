"""Placement and streaming on a cluster of several nodes that declare cards, labelled as cluster.yaml labels them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.state import list_actors, list_nodes
from support import tiny_overrides, write_prompts

import flashvideo_ray
from flashvideo_ray import Settings
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.settings import SettingsError

PROMPTS = 12
LARGE, SMALL = 2, 2  # cards of a node, each for one actor


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    ray.shutdown()
    nodes = Cluster()
    nodes.add_node(num_cpus=4, labels={"gpu-tier": "none"}, include_dashboard=True, dashboard_port=0)
    nodes.add_node(num_cpus=2, num_gpus=LARGE, labels={"gpu-tier": "large"})
    nodes.add_node(num_cpus=4, num_gpus=SMALL, labels={"gpu-tier": "small"})
    ray.init(address=nodes.address, logging_level="warning")
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.mark.long
def test_each_pool_runs_on_its_cards_and_clips_come_while_previews_are_made(
    cluster: Cluster, tmp_path: Path, tiny_model: Path
) -> None:
    """Candidates of a prompt, made on several cards, are judged together."""
    prompts = write_prompts(tmp_path / "prompts.parquet", [f"a red circle moves left {n}" for n in range(PROMPTS)])
    settings = Settings.load(
        "flashvideo-1080p",
        [
            *tiny_overrides(tiny_model),
            *(f"{stage}.{name}=null" for stage in ("preview", "refine") for name in ("height", "width")),
            *(f"{stage}.num_inference_steps=null" for stage in ("preview", "refine")),
            *("text.dtype=float32", "preview.dtype=float32", "preview.vae_dtype=null", "refine.dtype=float32"),
            *("preview.num_frames=null", "select.require=[]", "preview.num_inference_steps=30"),
            *("candidates=2", "select.rank=motion", "select.keep=1"),
            *("pools.text.num_cpus=0.25", "pools.text.size=2", "pools.preview.num_cpus=0.5"),
            *("pools.score.size=1", "pools.refine.num_cpus=1", f"pools.refine.size={SMALL}"),
        ],
    )
    # These cards are declared only: none of them encodes, which is found out before anything is written.
    nvenc = settings.model_copy(update={"video": settings.video.model_copy(update={"codec": "h264_nvenc"})})
    with pytest.raises(SettingsError, match="h264_nvenc"):
        flashvideo_ray.render(prompts, str(tmp_path / "none"), nvenc)
    assert not (tmp_path / "none").exists()

    result = flashvideo_ray.render(prompts, str(tmp_path / "run"), settings)
    assert result.ended == {"rendered": PROMPTS, "rejected": PROMPTS}

    # Whatever other Rays there are on this machine, this one is asked.
    tier = {node.node_id: node.labels["gpu-tier"] for node in list_nodes(address=cluster.address, detail=True)}
    places: dict[str, list[str]] = defaultdict(list)
    for actor in list_actors(address=cluster.address, detail=True, limit=1000):
        if actor.node_id is not None:  # one that was never started, such as Ray Data's own helpers, is nowhere
            places[actor.class_name].append(tier[actor.node_id])
    assert places["MapWorker(MapBatches(Preview))"] == ["large"] * LARGE
    assert places["MapWorker(MapBatches(Refine))"] == ["small"] * SMALL
    assert places["MapWorker(MapBatches(EncodeTexts))"] == ["large"] * 2

    previews = tables.read(Store(str(tmp_path / "run")), "previews").to_pylist()
    clips = [row for row in tables.read(Store(str(tmp_path / "run")), "clips").to_pylist() if row["clip"] is not None]
    for clip in clips:
        motions = {row["clip_id"]: row["score_motion"] for row in previews if row["id"] == clip["id"]}
        assert (len(motions), max(motions, key=motions.__getitem__)) == (2, clip["clip_id"])
    first_clip = min((tmp_path / "run" / row["clip"]).stat().st_mtime for row in clips)
    made_later = sum((tmp_path / "run" / row["preview"]).stat().st_mtime > first_clip for row in previews)
    assert made_later > 0
    assert all(row["device"].startswith("cpu") for row in clips)
