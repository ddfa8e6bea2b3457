"""One job on a run: rounds of work through the graph, and what comes out of it into the ledger."""

from __future__ import annotations

import gc
import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flashvideo_ray import scorers
from flashvideo_ray.errors import JobError, in_a_line
from flashvideo_ray.graph import cluster, finish, remaining
from flashvideo_ray.graph.health import Fault, Health
from flashvideo_ray.graph.placement import Placement
from flashvideo_ray.graph.progress import Progress
from flashvideo_ray.graph.quota import Gate, Quota
from flashvideo_ray.graph.remaining import Until
from flashvideo_ray.graph.shared_cards import SharedCards
from flashvideo_ray.graph.tracker import StageState, Tracker
from flashvideo_ray.graph.tracker_client import TrackerClient
from flashvideo_ray.ledger import held_store, jobs, prune, run_file, tables
from flashvideo_ray.ledger.claim import Claim, ClaimLostError, Identity
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.writer import Writer
from flashvideo_ray.settings import STAGES, Settings, Stage

_KEPT = frozenset({"latents", "previews"})
_LAST_FLUSH_SECONDS = 60.0
_BEAT_SECONDS = 1.0
_LONGEST_PAUSE = 60.0  # between tries of what goes wrong
_WRITING = "writing"  # the tracker's thread that writes the ledger: stages wait for its answers, and not for the store
log = logging.getLogger("flashvideo_ray")

Graph = Callable[[pa.Table, Store, Settings, Mapping[str, Any], TrackerClient, Until, SharedCards], ray.data.Dataset]
"""What makes the graph: `pipeline.build_graph`."""


@dataclass(frozen=True)
class RunResult:
    """What a job did: how the candidates ended that it worked on, and the state of the whole run."""

    output: str
    ended: dict[str, int]  # by status, in this job
    total: dict[str, int]  # by status, in the run
    seconds: float
    without_latents: int = 0  # candidates that only `render` can take further: their latents were pruned
    left_out: tuple[Fault, ...] = ()  # nodes that a stage could not work on
    stopped: Fault | None = None  # the stage that failed alike until the job ended; what it had not begun is open

    @property
    def exit_status(self) -> int:
        """0: all candidates that ended are rendered or rejected; 3: some failed."""
        return 3 if self.total.get("failed") or self.stopped is not None else 0


@dataclass(frozen=True)
class Job:
    """What one job has to do: the work that is left in a run, read from its ledger when asked, round by round."""

    store: Store
    settings: Settings
    recipe: Mapping[str, Any]
    about: Mapping[str, Any]
    next_work: Callable[[Store, str | None], remaining.Work]  # takes the run's store and what is to be retried
    extra: list[pa.Field]
    takeover: bool
    retry: str | None
    quota: Quota | None


@dataclass
class _Trouble:
    """What the rounds of a job have met: nodes to be left out, and a stage that fails whatever it gets."""

    left_out: list[Fault] = field(default_factory=list)
    stopped: Fault | None = None


def run_job(job: Job, graph: Graph, started: float) -> RunResult:
    """Do the job, if there is anything to do, and bring the summary and the report up to date.

    Raises JobError where a stage cannot be loaded on any node.
    """
    trouble, lost = _Trouble(), None
    ended: Counter[str] = Counter()
    work = _wanted(job, job.next_work(job.store, job.retry))
    if work:
        stages_ = _pools(job.settings, "refine")
        run_file.check_writable(job.store)
        if work.rows.num_rows:
            cluster.connect(job.settings.pools, stages_)
            cluster.try_encoder(job.settings)
        identity = Identity.of_this_process()
        lease, patience = job.settings.ledger.lease_seconds, job.settings.store_patience_seconds
        with Claim(job.store, identity, lease, job.takeover, patience) as claim:
            # From here on the job waits for a store that is away, and writes nothing while it may be another's run.
            job = replace(job, store=held_store.under(claim))
            # Read again: another job may have worked on the run until just now.
            work = _wanted(job, job.next_work(job.store, job.retry))
            run = run_file.open_run(job.store, job.recipe, job.about)
            with jobs.Record(job.store, run, started) as record:
                while work:
                    before = len(trouble.left_out)
                    enough = _do(job, graph, work, claim, ended, record, trouble)
                    for fault in trouble.left_out[before:]:
                        record.met(f"left out: {fault}")
                    done, work = work, job.next_work(job.store, None)
                    if trouble.stopped is not None:
                        record.met(f"stopped: {trouble.stopped}")
                        break
                    if work and len(trouble.left_out) > before:
                        gc.collect()  # of the round that broke off: what it held of the cluster
                        lost = cluster.nowhere(job.settings, trouble.left_out)
                        if lost is not None:
                            break
                        continue  # a new round does what the actors there held
                    if enough or work.rows["clip_id"].equals(done.rows["clip_id"]):
                        break  # or nothing came of it, and would not the next time
            if not set(job.settings.keep) >= _KEPT:
                prune.prune(job.store, prune.plan(job.store, job.settings.keep))
            tables.compact(job.store)
            jobs.merge(job.store)
    else:
        _note_settings(job)
    total = finish.finish(job.store, job.settings)
    if lost is not None:
        raise JobError("\n".join(str(fault) for fault in trouble.left_out if fault.stage == lost))
    seconds = time.monotonic() - started
    faults = tuple(trouble.left_out)
    return RunResult(job.store.url, dict(ended), total, seconds, work.without_latents, faults, trouble.stopped)


def _pools(settings: Settings, until: Until) -> tuple[Stage, ...]:
    """The stages that a graph has."""
    absent = {"rate"} - set(settings.score.stages) | ({"refine"} if until == "preview" else set())
    return tuple(stage for stage in STAGES if stage not in absent)


def _do(
    job: Job,
    graph: Graph,
    work: remaining.Work,
    claim: Claim,
    ended: Counter[str],
    record: jobs.Record,
    trouble: _Trouble,
) -> bool:
    """One round: what is decided becomes ledger rows, the rest goes through the graph. True if the job has enough."""
    work.news.write(job.store)
    schema = tables.extended(tables.CLIPS, job.extra)
    Writer(job.store, "clips", schema, job.settings.ledger).write(work.decided)
    ended.update(work.decided["status"].to_pylist())
    if not work.rows.num_rows:
        return False
    came: set[str] = set()
    gate = _gate(job, work)
    why = gate.over if gate is not None else None
    if why is None:
        why = _run_graph(job, graph, work, gate, claim, ended, came, record, trouble)
    if why is not None:
        ids = work.rows["clip_id"]
        left = work.rows.filter(pc.invert(pc.is_in(ids, pa.array(sorted(came), pa.string()))))
        for name, value in {"status": "skipped", "reason": why, "stage": None, "audit": None}.items():
            index = left.schema.get_field_index(name)
            field = left.schema.field(index)
            left = left.set_column(index, field, pa.array([value] * left.num_rows, field.type))
        Writer(job.store, "clips", schema, job.settings.ledger).write(left)
        ended["skipped"] += left.num_rows
    return why is not None


def _run_graph(
    job: Job,
    graph: Graph,
    work: remaining.Work,
    gate: Gate | None,
    claim: Claim,
    ended: Counter[str],
    came: set[str],
    record: jobs.Record,
    trouble: _Trouble,
) -> str | None:
    """Run the graph over the rows and bring what comes out of it into the ledger.

    Returns why the job has enough, or None if all rows came out. Those that did are in `came`.
    """
    settings, store = cluster.without(job.settings, trouble.left_out), job.store
    names = [f"score_{name}" for spec in settings.score.scorers for name in scorers.resolve(spec.name).names]
    scores = [pa.field(name, pa.float64()) for name in names]
    # The ledger's rows wait in memory when the store is away; only what the stages put and get must wait there.
    clips = Writer(
        held_store.HeldStore(store.url, 0.0, claim, store.clock),
        "clips",
        tables.extended(tables.CLIPS, job.extra),
        settings.ledger,
    )
    previews = tables.extended(tables.PREVIEWS, [*job.extra, *scores])
    health = Health(settings.max_equal_failures, {stage: getattr(settings.pools, stage).size for stage in STAGES})
    plain = Store(store.url, store.clock)
    tracker = start_tracker(plain, previews, settings.ledger, remaining.context_rows(work.context), gate, health)
    claim.report_to(tracker.permit.remote)
    _stop_on_sigterm()
    cluster.configure_data()
    events = TrackerClient(tracker, ray.get, gate is not None, cluster.here)
    patient = held_store.HeldStore(store.url, settings.store_patience_seconds, events)
    cards = SharedCards(settings.pools, _pools(settings, work.until), cluster.needs)
    dataset = graph(work.rows, patient, settings, job.recipe, events, work.until, cards)
    progress = Progress(settings, _totals(work, settings.select.keep), _pools(settings, work.until))
    placement = Placement(settings.pools, _pools(settings, work.until), settings.placement_patience_seconds)
    heartbeat = _Heartbeat(tracker, clips, progress, ended, record, placement)
    rendered, lost, over, last_patience = 0, 0, None, _LAST_FLUSH_SECONDS
    try:
        with progress, heartbeat, cards:
            batches: Iterator[pa.Table] = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
            for batch in batches:
                claim.check()
                for row in batch.to_pylist():
                    if row["status"] == "skipped":
                        continue  # by the job's quota: all that is left gets its row at the end
                    came.add(row["clip_id"])
                    ended[row["status"]] += 1
                    rendered += row["status"] == "rendered"
                    lost += row["status"] == "failed"
                    if row["status"] not in ("previewed", "approved") and not (row["audit"] and row["clip"] is None):
                        clips.append(row)
                tracker.forget.remote(list(set(batch["id"].to_pylist())))
                if heartbeat.over is not None and rendered >= heartbeat.over[1]:
                    break  # what is left came to the gate after it was closed
                if heartbeat.stopped is not None and rendered + lost >= heartbeat.stopped[1]:
                    break
            del batches, dataset  # Ray Data gives its actors back
            over = ray.get(tracker.over.remote())
            if stopped := ray.get(tracker.stopped.remote()):
                trouble.stopped = stopped[0]
        last_patience = max(last_patience, settings.store_patience_seconds)  # nobody waits for the end of this job
    except KeyboardInterrupt:
        if heartbeat.no_place is not None:
            raise JobError(heartbeat.no_place) from None
        raise
    except RayError:
        # An actor whose node is left out ends the round like this, once the others are done.
        if not (faults := ray.get(tracker.faults.remote())):
            raise
        trouble.left_out.extend(faults)
    else:
        # Actors that got no row are missing, and held nothing up.
        trouble.left_out.extend(ray.get(tracker.faults.remote()))
    finally:
        # Each of them, whatever becomes of the others: a row that is lost here is paid for again.
        with ExitStack() as last:
            last.callback(ray.kill, tracker)
            last.callback(claim.report_to, None)
            last.callback(lambda: _insist(clips.flush, last_patience))
            # The last one first: a clip's row follows its preview's.
            last.callback(lambda: _insist(lambda: ray.get(writing(tracker.flush).remote()), last_patience))
            last.callback(record.round_over)
            last.callback(lambda: record.used(_used(ray.get(tracker.tick.remote()))))
    claim.check()
    return over[0] if over is not None else None


def _wanted(job: Job, work: remaining.Work) -> remaining.Work:
    """The work, without what an earlier job has skipped already if the run has enough clips as it is."""
    gate = _gate(job, work)
    if gate is None or gate.over is None:
        return work
    clips = tables.read(job.store, "clips", ["status"])
    skipped = clips.filter(pc.equal(clips["status"], "skipped"))["clip_id"].combine_chunks()
    return replace(work, rows=work.rows.filter(pc.invert(pc.is_in(work.rows["clip_id"], skipped))))


def _gate(job: Job, work: remaining.Work) -> Gate | None:
    if job.quota is None:
        return None
    rows = work.rows
    waiting = rows.filter(pc.is_in(rows["status"], pa.array(["previewed", "approved"])))["clip_id"].to_pylist()
    return Gate(job.quota, job.settings.pools, work.rendered, set(waiting))


def _used(states: Mapping[Stage, StageState]) -> jobs.Used:
    """What the pools of one graph held and used."""
    return {stage: (state.held_seconds, state.busy_seconds) for stage, state in states.items()}


def _note_settings(job: Job) -> None:
    """Other prices than the last job was told of are worth a row of their own: nothing else was to be done."""
    run = run_file.read_run(job.store)
    told = job.settings.model_dump(mode="json")
    if run is not None and jobs.newest_settings(job.store, run) != told:
        jobs.note(job.store, run, told)


def start_tracker(store: Store, *arguments: Any) -> Any:
    """The actor of a Tracker: on this node, which the run cannot outlive anyway, and without a CPU."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote  # its types do not know groups
    actor = remote(num_cpus=0, concurrency_groups={_WRITING: 1}, scheduling_strategy=here)(Tracker)
    return actor.remote(store, *arguments)


def writing(method: Any) -> Any:
    """A method of the tracker's actor, to be run beside those that answer."""
    return method.options(concurrency_group=_WRITING)


def _insist(flush: Callable[[], None], patience_seconds: float) -> None:
    """Write the ledger's last rows, against a store that is away for so long."""
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return flush()
        except ClaimLostError:
            return  # what is left is for the job that has the run now
        except Exception:
            if time.monotonic() > deadline:
                raise
        time.sleep(2.0)


class _Heartbeat:
    """Once a second rows that are due become durable, and progress is shown: that does not wait for the store."""

    def __init__(
        self,
        tracker: Any,
        clips: Writer,
        progress: Progress,
        ended: Mapping[str, int],
        record: jobs.Record,
        placement: Placement,
    ):
        self._tracker, self._clips, self._progress, self._ended = tracker, clips, progress, ended
        self._record = record
        self._placement = placement
        self.no_place: str | None = None  # for a pool, which ends the job
        self._waits = threading.current_thread()
        self.over: tuple[str, int] | None = None  # of the tracker
        self.stopped: tuple[Fault, int] | None = None
        self._stop = threading.Event()
        acts = {"ledger not written": self._write, "progress not shown": self._show}
        self._threads = [threading.Thread(target=self._beat, args=act, daemon=True) for act in acts.items()]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        deadline = time.monotonic() + _LAST_FLUSH_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with suppress(Exception):
            self._show(last=True)

    def _beat(self, trouble: str, act: Callable[[], None]) -> None:
        """Errors are told in a line and left to a later beat: rows stay in memory until they are written."""
        pause = _BEAT_SECONDS
        while not self._stop.wait(pause):
            try:
                act()
                pause = _BEAT_SECONDS
            except Exception as error:
                pause = min(2 * pause, _LONGEST_PAUSE)
                log.warning("%s, trying again in %.0f s: %s", trouble, pause, in_a_line(error))

    def _write(self) -> None:
        ray.get(writing(self._tracker.flush_if_due).remote())  # first: a clip's row follows its preview's
        self._clips.flush_if_due()
        self._record.flush_if_due()

    def _show(self, last: bool = False) -> None:
        states = ray.get(self._tracker.tick.remote())
        self._record.used(_used(states))
        self._progress.update(states, self._ended, last)
        self._wait_for_places(states)
        self.over = ray.get(self._tracker.over.remote())
        self.stopped = ray.get(self._tracker.stopped.remote())

    def _wait_for_places(self, states: Mapping[Stage, StageState]) -> None:
        told = self._placement.look({stage: state.actors for stage, state in states.items()})
        if told is not None:
            log.warning("%s", told)
        if self._placement.over is not None and self.no_place is None:
            self.no_place = self._placement.over
            if self._waits is threading.main_thread():  # for rows that do not come
                signal.pthread_kill(self._waits.ident or 0, signal.SIGINT)


def _stop_on_sigterm() -> None:
    """SIGTERM (`ray job stop`, a node that is taken away) stops a job the way Ctrl-C does: the ledger is written."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _totals(work: remaining.Work, keep: int | None) -> dict[Stage, int]:
    """How many rows each stage gets at most, if `keep` candidates of a prompt survive."""
    rows = work.rows
    open_ = rows.filter(pc.equal(rows["status"], "open"))
    fresh, prompts = open_.num_rows, len(open_["id"].unique())
    survivors = fresh if keep is None else min(fresh, keep * prompts)
    refine = rows.num_rows - fresh + survivors
    return {"text": rows.num_rows, "preview": fresh, "score": fresh, "rate": fresh, "refine": refine}
