"""A pool that has no place: what a job says while it waits for one, and when it stops."""

from __future__ import annotations

from collections.abc import Sequence

from flashvideo_ray import Settings
from flashvideo_ray.graph.placement import Placement
from flashvideo_ray.settings import Pools, Stage


class Cluster:
    """One on which stage 2 has no place until a node joins, and the time there."""

    def __init__(self) -> None:
        self.now = 0.0
        self.room = False

    def misplaced(self, pools: Pools, stages: Sequence[Stage]) -> list[str]:
        return [] if self.room else ["pools.refine asks for 1 GPU; there is room for 0"]

    def wait(self, placement: Placement, seconds: int, refine: int = 0) -> list[str]:
        told = []
        for _ in range(seconds):
            self.now += 1
            told.append(placement.look({"preview": 1, "refine": refine}))
        return [text for text in told if text is not None]


def placement(cluster: Cluster, patience: float | None) -> Placement:
    return Placement(Settings().pools, patience, cluster.misplaced, lambda: cluster.now)


def test_a_pool_without_a_place_is_told_of_each_minute_with_what_others_hold() -> None:
    cluster = Cluster()
    told = cluster.wait(placement(cluster, None), 200)
    assert len(told) == 3
    assert all("pools.refine asks for 1 GPU" in text and "preview 1 times 1 CPU" in text for text in told)


def test_nothing_is_said_once_a_node_has_joined() -> None:
    cluster = Cluster()
    waiting = placement(cluster, 600)
    assert cluster.wait(waiting, 70)
    cluster.room = True
    assert cluster.wait(waiting, 1000) == []
    assert waiting.over is None


def test_a_job_waits_for_a_place_as_long_as_its_patience_and_without_a_limit_for_ever() -> None:
    cluster = Cluster()
    patient, endless = placement(cluster, 90), placement(cluster, None)
    cluster.wait(patient, 80)
    assert patient.over is None
    cluster.wait(patient, 20)
    assert patient.over is not None
    cluster.wait(endless, 10_000)
    assert endless.over is None


def test_actors_whose_node_has_gone_are_waited_for_like_those_that_never_came() -> None:
    cluster = Cluster()
    waiting = placement(cluster, 300)
    assert cluster.wait(waiting, 100, refine=1) == []  # not asked: all are at work
    told = cluster.wait(waiting, 100, refine=0)
    assert [text.partition(";")[0] for text in told] == ["pools.refine asks for 1 GPU"]
    assert waiting.seconds > 90
    cluster.room = True
    assert cluster.wait(waiting, 100, refine=1) == []
    assert (waiting.seconds, waiting.over) == (0.0, None)
    cluster.room = False
    cluster.wait(waiting, 320, refine=0)
    assert waiting.over is not None
