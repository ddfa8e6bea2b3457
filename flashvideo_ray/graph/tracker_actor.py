"""The actor that a run's tracker lives in."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import ActorDiedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flashvideo_ray.graph.tracker import Tracker
from flashvideo_ray.ledger.store import Store

_WRITING = "writing"  # its thread that writes the ledger: stages wait for its answers, and not for the store
_PROMPT_SECONDS = 0.1
_ROUND_OVER = "killed by `ray.kill`"  # as only its round does, at the end; Ray has no better mark in the error


def start_tracker(store: Store, *arguments: Any) -> Any:
    """The actor of a Tracker: on this node, which the run cannot outlive anyway, and without a CPU."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote  # its types do not know groups
    actor = remote(num_cpus=0, concurrency_groups={_WRITING: 1}, scheduling_strategy=here)(Tracker)
    return actor.remote(store, *arguments)


def writing(method: Any) -> Any:
    """A method of the tracker's actor, to be run beside those that answer."""
    return method.options(concurrency_group=_WRITING)


def computing(actor: Any) -> set[str]:
    """Its `computing`, for Ray Data's scheduler, which waits for no answer long. Raises RayError."""
    return ray.get(actor.computing.remote(), timeout=_PROMPT_SECONDS)


def answer(asked: Any) -> Any:
    """What the tracker answers to a call of `asked`. An actor that asks when its round is over leaves, without a word.

    Ray may start one again just then, in place of another that died. Raises ActorDiedError where the tracker died of
    anything else.
    """
    try:
        return ray.get(asked)
    except ActorDiedError as error:
        if _ROUND_OVER in str(error) and ray.get_runtime_context().get_actor_id() is not None:
            ray.actor.exit_actor()
        raise
