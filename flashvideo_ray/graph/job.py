"""One job on a run: rounds of work through the graph, and what comes out of it into the ledger."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flashvideo_ray import scorers
from flashvideo_ray.graph import cluster, finish, remaining
from flashvideo_ray.graph.progress import Progress
from flashvideo_ray.graph.quota import Gate, Quota
from flashvideo_ray.graph.remaining import Until
from flashvideo_ray.graph.tracker import StageState, Tracker, TrackerClient
from flashvideo_ray.ledger import jobs, prune, run_file, tables
from flashvideo_ray.ledger.claim import Claim, Identity
from flashvideo_ray.ledger.patience import PatientStore
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.writer import Writer
from flashvideo_ray.settings import STAGES, Settings, Stage

_KEPT = frozenset({"latents", "previews"})
_LAST_FLUSH_SECONDS = 60.0
_WRITING = "writing"  # the tracker's thread that writes the ledger: stages wait for its answers, and not for the store
log = logging.getLogger("flashvideo_ray")

Graph = Callable[[pa.Table, Store, Settings, Mapping[str, Any], TrackerClient, Until], ray.data.Dataset]
"""What makes the graph: `pipeline.build_graph`."""


@dataclass(frozen=True)
class RunResult:
    """What a job did: how the candidates ended that it worked on, and the state of the whole run."""

    output: str
    ended: dict[str, int]  # by status, in this job
    total: dict[str, int]  # by status, in the run
    seconds: float
    without_latents: int = 0  # candidates that only `render` can take further: their latents were pruned

    @property
    def exit_status(self) -> int:
        """0: all candidates that ended are rendered or rejected; 3: some failed."""
        return 3 if self.total.get("failed") else 0


@dataclass(frozen=True)
class Job:
    """What one job has to do: the work that is left in a run, read from its ledger when asked, round by round."""

    store: Store
    settings: Settings
    recipe: Mapping[str, Any]
    about: Mapping[str, Any]
    next_work: Callable[[str | None], remaining.Work]  # takes what is to be retried
    extra: list[pa.Field]
    takeover: bool
    retry: str | None
    quota: Quota | None


def run_job(job: Job, graph: Graph, started: float) -> RunResult:
    """Do the job, if there is anything to do, and bring the summary and the report up to date."""
    ended: Counter[str] = Counter()
    work = _wanted(job, job.next_work(job.retry))
    if work:
        stages_ = _pools(job.settings, "refine")
        run_file.check_writable(job.store)
        if work.rows.num_rows:
            cluster.connect(job.settings.pools, stages_)
            cluster.try_encoder(job.settings)
        identity = Identity.of_this_process()
        with Claim(job.store, identity, job.settings.ledger.lease_seconds, job.takeover) as claim:
            # Read again: another job may have worked on the run until just now.
            work = _wanted(job, job.next_work(job.retry))
            run = run_file.open_run(job.store, job.recipe, job.about)
            with jobs.Record(job.store, run, started) as record:
                while work:
                    enough = _do(job, graph, work, claim, ended, record)
                    done, work = work, job.next_work(None)
                    if enough or work.rows["clip_id"].equals(done.rows["clip_id"]):
                        break  # or nothing came of it, and would not the next time
            if not set(job.settings.keep) >= _KEPT:
                prune.prune(job.store, prune.plan(job.store, job.settings.keep))
            tables.compact(job.store)
            jobs.merge(job.store)
    else:
        _note_settings(job)
    total = finish.finish(job.store, job.settings)
    return RunResult(job.store.url, dict(ended), total, time.monotonic() - started, work.without_latents)


def _pools(settings: Settings, until: Until) -> tuple[Stage, ...]:
    """The stages that a graph has."""
    absent = {"rate"} - set(settings.score.stages) | ({"refine"} if until == "preview" else set())
    return tuple(stage for stage in STAGES if stage not in absent)


def _do(job: Job, graph: Graph, work: remaining.Work, claim: Claim, ended: Counter[str], record: jobs.Record) -> bool:
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
        why = _run_graph(job, graph, work, gate, claim, ended, came, record)
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
) -> str | None:
    """Run the graph over the rows and bring what comes out of it into the ledger.

    Returns why the job has enough, or None if all rows came out. Those that did are in `came`.
    """
    settings, store = job.settings, job.store
    names = [f"score_{name}" for spec in settings.score.scorers for name in scorers.resolve(spec.name).names]
    scores = [pa.field(name, pa.float64()) for name in names]
    clips = Writer(store, "clips", tables.extended(tables.CLIPS, job.extra), settings.ledger)
    previews = tables.extended(tables.PREVIEWS, [*job.extra, *scores])
    tracker = start_tracker(store, previews, settings.ledger, remaining.context_rows(work.context), gate)
    _stop_on_sigterm()
    cluster.configure_data()
    # The ledger's rows wait in memory when the store is away; only what the stages put and get must wait there.
    patient = PatientStore(store.url, settings.store_patience_seconds)
    events = TrackerClient(tracker, ray.get, gated=gate is not None)
    dataset = graph(work.rows, patient, settings, job.recipe, events, work.until)
    progress = Progress(settings, _totals(work, settings.select.keep), _pools(settings, work.until))
    rendered, over = 0, None
    try:
        with progress, _Heartbeat(tracker, clips, progress, ended, record) as heartbeat:
            batches: Iterator[pa.Table] = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
            for batch in batches:
                claim.check()
                for row in batch.to_pylist():
                    if row["status"] == "skipped":
                        continue  # by the job's quota: all that is left gets its row at the end
                    came.add(row["clip_id"])
                    ended[row["status"]] += 1
                    rendered += row["status"] == "rendered"
                    if row["status"] not in ("previewed", "approved") and not (row["audit"] and row["clip"] is None):
                        clips.append(row)
                tracker.forget.remote(list(set(batch["id"].to_pylist())))
                if heartbeat.over is not None and rendered >= heartbeat.over[1]:
                    break  # what is left came to the gate after it was closed
            del batches, dataset  # Ray Data gives its actors back
            over = ray.get(tracker.over.remote())
    finally:
        # Each of them, whatever becomes of the others: a row that is lost here is paid for again.
        with ExitStack() as last:
            last.callback(ray.kill, tracker)
            last.callback(lambda: _insist(clips.flush))
            # The last one first: a clip's row follows its preview's.
            last.callback(lambda: _insist(lambda: ray.get(writing(tracker.flush).remote())))
            last.callback(record.round_over)
            last.callback(lambda: record.used(_used(ray.get(tracker.tick.remote()))))
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


def _insist(flush: Callable[[], None]) -> None:
    """Write the ledger's last rows, against a store that is away for up to a minute."""
    deadline = time.monotonic() + _LAST_FLUSH_SECONDS
    while True:
        try:
            return flush()
        except Exception:
            if time.monotonic() > deadline:
                raise
        time.sleep(2.0)


class _Heartbeat:
    """Once a second rows that are due become durable, and progress is shown: that does not wait for the store."""

    def __init__(self, tracker: Any, clips: Writer, progress: Progress, ended: Mapping[str, int], record: jobs.Record):
        self._tracker, self._clips, self._progress, self._ended = tracker, clips, progress, ended
        self._record = record
        self.over: tuple[str, int] | None = None  # of the tracker
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
        """Errors are told and left to the next beat: rows stay in memory until they are written."""
        while not self._stop.wait(1.0):
            try:
                act()
            except Exception as error:
                log.warning("%s, trying again: %s: %s", trouble, type(error).__name__, error)

    def _write(self) -> None:
        ray.get(writing(self._tracker.flush_if_due).remote())  # first: a clip's row follows its preview's
        self._clips.flush_if_due()
        self._record.flush_if_due()

    def _show(self, last: bool = False) -> None:
        states = ray.get(self._tracker.tick.remote())
        self._record.used(_used(states))
        self._progress.update(states, self._ended, last)
        self.over = ray.get(self._tracker.over.remote())


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
