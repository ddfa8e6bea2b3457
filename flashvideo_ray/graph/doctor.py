"""Whether this machine, cluster, store and model can do the job: everything that is known to spoil a night, in lines.

Nothing is rendered, and nothing of a run is changed: an object is written to OUTPUT's place and removed again.
"""

from __future__ import annotations

import difflib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flashvideo_ray import engines
from flashvideo_ray.engines import weights
from flashvideo_ray.errors import InputError, in_a_line
from flashvideo_ray.graph import checks, cluster, examination, recipe, shared_cards
from flashvideo_ray.graph.examination import Asked, Finding, Level, at
from flashvideo_ray.ledger import run_file
from flashvideo_ray.ledger.claim import SKEW, renewal_seconds
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.settings import Settings, SettingsError, Stage

_MODELS: tuple[weights.ModelStage, ...] = ("preview", "refine")
_NODE_SECONDS = examination.SECONDS + 10.0  # a process has to begin there
_CLOCK_SECONDS = 5.0
_BOOTSTRAP = "~/ray_bootstrap_config.yaml"  # what Ray's cluster launcher leaves on a head


@dataclass(frozen=True)
class Probe:
    """Lines about the store, and an object that was written there: the store's URL and its key, None if it was not."""

    lines: list[Finding]
    place: tuple[str, str] | None = None
    seconds: float = 0.0  # that writing it took


def examine(settings: Settings, output: str | None = None) -> list[Finding]:
    """Every line there is to say, of the driver first. It takes less than a minute, whoever does not answer."""
    with probed(output) as probe:
        found, asked = on_driver(settings, output, probe)
        if any(line.level == "broken" and line.about in ("versions", "temporary folder") for line in found):
            message = "not asked: it would not begin on what is broken above"
            return [*found, Finding("warning", "Ray", message, "mend that first, and ask again")]
        return found + _on_ray(asked)


def on_driver(settings: Settings, output: str | None, probe: Probe) -> tuple[list[Finding], Asked]:
    """The lines about this machine, its settings, the run and the store; and what the nodes are to be good for."""
    # A store that does not answer is asked for nothing more.
    run, found = (None, []) if probe.place is None else _run_of(output, settings)
    settings = recipe.with_added_scorers(settings, run)
    settings = settings.model_copy(update={"pools": settings.pools.sized()})  # a size of auto finds a place with these
    stages: tuple[Stage, ...] = ("text", "preview", *settings.score.stages, "refine")
    fingerprints = dict(run["recipe"].get("fingerprints", {})) if run is not None else {}
    asked = Asked(settings, stages, models=_MODELS, fingerprints=fingerprints, output=output, probe=probe.place)
    found += [*_settings(settings, stages), *probe.lines]
    if cluster.is_this_machine():  # the stages run here
        temporary = (os.environ["RAY_TMPDIR"],) if "RAY_TMPDIR" in os.environ else ()
        here = replace(asked, probe=None, temporary=temporary, cards=float(len(examination.cards_here() or ())))
    else:
        here = replace(asked, probe=None, stages=())
    found += examination.examine(here)
    for stage in _MODELS:
        with suppress(InputError):
            source = engines.of(settings, stage).source()
            known = weights.fingerprint_at_hand(source) if source is not None else None
            fingerprints |= {} if stage in fingerprints or known is None else {stage: known}
    return [*found, *lease(settings, probe.seconds)], replace(asked, fingerprints=fingerprints)


def _run_of(output: str | None, settings: Settings) -> tuple[dict[str, Any] | None, list[Finding]]:
    """The run that is there already, and whether these settings may take it up."""
    if output is None:
        return None, []
    found: list[dict[str, Any] | None] = []

    def look() -> Iterator[Finding]:
        store = Store(output)
        run = run_file.read_run(store)
        found.append(run)
        if run is None:
            return
        with suppress(weights.ModelNotFoundError):
            own = recipe.with_added_scorers(settings, run)
            now = recipe.recipe_of(engines.with_model_defaults(own), run["recipe"].get("fingerprints", {}))
            run_file.check_recipe(store, now)  # what it says of differences is for the operator as it is
            yield Finding("ok", "run", f"{output} holds a run of this recipe: it is taken up")

    lines = examination.together({"run": look})
    return (found[0] if found else None), lines


def _settings(settings: Settings, stages: Sequence[Stage]) -> Iterator[Finding]:
    """What `render` would refuse, a line for each kind; credentials are looked at where they are used."""
    wrong = []
    try:
        checks.check_scoring(settings)
    except InputError as error:
        wrong.append(Finding("broken", "scores and rules", str(error)))
    try:
        full = engines.with_model_defaults(settings)
        problems = [line for stage in _MODELS for line in engines.of(full, stage).problems()]
        wrong += [Finding("broken", "settings", line) for line in problems]
        for check in () if problems else (checks.check_handover, lambda own: checks.check_video(own, stages)):
            try:
                check(full)
            except SettingsError as error:
                about = "encoder" if str(error).startswith("video.") else "settings"
                wrong.append(Finding("broken", about, str(error)))
    except weights.ModelNotFoundError as error:
        wrong.append(Finding("broken", "models", str(error)))
    yield from wrong or [Finding("ok", "settings", "the models can do what is asked for")]


@contextmanager
def probed(output: str | None) -> Iterator[Probe]:
    """What becomes of an object that is written to OUTPUT's place; it lies there while this lasts."""
    if output is None:
        yield Probe([])
        return
    place = _place(output)
    key = f".doctor-{uuid.uuid4().hex[:12]}"
    took: list[float] = []

    def look() -> Iterator[Finding]:
        store = Store(place)
        try:
            run_file.check_writable(Store(output))
        except run_file.NoRunError as error:
            mend = "give these keys the right to put and delete objects there, or use another OUTPUT"
            yield Finding("broken", "store", str(error), mend)
            return
        begun = time.monotonic()
        store.put(key, b"the first")
        took.append(time.monotonic() - begun)
        store.delete(key)
        yield from conditional_put(store, key)

    found = examination.together({"store": look})
    try:
        yield Probe(found, (place, key), took[0]) if took else Probe(found)
    finally:
        if took:
            with suppress(Exception):
                Store(place).delete(key)


def conditional_put(store: Store, key: str) -> Iterator[Finding]:
    """Whether of two jobs that claim one run exactly one gets it: the object of the first must stay. It is left."""
    first = store.create(key, b"the first")
    second = store.create(key, b"the second")
    if not first or second or store.get(key) != b"the first":
        yield Finding(
            "broken",
            "conditional put",
            f"{store.url}: a second object under a name took the place of the first (If-None-Match is not heeded)",
            "use a store with conditional puts, or see to it that no two jobs ever work on one OUTPUT",
        )
    elif not store.is_exact:
        message = f"{store.url}: none is known of this kind of store; claims rest on waiting"
        yield Finding("warning", "conditional put", message, "start no two jobs on one OUTPUT")
    else:
        yield Finding("ok", "store", f"{store.url} can be written, with conditional puts")


def _place(output: str) -> str:
    """OUTPUT itself; of a local one that is not there yet, the nearest folder that is: none is made."""
    store = Store(output)
    if not store.is_local:
        return output
    folder = store.path()
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def lease(settings: Settings, put_seconds: float = 0.0) -> list[Finding]:
    """How long a run is held without an answer of the store, against how long the job waits for one."""
    held, patience = settings.ledger.lease_seconds, settings.store_patience_seconds
    if patience < held:
        message = (
            f"store_patience_seconds ({patience:g}) is shorter than ledger.lease_seconds ({held:g}): "
            "rows fail before anybody else could take the run"
        )
        mend = f"--set store_patience_seconds={max(600, 10 * held):g}"
        return [Finding("warning", "lease and patience", message, mend)]
    if put_seconds > renewal_seconds(held):
        message = (
            f"a put took {put_seconds:.1f} s, and a lease of {held:g} s is renewed every {renewal_seconds(held):g} s"
        )
        return [Finding("warning", "lease and patience", message, f"--set ledger.lease_seconds={20 * put_seconds:.0f}")]
    message = f"a run is held for {held:g} s without an answer of the store, a job waits {patience:g} s for one"
    return [Finding("ok", "lease and patience", message)]


def _on_ray(asked: Asked) -> list[Finding]:
    """What Ray has a place for, and how its nodes are. A Ray that is started for this is ended again."""
    settings, stages, local = asked.settings, asked.stages, cluster.is_this_machine()
    try:
        cluster.connect(settings.pools, stages)
    except cluster.PlacementError as error:
        mend = "correct the pools or the labels, or set RAY_ADDRESS to a cluster that has such nodes"
        return [Finding("broken", "placement", line, mend) for line in str(error).splitlines()[:-1] or [str(error)]]
    except Exception as error:
        mend = "look at the temporary folder and at RAY_ADDRESS, and try `ray start --head`"
        return [Finding("broken", "Ray", f"does not begin: {in_a_line(error)}", mend)]
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        found = placement(nodes, settings, stages, node_types())
        return found if local else found + _encoder(settings, nodes) + _nodes(nodes, asked)
    finally:
        if local:
            ray.shutdown()


@dataclass(frozen=True)
class NodeTypes:
    """What nodes may come: by name with resources and labels, as Ray's launcher has them; None: whatever is asked."""

    types: Mapping[str, Mapping[str, Any]] | None

    def bring(self, pool: Any) -> str | None:
        """The name of a type that has room for an actor of the pool."""
        if self.types is None:
            return "the autoscaler"
        fitting = (
            name
            for name, type_ in self.types.items()
            if type_.get("max_workers", 0) and cluster.fits(pool, type_.get("resources", {}), type_.get("labels", {}))
        )
        return next(fitting, None)


def node_types() -> NodeTypes | None:
    """What Ray's autoscaler may add, where this is the head of a cluster that has one; None where none is known."""
    file = Path(_BOOTSTRAP).expanduser()
    with suppress(OSError, ValueError, yaml.YAMLError):
        return NodeTypes(dict(yaml.safe_load(file.read_text())["available_node_types"]))
    return NodeTypes(None) if os.environ.get("RAY_USAGE_STATS_KUBERAY_IN_USE") == "1" else None


def placement(
    nodes: Sequence[Mapping[str, Any]], settings: Settings, stages: Sequence[Stage], types: NodeTypes | None
) -> list[Finding]:
    """Whether the pools together have room on these nodes, as `ray.nodes` has them, or on those that may come."""
    found = []
    problems = cluster.misplaced_on(nodes, settings.pools, stages)
    for unit in shared_cards.units(settings.pools, stages):
        about = " with ".join(f"pools.{stage}" for stage in unit.stages)
        problem = next((line for line in problems if line.startswith(f"{about} asks")), None)
        if problem is None:
            continue
        name = types.bring(unit.pool) if types is not None else None
        somewhere = any(cluster.fits(unit.pool, node["Resources"], node.get("Labels", {})) for node in nodes)
        if name is not None:
            found.append(Finding("not there yet", "placement", problem, f"{name} brings it when the job begins"))
        elif somewhere:
            mend = f"the job waits until nodes join, or give {about} a smaller size"
            found.append(Finding("warning", "placement", problem, mend))
        else:
            found.append(Finding("broken", "placement", problem, _nearest(unit.pool.labels, nodes)))
    return found or [Finding("ok", "placement", f"all pools have room ({cluster.describe_nodes(nodes)})")]


def _nearest(labels: Mapping[str, str], nodes: Sequence[Mapping[str, Any]]) -> str:
    there = {f"{key}={value}" for node in nodes for key, value in node.get("Labels", {}).items()}
    asked = [f"{key}={value}" for key, value in labels.items()]
    near = [match for text in asked for match in difflib.get_close_matches(text, there - {*asked}, 1)]
    hint = f"did you mean {', '.join(near)}? Else start" if near else "start"
    return f"{hint} a node that has it (`ray start --labels=…`), or change what the pool asks for"


def _encoder(settings: Settings, nodes: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """An encoder that needs a card, on one of the refine pool's."""
    pool, codec = settings.pools.refine, settings.video.codec
    if codec == "libx264":
        return []
    if not any(cluster.fits(pool, node["Resources"], node.get("Labels", {})) for node in nodes):
        return [Finding("not there yet", "encoder", f"{codec}: no node of the refine pool is there to try it on")]

    def look() -> list[Finding]:
        cluster.try_encoder(settings)
        return [Finding("ok", "encoder", f"{codec} opens on a card of the refine pool, or none was free")]

    return at("refine pool", examination.together({"encoder": look}))


def _nodes(nodes: Sequence[Mapping[str, Any]], asked: Asked) -> list[Finding]:
    """A task on each node, and then its clock against the one here."""
    here = recipe.versions()
    tasks = {}
    for node in nodes:
        units = shared_cards.units(asked.settings.pools, asked.stages)
        own = tuple(
            stage
            for unit in units
            if cluster.fits(unit.pool, node["Resources"], node.get("Labels", {}))
            for stage in unit.stages
        )
        models = tuple(stage for stage in _MODELS if stage in own or (stage == "preview" and "text" in own))
        temporary = str(node.get("ObjectStoreSocketName", "")).partition("/session_")[0]
        told = replace(
            asked,
            stages=own,
            models=models,
            versions=here,
            cards=node["Resources"].get("GPU", 0.0),
            temporary=(temporary,) if temporary else (),
        )
        tasks[_on(node, examination.examine).remote(told)] = node
    deadline = time.monotonic() + _NODE_SECONDS
    found = [line for task, node in tasks.items() for line in at(_name(node), _answer(task, deadline))]
    return _merged([*found, *clocks(nodes, asked.settings.ledger.lease_seconds)])


def _on(node: Mapping[str, Any], function: Callable[..., Any]) -> Any:
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=there)


def _answer(task: Any, deadline: float) -> list[Finding]:
    try:
        return list(ray.get(task, timeout=max(0.1, deadline - time.monotonic())))
    except Exception as error:
        mend = "install this package there as on the driver, or submit with --working-dir; look at the node's logs"
        return [Finding("broken", "node", f"cannot be asked: {in_a_line(error)}", mend)]


def clocks(nodes: Sequence[Mapping[str, Any]], lease_seconds: float) -> list[Finding]:
    """How far the nodes' clocks are from the one here, as far as the time of asking leaves no doubt."""
    found = []
    for node in nodes:
        try:
            # A process that has begun answers at once: the second answer counts.
            ray.get(_on(node, examination.clock).remote(), timeout=_CLOCK_SECONDS)
            before = time.time()
            there = ray.get(_on(node, examination.clock).remote(), timeout=_CLOCK_SECONDS)
            skew = max(0.0, there - time.time()) or min(0.0, there - before)
        except Exception as error:
            message = f"could not be asked: {in_a_line(error)}"
            found += at(_name(node), [Finding("warning", "clock", message, "look at the node's logs")])
            continue
        found += at(_name(node), [clock(skew, lease_seconds)])
    return found


def clock(skew: float, lease_seconds: float) -> Finding:
    """What a clock that is so many seconds ahead of the driver's means for the claim on a run."""
    if abs(skew) <= SKEW * lease_seconds:
        return Finding("ok", "clock", "agrees with the driver's")
    level: Level = "broken" if abs(skew) > lease_seconds else "warning"
    way = "ahead of" if skew > 0 else "behind"
    message = f"{abs(skew):.0f} s {way} the driver's; a claim is good for {lease_seconds:g} s"
    return Finding(level, "clock", message, "set it by NTP (chronyc makestep)")


def _name(node: Mapping[str, Any]) -> str:
    return f"{cluster.describe_nodes([node])} ({node.get('NodeManagerAddress', '')})"


def _merged(found: Sequence[Finding]) -> list[Finding]:
    """Nodes of one class that say the same, in one line."""
    alike: dict[tuple[str, ...], list[Finding]] = {}
    for line in found:
        kind = line.where.rpartition(" (")[0]
        alike.setdefault((kind, line.level, line.about, line.message, line.mend), []).append(line)
    return [
        lines[0] if len(lines) == 1 else replace(lines[0], where=f"{kind} ({len(lines)} nodes)")
        for (kind, *_), lines in alike.items()
    ]
