"""One job on a run: what it has to do, under the claim of the run, round by round; and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.graph import cluster, ending, finish, remaining
from flashvideo_ray.graph.health import Fault
from flashvideo_ray.graph.quota import Quota
from flashvideo_ray.graph.rounds import Graph, Rounds, gate_of
from flashvideo_ray.ledger import held_store, jobs, prune, run_file, tables
from flashvideo_ray.ledger.claim import Claim, scope_of
from flashvideo_ray.ledger.holder import Identity
from flashvideo_ray.ledger.shard import Shard
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.settings import Settings, Stage

_KEPT = frozenset({"latents", "previews"})


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
    failed_of_shard: int | None = None  # candidates that failed of the job's share of the run, where it has one

    @property
    def exit_status(self) -> int:
        """0: all candidates that ended are rendered or rejected; 3: some failed, of the run or of the job's share."""
        failed = self.total.get("failed", 0) if self.failed_of_shard is None else self.failed_of_shard
        return 3 if failed or self.stopped is not None else 0


@dataclass(frozen=True)
class Job:
    """What one job has to do: the work that is left in a run, read from its ledger when asked, round by round."""

    store: Store
    settings: Settings
    recipe: Mapping[str, Any]
    about: Mapping[str, Any]
    stages: tuple[Stage, ...]  # that it may come to need
    next_work: Callable[[Store, str | None], remaining.Work]  # takes the run's store and what is to be retried
    extra: list[pa.Field]
    takeover: bool
    retry: str | None
    quota: Quota | None
    end: ending.Ending
    shard: Shard | None = None


def run_job(job: Job, graph: Graph, started: float) -> RunResult:
    """Do the job, if there is anything to do, and bring the summary and the report up to date.

    Raises JobError where a stage cannot be loaded on any node, or a pool can have no actor.
    """
    before = tables.parts(job.store)
    work = _wanted(job)
    if not work:
        _note_settings(job)
        total = _closed(job)
        result = RunResult(job.store.url, {}, total, time.monotonic() - started, work.without_latents)
        return replace(result, failed_of_shard=_failed_of_shard(job))
    run_file.check_writable(job.store)
    if work.rows.num_rows:
        cluster.connect(job.settings.pools, job.stages)
        if "refine" in job.stages:
            cluster.try_encoder(job.settings)
    identity = Identity.of_this_process()
    lease, patience = job.settings.ledger.lease_seconds, job.settings.store_patience_seconds
    with (
        Claim(job.store, identity, lease, job.takeover, patience, scope_of(job.shard)) as claim,
        job.end.left_under(claim),
    ):
        # From here on the job waits for a store that is away, and writes nothing while it may be another's run.
        job = replace(job, store=held_store.under(claim))
        ending.forget(job.store, job.shard)
        if tables.parts(job.store) != before:  # another job has worked on the run until just now
            work = _wanted(job)
        run = run_file.open_run(job.store, job.recipe, job.about)
        with jobs.Record(job.store, run, started) as record:
            told = job.end.notifier
            rounds = Rounds(graph, job.store, claim, record, job.settings, job.recipe, job.extra, job.quota, told)
            work = rounds.run(work, lambda: job.next_work(job.store, None))
        if not set(job.settings.keep) >= _KEPT:
            prune.prune(job.store, prune.plan(job.store, job.settings.keep, job.shard))
        total = _closed(job, claim)  # under the claim: it may take longer than a lease
        rounds.raise_if_lost()
        ended, left_out, seconds = dict(+rounds.ended), tuple(rounds.left_out), time.monotonic() - started
        result = RunResult(job.store.url, ended, total, seconds, work.without_latents, left_out, rounds.stopped)
        job.end.result = replace(result, failed_of_shard=_failed_of_shard(job))
    return job.end.result


def _closed(job: Job, claim: Claim | None = None) -> dict[str, int]:
    """The ledger in few parts, if the job worked on it, and the report as it is now.

    Jobs on shares of the run take turns: the last one's report has all that the others did. Where others are at work,
    parts are left as they are: each job has merged its own on the way.
    """
    with nullcontext(job.store) if job.shard is None else held_store.turn(job.store, job.settings) as store:
        if claim is not None and (job.shard is None or not claim.at_work_beside()):
            tables.compact(job.store)
            jobs.merge(job.store)
        return finish.finish(store, job.settings)


def _failed_of_shard(job: Job) -> int | None:
    """What failed in other shares is for their jobs to tell, and to take up."""
    if job.shard is None:
        return None
    ended = job.shard.of(tables.read(job.store, "clips", ["id", "status"]))
    return int(pc.sum(pc.equal(ended["status"], "failed")).as_py() or 0)


def _wanted(job: Job) -> remaining.Work:
    """The work, without what an earlier job has skipped already if the run has enough clips as it is."""
    work = job.next_work(job.store, job.retry)
    gate = gate_of(work, job.settings, job.quota)
    if gate is None or gate.over is None:
        return work
    clips = tables.read(job.store, "clips", ["status"])
    skipped = clips.filter(pc.equal(clips["status"], "skipped"))["clip_id"].combine_chunks()
    return replace(work, rows=work.rows.filter(pc.invert(pc.is_in(work.rows["clip_id"], skipped))))


def _note_settings(job: Job) -> None:
    """Other prices than the last job was told of are worth a row of their own: nothing else was to be done."""
    run = run_file.read_run(job.store)
    told = job.settings.model_dump(mode="json")
    if run is not None and jobs.newest_settings(job.store, run) != told:
        jobs.note(job.store, run, told)
