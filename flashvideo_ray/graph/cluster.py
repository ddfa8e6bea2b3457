"""Ray: connecting to it, and where an actor pool may run."""

from __future__ import annotations

import logging
import math
import os
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
import ray.util
from ray.exceptions import GetTimeoutError, RayTaskError

from flashvideo_ray.errors import InputError, in_a_line
from flashvideo_ray.graph import shared_cards, signals
from flashvideo_ray.graph.health import Fault, Worker
from flashvideo_ray.media import video
from flashvideo_ray.settings import BALANCED, STAGES, Pool, Pools, Settings, SettingsError, Stage, VideoSettings

_ENCODER_SECONDS = 60.0  # the cards may be another job's
_STARTS = 3  # of Ray on this machine
# Of actors that compute on a CPU. glibc gives large blocks back at once, and the kernel clears each page of the next
# one: that is a third of the processor's time of a small model. What such a process holds is the most it ever needed.
_CPU_MEMORY = "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"

# Of actors that have a card. Stage 2's tensors have many sizes: in blocks of fixed sizes, PyTorch's default, gigabytes
# lie between them that no tensor fits into (on an H100 3 GiB of 18 when a decode ran out of memory).
_CARD_MEMORY = "expandable_segments:True"

log = logging.getLogger("flashvideo_ray")


class PlacementError(InputError):
    """A pool asks for what the cluster does not have. The message names the pool and what is there."""


def is_this_machine() -> bool:
    """Whether a job of this process would start a Ray of its own, here: no cluster is named, and none is connected."""
    return not ray.is_initialized() and not os.environ.get("RAY_ADDRESS")


def connect(pools: Pools, stages: Sequence[Stage] = STAGES) -> None:
    """Use the cluster that `RAY_ADDRESS` names (a submitted job has it set), else start Ray on this machine.

    `stages` are those that have a pool; one whose size is `auto` has as few actors as will do. A local Ray declares as
    many CPUs as the pools ask for, so that a laptop with two cores can run four small actors. From here on SIGTERM ends
    this process the way Ctrl-C does.
    Raises PlacementError where a pool can never be placed on this machine; a cluster may still grow, so there it is
    only a warning.
    """
    pools = pools.sized()
    if is_this_machine():
        _start_local(pools, stages)
        signals.stop_on_sigterm()
        return
    if not ray.is_initialized():
        try:
            ray.init(logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise PlacementError(f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}: no Ray to be had there: {error}") from error
    signals.stop_on_sigterm()
    for problem in misplaced(pools, stages):
        log.warning("%s; waiting for a node that has it", problem)


def _start_local(pools: Pools, stages: Sequence[Stage]) -> None:
    # Ray says that this machine's own session is authenticated; nobody need act on it.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    asked = sum(getattr(pools, stage).num_cpus * getattr(pools, stage).actors for stage in stages)
    start_ray(max(os.cpu_count() or 1, math.ceil(asked) + 1))
    problems = misplaced(pools, stages)
    if problems:
        ray.shutdown()
        raise PlacementError("\n".join(problems) + "\nSet RAY_ADDRESS to use a cluster, or change these pools.")


def start_ray(num_cpus: int, **options: Any) -> None:
    """Start Ray here, and again where it does not come up: on a busy machine a part of it may be late."""
    options = {"include_dashboard": False, "logging_level": logging.WARNING, **options}
    for left in reversed(range(_STARTS)):
        try:
            ray.init(address="local", num_cpus=num_cpus, **options)
            return
        except Exception as error:  # Ray has no class for it
            ray.shutdown()
            if not left or "timed out during startup" not in str(error):
                raise
            log.warning("Ray did not start on this machine (%s); trying again", in_a_line(error))


def open_encoder(video_settings: VideoSettings) -> None:
    """Open the encoder of clips once, in this process. Raises SettingsError."""
    try:
        video.check_encoder(video_settings.codec, video_settings.encoder_preset)
    except RuntimeError as error:
        raise SettingsError(
            f"video.codec, video.encoder_preset: {error}; set video.codec to libx264, or use cards that have NVENC"
        ) from None


def try_encoder(settings: Settings) -> None:
    """Open an encoder that needs a card on one of the refine pool's, if there is one now that is free.

    Called on a connected Ray before anything is written. Where no such node has come yet, the actors find out. Raises
    SettingsError.
    """
    pool, own = settings.pools.refine, settings.video
    here = [node for node in ray.nodes() if node["Alive"]]
    if own.codec == "libx264" or not any(fits(pool, node["Resources"], node.get("Labels", {})) for node in here):
        return
    opened = ray.remote(open_encoder).options(**placement(pool), max_retries=0).remote(own)
    try:
        ray.get(opened, timeout=_ENCODER_SECONDS)
    except GetTimeoutError:
        ray.cancel(opened, force=True)
    except RayTaskError as error:
        raise SettingsError(str(error.cause)) from None


def alive() -> set[str]:
    """The nodes that there are."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def misplaced(pools: Pools, stages: Sequence[Stage] = STAGES) -> list[str]:
    """One line for each pool that has no room on the cluster as it is now: what it asks for and what there is.

    All pools are placed together, those with cards first, each actor on the first node that still has room for it.
    """
    return misplaced_on([node for node in ray.nodes() if node["Alive"]], pools, stages)


def misplaced_on(nodes: Sequence[Mapping[str, Any]], pools: Pools, stages: Sequence[Stage] = STAGES) -> list[str]:
    """The same for these nodes, as `ray.nodes` has them. Pools that share cards are placed card by card."""
    units = sorted(shared_cards.units(pools, stages), key=lambda unit: -unit.pool.num_gpus)
    free = _least_wanted_first(nodes, [unit.pool for unit in units])
    problems = []
    for unit in units:
        pool = unit.pool
        placed = sum(_place(pool, free) for _ in range(pool.actors))
        if placed < pool.actors:
            names = " with ".join(f"pools.{stage}" for stage in unit.stages)
            problems.append(
                f"{names} asks for {pool.actors} times {describe(pool)}; there is room for {placed} "
                f"({describe_nodes(nodes)})"
            )
    return problems


def _least_wanted_first(
    nodes: Sequence[Mapping[str, Any]], pools: Sequence[Pool]
) -> list[tuple[dict[str, float], Mapping[str, str]]]:
    """What the nodes have and their labels: those first that the fewest of the pools can use."""
    found = [(dict(node["Resources"]), node.get("Labels", {})) for node in nodes if node["Resources"]]
    return sorted(found, key=lambda node: sum(fits(pool, *node) for pool in pools))


def room(nodes: Sequence[Mapping[str, Any]], pools: Pools, stages: Sequence[Stage]) -> list[int]:
    """How many actors of refine have a place on these nodes beside 0, 1, 2, … of preview, as `balance.best` takes it.

    A node is for those whose labels or fallbacks allow it. The other pools of `stages` have their places first, where
    neither of the two could be if there are such.
    """
    preview, refine = (shared_cards.card_of(pools, stage, stages) if stage in stages else None for stage in BALANCED)
    free = _least_wanted_first(nodes, [pool for pool in (preview, refine) if pool is not None])
    for unit in shared_cards.units(pools.sized(), stages):
        if not {*BALANCED} & {*unit.stages}:
            for _ in range(unit.pool.actors):
                _place(unit.pool, free)
    found = np.zeros(1, int)
    for resources, labels in free:
        beside = _beside(preview, refine, resources, labels)
        sums = np.full(len(found) + len(beside) - 1, -1)
        for here, others in enumerate(beside):  # as many of preview on this node, and the others before it
            sums[here : here + len(found)] = np.maximum(sums[here : here + len(found)], found + others)
        found = sums
    return [int(count) for count in found]


def _beside(
    preview: Pool | None, refine: Pool | None, resources: Mapping[str, float], labels: Mapping[str, str]
) -> list[int]:
    """The same for one node."""
    taken = _shares(preview) if preview is not None else {}
    return [
        _count(refine, {name: have - first * taken.get(name, 0.0) for name, have in resources.items()}, labels)
        for first in range(_count(preview, resources, labels) + 1)
    ]


def _count(pool: Pool | None, resources: Mapping[str, float], labels: Mapping[str, str]) -> int:
    """How many actors have a place on a node."""
    if pool is None or not any(matches(selector, labels) for selector in (pool.labels, *pool.fallback)):
        return 0
    asked = _shares(pool) or {"CPU": 1.0}  # one that asks for nothing
    return max(0, min(math.floor(resources.get(name, 0.0) / amount + 1e-6) for name, amount in asked.items()))


def _shares(pool: Pool) -> dict[str, float]:
    """What an actor takes of a node; of a card, as much as no other actor of its pool could use, at least."""
    asked = needs(pool)
    if 0 < pool.num_gpus < 1:
        asked["GPU"] = 1 / math.floor(1 / pool.num_gpus + 1e-6)
    return asked


def _place(pool: Pool, free: list[tuple[dict[str, float], Mapping[str, str]]]) -> bool:
    for resources, labels in free:
        if fits(pool, resources, labels):
            for name, amount in needs(pool).items():
                resources[name] -= amount
            return True
    return False


def needs(pool: Pool) -> dict[str, float]:
    """What one actor takes, in Ray's names."""
    asked = {"CPU": pool.num_cpus, "GPU": pool.num_gpus, **pool.resources}
    if pool.memory_gib:
        asked["memory"] = pool.memory_gib * 2**30
    if pool.accelerator_type:
        asked[f"accelerator_type:{pool.accelerator_type}"] = 0.001
    return {name: amount for name, amount in asked.items() if amount}


def here() -> Worker:
    """Which actor this process is, and where it runs."""
    context = ray.get_runtime_context()
    cards = ",".join(context.get_accelerator_ids().get("GPU", []))
    return Worker(context.get_actor_id() or "", context.get_node_id(), f"{socket.gethostname()} ({_address()})", cards)


def _address() -> str:
    return str(ray.util.get_node_ip_address())


def without(settings: Settings, faults: Sequence[Fault]) -> Settings:
    """The settings with pools that keep away from the nodes of these faults, and with them those beside them.

    A card alone is not kept away from: Ray gives out cards as it likes, and who gets that one takes no rows.
    """
    faults = [fault for fault in faults if not fault.card]
    pools: dict[str, Pool] = {}
    host = {fault.stage: getattr(settings.pools, fault.stage).beside or fault.stage for fault in faults}
    for stage in dict.fromkeys(host.values()):
        nodes = sorted({fault.node for fault in faults if host[fault.stage] == stage and fault.node})
        away = {"ray.io/node-id": f"!in({','.join(nodes)})"}
        pool: Pool = getattr(settings.pools, stage)
        fallback = tuple({**selector, **away} for selector in pool.fallback)
        pools[stage] = pool.model_copy(update={"labels": {**pool.labels, **away}, "fallback": fallback})
    return settings.model_copy(update={"pools": settings.pools.model_copy(update=pools)})


def nowhere(settings: Settings, faults: Sequence[Fault]) -> Stage | None:
    """A stage that no node of the cluster is left for, once those of the faults are left out."""
    left = without(settings.model_copy(update={"pools": settings.pools.sized()}), faults)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    for stage in dict.fromkeys(fault.stage for fault in faults):
        [pool, *_] = (unit.pool for unit in shared_cards.units(left.pools, STAGES) if stage in unit.stages)
        if not any(fits(pool, node["Resources"], node.get("Labels", {})) for node in nodes):
            return stage
    return None


def fits(pool: Pool, resources: Mapping[str, float], labels: Mapping[str, str]) -> bool:
    """Whether one actor of the pool could run on a node with these resources and labels."""
    enough = all(resources.get(name, 0) >= amount for name, amount in needs(pool).items())
    return enough and any(matches(selector, labels) for selector in (pool.labels, *pool.fallback))


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Ray's label selector: `value`, `!value`, `in(a,b)` or `!in(a,b)` for each key."""
    for key, condition in selector.items():
        negated = condition.startswith("!")
        listed = re.fullmatch(r"in\((.*)\)", condition.removeprefix("!"))
        values = [value.strip() for value in listed[1].split(",")] if listed else [condition.removeprefix("!")]
        if (labels.get(key) in values) == negated:
            return False
    return True


def describe(pool: Pool) -> str:
    """What one actor of a pool asks for, in words."""
    parts = [f"{pool.num_cpus:g} CPU"]
    parts += [f"{pool.num_gpus:g} GPU"] if pool.num_gpus else []
    parts += [f"{pool.memory_gib:g} GiB memory"] if pool.memory_gib else []
    parts += [f"accelerator {pool.accelerator_type}"] if pool.accelerator_type else []
    parts += [f"{amount:g} {name}" for name, amount in pool.resources.items()]
    parts += [f"label {key}={value}" for key, value in pool.labels.items()]
    return ", ".join(parts)


def describe_nodes(nodes: Sequence[Mapping[str, Any]]) -> str:
    """What the nodes have, in words."""
    texts = []
    for node in nodes:
        resources = node["Resources"]
        own = {key: value for key, value in node.get("Labels", {}).items() if not key.startswith("ray.io/")}
        labels = "".join(f", {key}={value}" for key, value in own.items())
        texts.append(f"{resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU{labels}")
    return "; ".join(texts)


def placement(pool: Pool) -> dict[str, Any]:
    """What one actor of a pool takes and where it may run, as Ray's options."""
    options: dict[str, Any] = {"num_cpus": pool.num_cpus}
    names: tuple[str, ...]
    if pool.num_gpus:
        options["num_gpus"] = pool.num_gpus
        names, memory = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"), _CARD_MEMORY
    else:
        names, memory = ("GLIBC_TUNABLES",), _CPU_MEMORY
    if not any(name in os.environ for name in names):
        options["runtime_env"] = {"env_vars": {names[0]: memory}}
    if pool.memory_gib:
        options["memory"] = pool.memory_gib * 2**30
    if pool.labels:
        options["label_selector"] = dict(pool.labels)
    if pool.fallback:
        options["fallback_strategy"] = [{"label_selector": dict(selector)} for selector in pool.fallback]
    if pool.accelerator_type:
        options["accelerator_type"] = pool.accelerator_type
    if pool.resources:
        options["resources"] = dict(pool.resources)
    return options
