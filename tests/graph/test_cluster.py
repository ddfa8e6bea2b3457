"""Where pools may run, and the cluster file that offers the places."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from jsonschema import Draft7Validator
from support import ROOT

from flashvideo_ray.graph import cluster
from flashvideo_ray.graph.shared_cards import units
from flashvideo_ray.settings import STAGES, Pool, Pools, Settings, Stage

CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ({}, True),
        ({"tier": "large"}, True),
        ({"tier": "small"}, False),
        ({"tier": "!small"}, True),
        ({"tier": "in(small, large)"}, True),
        ({"tier": "!in(small,large)"}, False),
        ({"zone": "a"}, False),
        ({"zone": "!a"}, True),
        ({"tier": "large", "zone": "a"}, False),
    ],
)
def test_label_selectors_read_as_ray_reads_them(selector: dict[str, str], matches: bool) -> None:
    assert cluster.matches(selector, {"tier": "large"}) is matches


@pytest.mark.parametrize(
    ("pool", "fits"),
    [
        (Pool(num_cpus=4, num_gpus=1), True),
        (Pool(num_cpus=5), False),
        (Pool(num_gpus=2), False),
        (Pool(resources={"disk": 1}), False),
        (Pool(labels={"tier": "small"}), False),
        (Pool(labels={"tier": "small"}, fallback=({"tier": "large"},)), True),
        (Pool(accelerator_type="H100"), True),
        (Pool(accelerator_type="L40S"), False),
        (Pool(memory_gib=2), False),
    ],
)
def test_what_fits_a_node(pool: Pool, fits: bool) -> None:
    node = {"CPU": 4.0, "GPU": 1.0, "memory": 2.0**30, "accelerator_type:H100": 1.0}
    assert cluster.fits(pool, node, {"tier": "large"}) is fits


def test_the_cluster_file_is_valid() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    assert [error.message for error in Draft7Validator(schema).iter_errors(CLUSTER)] == []


def test_the_cluster_file_has_a_place_for_every_pool_of_the_1080p_preset() -> None:
    pools = Settings.load("flashvideo-1080p").pools
    types: dict[str, Any] = CLUSTER["available_node_types"]
    for unit in units(pools, STAGES):
        places = [
            name for name, node in types.items() if cluster.fits(unit.pool, node["resources"], node["labels"])
        ]  # fmt: skip
        expected = {("refine",): ["small"], ("score",): ["head", "large"]}
        assert places == expected.get(unit.stages, ["large"])
    # As many cards as the pools take, or a job would wait for ever: text and rate take none of their own.
    assert {unit.stages[0] for unit in units(pools, STAGES)} == {"preview", "score", "refine"}
    assert types["large"]["max_workers"] >= pools.preview.size
    assert types["small"]["max_workers"] >= pools.refine.size
    assert "InstanceMarketOptions" in types["small"]["node_config"]
    assert "InstanceMarketOptions" not in types["large"]["node_config"]


def pools(preview: dict[str, Any], refine: dict[str, Any], **others: dict[str, Any]) -> Pools:
    stages = {"preview": preview, "refine": refine, **others}
    auto = {stage: {"num_gpus": 1, "num_cpus": 1, "size": "auto", **stages[stage]} for stage in ("preview", "refine")}
    return Pools.model_validate({**stages, **auto})


def node(cards: float, tier: str = "", cpus: float = 100) -> dict[str, Any]:
    return {"Resources": {"GPU": cards, "CPU": cpus}, "Labels": {"gpu-tier": tier}, "Alive": True}


SPLIT: tuple[Stage, ...] = ("preview", "refine")


@pytest.mark.parametrize(
    ("preview", "refine", "nodes", "room"),
    [
        ({}, {}, [node(2), node(1)], [3, 2, 1, 0]),
        # Cards of one tier are one stage's own, and nothing is divided.
        ({"labels": {"gpu-tier": "large"}}, {"labels": {"gpu-tier": "small"}}, [node(2, "large"), node(1, "small")],
         [1, 1, 1]),
        # What refine falls back on is divided: it has the small ones alone.
        ({"labels": {"gpu-tier": "large"}}, {"labels": {"gpu-tier": "small"}, "fallback": ({"gpu-tier": "large"},)},
         [node(2, "large"), node(1, "small")], [3, 2, 1]),
        # Own cards of each, and two for both.
        ({"labels": {"gpu-tier": "in(large,both)"}}, {"labels": {"gpu-tier": "in(small,both)"}},
         [node(1, "large"), node(2, "both"), node(3, "small")], [5, 5, 4, 3]),
        # Cards that are divided themselves, and CPUs that are scarcer than cards.
        ({"num_gpus": 0.5}, {}, [node(2)], [2, 1, 1, 0, 0]),
        ({"num_cpus": 3}, {"num_cpus": 2}, [node(4, cpus=7)], [3, 2, 0]),
        ({"resources": {"renderer": 1}}, {}, [node(2)], [2]),
    ],
)  # fmt: skip
def test_the_places_that_both_stages_have_together(
    preview: dict[str, Any], refine: dict[str, Any], nodes: list[dict[str, Any]], room: list[int]
) -> None:
    assert cluster.room(nodes, pools(preview, refine), SPLIT) == room


def test_the_other_pools_have_their_places_first() -> None:
    text = {"text": {"num_gpus": 0.25, "num_cpus": 1}}
    assert cluster.room([node(3)], pools({}, {}, **text), ("text", *SPLIT)) == [2, 1, 0]
    # Where neither of the two could be, if there is such a place.
    own = {"labels": {"gpu-tier": "large"}}
    assert cluster.room([node(2, "large"), node(1, "old")], pools(own, own, **text), ("text", *SPLIT)) == [2, 1, 0]
    # Beside an actor of preview there is a place, and that card is preview's as a whole.
    beside = {"text": {"num_gpus": 0.25, "num_cpus": 1, "beside": "preview"}}
    assert cluster.room([node(3)], pools({"num_gpus": 0.5}, {}, **beside), ("text", *SPLIT)) == [3, 2, 1, 0]
    # A stage that the work does not need has no place.
    assert cluster.room([node(3)], pools({}, {}), ("refine",)) == [3]
    assert cluster.room([node(3)], pools({}, {}), ("preview",)) == [0, 0, 0, 0]


def test_a_thousand_nodes_of_eight_cards_are_counted_in_a_moment() -> None:
    assert cluster.room([node(8)] * 1000, pools({}, {}), SPLIT)[5000] == 3000


def test_a_ray_that_does_not_come_up_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    late = Exception(
        "The current node timed out during startup. This could happen because the GCS has become overloaded."
    )
    ends: list[Exception | None] = [late, None]
    started: list[int] = []

    def init(*, num_cpus: int, **options: Any) -> None:
        started.append(num_cpus)
        if (end := ends.pop(0)) is not None:
            raise end

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    cluster.start_ray(3)
    assert started == [3, 3]
    # What will not be otherwise the next time is told at once, and so is what never comes up.
    for ends, tries in (([ValueError("no such option")], 1), ([late] * 3, 3)):
        started.clear()
        with pytest.raises(type(ends[0])):
            cluster.start_ray(3)
        assert len(started) == tries


USES_50_MB_OFTEN = """
import resource, threading
def work():
    for _ in range(20):
        b"x" * 50_000_000
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is glibc that is told")
def test_an_actor_on_a_cpu_takes_again_the_memory_that_it_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES")
    own = cluster.placement(Pool())["runtime_env"]["env_vars"]
    plain, told = (
        int(subprocess.check_output([sys.executable, "-c", USES_50_MB_OFTEN], env={**os.environ, **more}))
        for more in ({}, own)
    )
    assert told < plain / 4, "pages that the kernel had to clear"


def test_an_actor_on_a_card_joins_the_memory_that_it_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    own = cluster.placement(Pool(num_gpus=0.5))["runtime_env"]["env_vars"]
    assert own == {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


@pytest.mark.parametrize(
    ("pool", "name", "value"),
    [
        (Pool(), "GLIBC_TUNABLES", "glibc.malloc.check=0"),
        (Pool(num_gpus=1), "PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512"),
        (Pool(num_gpus=1), "PYTORCH_ALLOC_CONF", "max_split_size_mb:512"),
    ],
)
def test_what_a_cluster_is_told_of_memory_is_left_as_it_is(
    pool: Pool, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("GLIBC_TUNABLES", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.delenv(each, raising=False)
    assert "runtime_env" in cluster.placement(pool)
    monkeypatch.setenv(name, value)
    assert "runtime_env" not in cluster.placement(pool)
