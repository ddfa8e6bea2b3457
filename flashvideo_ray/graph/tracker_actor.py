"""The actor that a run's tracker lives in."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flashvideo_ray.graph.tracker import Tracker
from flashvideo_ray.ledger.store import Store

_WRITING = "writing"  # its thread that writes the ledger: stages wait for its answers, and not for the store


def start_tracker(store: Store, *arguments: Any) -> Any:
    """The actor of a Tracker: on this node, which the run cannot outlive anyway, and without a CPU."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote  # its types do not know groups
    actor = remote(num_cpus=0, concurrency_groups={_WRITING: 1}, scheduling_strategy=here)(Tracker)
    return actor.remote(store, *arguments)


def writing(method: Any) -> Any:
    """A method of the tracker's actor, to be run beside those that answer."""
    return method.options(concurrency_group=_WRITING)
