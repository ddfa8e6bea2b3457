"""Cards that two pools share: on nodes with any number of them, each has one actor of each pool."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from flashvideo_ray.graph import cluster, datasets
from flashvideo_ray.graph.shared_cards import SharedCards, units
from flashvideo_ray.settings import Pools, Settings, SettingsError, Stage

BOTH: tuple[Stage, ...] = ("preview", "refine")


def pools(*overrides: str) -> Pools:
    return Settings.load("flashvideo-1080p-80gb", overrides).pools


def sizes(cards: int) -> list[str]:
    return [f"pools.{stage}.size={cards}" for stage in BOTH]


@pytest.mark.parametrize("cards", [1, 4, 8])
@pytest.mark.parametrize("nodes", [1, 3])
def test_the_preset_fills_nodes_of_one_of_four_and_of_eight_cards(cards: int, nodes: int) -> None:
    """Neither pool has a place too many or too few, and a CPU node takes text and scores."""
    machines = [{"Resources": {"GPU": float(cards), "CPU": 6.0 * cards}, "Labels": {}} for _ in range(nodes)] + [
        {"Resources": {"CPU": 32.0}, "Labels": {}}
    ]
    stages: tuple[Stage, ...] = ("text", "preview", "score", "refine")
    assert cluster.misplaced_on(machines, pools(*sizes(nodes * cards)), stages) == []
    [problem] = cluster.misplaced_on(machines, pools(*sizes(nodes * cards + 1)), stages)
    assert problem.startswith(f"pools.preview with pools.refine asks for {nodes * cards + 1} times 6 CPU, 1 GPU")


def test_a_pool_beside_another_may_be_smaller_and_takes_no_card_where_it_is_not_needed() -> None:
    shared = pools("pools.refine.size=2")
    found = [(unit.stages, unit.pool.size, unit.pool.num_gpus) for unit in units(shared, BOTH)]
    assert found == [(("preview", "refine"), 2, 1), (("preview",), 2, 1)]
    [alone] = units(shared, ["preview"])  # without stage 2 there are still no two previews on a card
    assert (alone.pool.size, alone.pool.num_gpus) == (4, 1)


def test_a_pool_beside_one_that_a_job_does_not_need_has_its_cards_all_the_same() -> None:
    """As for `refine OUTPUT`, which makes no previews: no two actors on a card, none on a card of another pool."""
    large = {"gpu-tier": "large"}
    alone = units(pools("pools.preview.labels={gpu-tier: large}"), ["refine"])
    assert [(unit.stages, unit.pool.size, unit.pool.num_gpus) for unit in alone] == [(("refine",), 4, 1)]
    assert (alone[0].pool.labels, alone[0].shares) == (large, True)
    text, refine = units(Settings.load("flashvideo-1080p").pools, ["text", "refine"])
    assert (text.stages, text.pool.size, text.pool.num_gpus, text.pool.labels) == (("text",), 1, 1, large)
    assert (refine.stages, refine.pool.size, refine.shares) == (("refine",), 4, False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pools.refine.beside=refine", "refine.beside: refine has no card of its own"),
        ("pools.refine.size=5", "preview has 4 actors, too few for 5 beside them"),
        ("pools.refine.num_gpus=0.6", r"must ask for shares of one card, found num_gpus 0\.5 \+ 0\.6"),
        ("pools.refine.labels={a: b}", "its nodes are those of preview"),
        ("pools.preview.num_gpus=0", "must ask for shares of one card"),
    ],
)
def test_what_cannot_share_a_card_is_refused(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        pools(override)


@pytest.fixture
def two_nodes() -> Iterator[Cluster]:
    """One with one card, one with three: both declared."""
    ray.shutdown()
    nodes = Cluster()
    nodes.add_node(num_cpus=1, num_gpus=1)
    nodes.add_node(num_cpus=3, num_gpus=3)
    ray.init(address=nodes.address, logging_level="warning")
    yield nodes
    ray.shutdown()
    nodes.shutdown()


class Actor:
    def card(self) -> tuple[str, str]:
        context = ray.get_runtime_context()
        [card] = context.get_accelerator_ids()["GPU"]
        return context.get_node_id(), card


def test_each_card_of_a_cluster_has_one_actor_of_each_pool(two_nodes: Cluster) -> None:
    shared = pools(*sizes(4), *(f"pools.{stage}.num_cpus=0.25" for stage in BOTH))
    with SharedCards(shared, BOTH, cluster.needs) as cards:
        found: dict[str, Any] = {}
        for stage in reversed(BOTH):  # whichever comes first
            place = cards.next_of(stage)
            assert place is not None
            options = datasets.map_options(getattr(shared, stage), cards=place)
            asked = {name: options[name] for name in ("num_cpus", "num_gpus")}
            actors = [ray.remote(Actor).options(**asked, **options["ray_remote_args_fn"]()).remote() for _ in range(4)]
            found[stage] = (actors, ray.get([actor.card.remote() for actor in actors]))
        assert sorted(found["preview"][1]) == sorted(found["refine"][1])
        assert len({*found["preview"][1]}) == 4
    assert not [group for group in ray.util.placement_group_table().values() if group["state"] == "CREATED"]
