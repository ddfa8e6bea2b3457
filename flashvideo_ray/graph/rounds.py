"""The rounds of one job: each takes work through the graph, and what comes out of it into the ledger."""

from __future__ import annotations

import gc
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.exceptions import ActorDiedError, RayError

from flashvideo_ray.errors import JobError, in_a_line
from flashvideo_ray.graph import cluster, datasets
from flashvideo_ray.graph.arrivals import Arrivals
from flashvideo_ray.graph.balancing import Balance
from flashvideo_ray.graph.gauges import Gauges
from flashvideo_ray.graph.health import Fault, Health
from flashvideo_ray.graph.heartbeat import Heartbeat, used
from flashvideo_ray.graph.metrics import MeteredStore
from flashvideo_ray.graph.notice import Notifier, Watch
from flashvideo_ray.graph.placement import Placement
from flashvideo_ray.graph.progress import Progress
from flashvideo_ray.graph.quota import Gate, Quota
from flashvideo_ray.graph.remaining import Until, Work, context_rows
from flashvideo_ray.graph.shared_cards import SharedCards
from flashvideo_ray.graph.tracker import StageState
from flashvideo_ray.graph.tracker_actor import answer, computing, start_tracker
from flashvideo_ray.graph.tracker_client import TrackerClient
from flashvideo_ray.ledger import jobs, tables
from flashvideo_ray.ledger.claim import Claim, ClaimLostError
from flashvideo_ray.ledger.held_store import HeldStore
from flashvideo_ray.ledger.patience import LAST_SECONDS, LONGEST_DELAY
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.writer import Writer
from flashvideo_ray.scorers.panel import names_of
from flashvideo_ray.settings import STAGES, Settings, Stage

_START_PAUSES = (5.0, 15.0, 60.0)  # before the next round, where a worker's process could not begin

log = logging.getLogger("flashvideo_ray")

Graph = Callable[
    [pa.Table, Store, Settings, Mapping[str, Any], TrackerClient, Sequence[Stage], SharedCards], ray.data.Dataset
]
"""What makes the graph, of the stages that its rows need: `pipeline.build_graph`."""


class Rounds:
    """See the module's text. `store` is the run's, under `claim`; `extra` are the fields of carried columns.

    `ended` counts by status the candidates that ended, `left_out` are nodes and cards that a stage could not work on.
    `stopped` is a stage that failed whatever it got (what it had not begun is open), `lost` one that no node is left
    for. Candidates that failed where is left out are open again, each once.
    """

    def __init__(
        self,
        graph: Graph,
        store: Store,
        claim: Claim,
        record: jobs.Record,
        settings: Settings,
        recipe: Mapping[str, Any],
        extra: Sequence[pa.Field],
        quota: Quota | None,
        notifier: Notifier,
    ):
        self.graph, self.store, self.claim, self.record = graph, store, claim, record
        self.settings, self.recipe, self.extra, self.quota = settings, recipe, extra, quota
        self.ended: Counter[str] = Counter()
        self.left_out: list[Fault] = []
        self.stopped: Fault | None = None
        self.lost: Stage | None = None
        self._held = dict.fromkeys(STAGES, 0.0)  # seconds of actors, in rounds that are over
        self._failed: set[str] = set()  # candidates whose failure is in the ledger
        self._given_back: set[str] = set()
        self._pauses = iter(_START_PAUSES)
        self._broke_off = False
        self._balance = Balance(store, fixed=quota is not None)  # a quota may be used up at any moment
        self._watch = Watch(settings.notify, notifier)  # of all rounds: each thing once

    def run(self, work: Work, more: Callable[[], Work]) -> Work:
        """Round after round until there is no more work, or none that would come to an end. Returns what is left.

        Raises JobError where a pool can have no actor.
        """
        while work:
            before = len(self.left_out)
            enough = self._round(work)
            for fault in self.left_out[before:]:
                self.record.met(f"left out: {fault}")
            if self.stopped is None:
                self._give_back()
            done, work = work, more()
            if self.stopped is not None:
                self.record.met(f"stopped: {self.stopped}")
                break
            if work and (self._broke_off or len(self.left_out) > before):
                gc.collect()  # of the round that broke off: what it held of the cluster
                self.lost = cluster.nowhere(self.settings, self.left_out)
                if self.lost is not None:
                    break
                continue  # a new round does what the actors there held
            if enough or work.rows["clip_id"].equals(done.rows["clip_id"]):
                break  # or nothing came of it, and would not the next time
        return work

    def _give_back(self) -> None:
        """Open what failed where is left out by now: it was not the candidate's fault."""
        lost = {clip_id for fault in self.left_out for clip_id in fault.candidates}
        again = (lost & self._failed) - self._given_back
        if again:
            rows = tables.read(self.store, "clips", only=pa.array(sorted(again), pa.string()))
            tables.reopen(self.store, "clips", rows)
            self.ended["failed"] -= len(again)
            self._given_back |= again
            self._failed -= again

    def raise_if_lost(self) -> None:
        """Raise JobError if a stage cannot be loaded on any node that is left."""
        if self.lost is not None:
            raise JobError("\n".join(str(fault) for fault in self.left_out if fault.stage == self.lost))

    def _round(self, work: Work) -> bool:
        """What is decided becomes ledger rows, the rest goes through the graph. True if that is enough."""
        work.news.write(self.store)
        schema = tables.extended(tables.CLIPS, self.extra)
        Writer(self.store, "clips", schema, self.settings.ledger).write(work.decided)
        self.ended.update(work.decided["status"].to_pylist())
        if not work.rows.num_rows:
            return False
        came: set[str] = set()
        gate = gate_of(work, self.settings, self.quota, self._held)
        why = gate.over if gate is not None else None
        if why is None:
            why = self._run_graph(work, gate, came)
        if why is not None:
            ids = work.rows["clip_id"]
            left = work.rows.filter(pc.invert(pc.is_in(ids, pa.array(sorted(came), pa.string()))))
            for name, value in {"status": "skipped", "reason": why, "stage": None, "audit": None}.items():
                left = tables.with_column(left, name, value)
            Writer(self.store, "clips", schema, self.settings.ledger).write(left)
            self.ended["skipped"] += left.num_rows
        return why is not None

    def _run_graph(self, work: Work, gate: Gate | None, came: set[str]) -> str | None:
        """Run the graph over the rows and bring what comes out of it into the ledger.

        Returns why the job has enough, or None if all rows came out. Those that did are added to `came`.
        """
        settings, store = cluster.without(self.settings, self.left_out), self.store
        stages = stages_of(settings, work.until, work.previews)
        settings = self._balance.begin(settings, stages, work)
        # The ledger's rows wait in memory when the store is away; only what the stages put and get must wait there.
        held = HeldStore(store.url, 0.0, self.claim, store.clock)
        clips = Writer(held, "clips", tables.extended(tables.CLIPS, self.extra), settings.ledger)
        tracker = self._start_tracker(work, settings, gate)
        gated = gate is not None or self._balance.watches
        events = TrackerClient(tracker, answer, gated, cluster.here)
        patient = MeteredStore(store.url, settings.store_patience_seconds, events)
        cards = SharedCards(settings.pools, stages, cluster.needs)
        progress = Progress(settings, _totals(work, settings.select.keep), stages, self.ended)
        placement = Placement(settings.pools, settings.placement_patience_seconds)
        gauges = Gauges(store.url, settings, self.claim, sum(self.ended.values()))

        def tell(states: Mapping[Stage, StageState]) -> None:
            spent = self._spent(states)
            totals = progress.expected(states, self.ended)
            gauges.tell(states, totals, self.ended, spent, placement.seconds)
            self._watch.look(states, self.ended, spent)
            if states and (why := self._balance.look(states)) is not None:
                progress.say(why)
                ray.get(tracker.close.remote())

        arrivals = Arrivals(work.rows, clips, tracker, self.ended, self._failed, came)
        heartbeat = Heartbeat(self.claim, tracker, arrivals, progress, self.record, placement, tell)
        enough, last_patience, self._broke_off = None, LAST_SECONDS, False
        try:
            with datasets.data_context(partial(computing, tracker)), progress, heartbeat, cards:
                if self._balance.told is not None:
                    progress.say(self._balance.told)
                dataset = self.graph(work.rows, patient, settings, self.recipe, events, stages, cards)
                try:
                    self._collect(dataset, arrivals, heartbeat)
                except KeyboardInterrupt:
                    if not heartbeat.given_up:
                        raise
                del dataset  # Ray Data gives its actors back
                # Not `over`: a call may have begun since that was looked at, and none is waited for any more.
                enough = ray.get(tracker.enough.remote())
                if stopped := ray.get(tracker.stopped.remote()):
                    self.stopped = stopped[0]
                self._broke_off = self._balance.end()
            last_patience = max(last_patience, settings.store_patience_seconds)  # nobody waits for the end of this job
        except KeyboardInterrupt:
            self.claim.check()
            if heartbeat.no_place is not None:
                raise JobError(heartbeat.no_place) from None
            raise
        except RayError as error:
            # An actor whose node is left out ends the round like this, once the others are done.
            self.left_out.extend(faults := ray.get(tracker.faults.remote()))
            if not faults:
                self._wait_for_start(error, anew=bool(came))
        else:
            # Actors that got no row are missing, and held nothing up.
            self.left_out.extend(ray.get(tracker.faults.remote()))
        finally:
            # Each of them, whatever becomes of the others: a row that is lost here is paid for again.
            with ExitStack() as last:
                last.callback(ray.kill, tracker)
                last.callback(self.claim.report_to, None)
                # The last one first: a clip's row follows its preview's.
                last.callback(lambda: _insist(arrivals.write_clips, last_patience))
                last.callback(lambda: _insist(arrivals.write_previews, last_patience))
                last.callback(arrivals.take)
                last.callback(self.record.round_over)
                last.callback(lambda: self._note_use(ray.get(tracker.tick.remote())))
        self.claim.check()
        return enough

    def _note_use(self, states: Mapping[Stage, StageState]) -> None:
        """What the pools held and used in a round that is over."""
        self.record.used(used(states))
        for stage, state in states.items():
            self._held[stage] += state.held_seconds

    def _spent(self, states: Mapping[Stage, StageState]) -> tuple[float, str] | None:
        if self.quota is None:
            return None
        held = {stage: self._held[stage] + state.held_seconds for stage, state in states.items()}
        return self.quota.spent(self.settings.pools, held)

    def _wait_for_start(self, error: RayError, anew: bool) -> None:
        """Wait if a worker could not begin, for reasons of Ray's or of its host's such as a full disk; else raise.

        What a stage itself meets in loading it tells the tracker. The waits are counted `anew` once something was done.
        """
        if anew:
            self._pauses = iter(_START_PAUSES)
        began = isinstance(error, ActorDiedError) and error.actor_init_failed
        pause = next(self._pauses, None) if began else None
        if pause is None:
            raise error
        cause = str(error).splitlines()[-1]
        log.warning("a worker could not begin: %s; the others are started again in %g s", cause, pause)
        self.record.met(f"a worker could not begin: {cause}")
        self._broke_off = True
        time.sleep(pause)

    def _start_tracker(self, work: Work, settings: Settings, gate: Gate | None) -> Any:
        previews = tables.previews_schema(names_of(settings.score.scorers), self.extra)
        sizes = {stage: getattr(settings.pools, stage).actors for stage in STAGES}
        health = Health(settings.max_equal_failures, sizes, left_out=self.left_out)
        plain = Store(self.store.url, self.store.clock)
        tracker = start_tracker(plain, previews, settings.ledger, context_rows(work.context), gate, health)
        self.claim.report_to(tracker.permit.remote)
        return tracker

    def _collect(self, dataset: ray.data.Dataset, arrivals: Arrivals, heartbeat: Heartbeat) -> None:
        """Take what comes out of the graph, to its end or until the tracker says that no more will come."""
        batches: Iterator[pa.Table] = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
        for batch in batches:
            self.claim.check()
            heartbeat.came = time.monotonic()
            arrivals.add(batch)
            if heartbeat.over is not None and arrivals.in_calls >= heartbeat.over[1]:
                break  # what is left came to the gate after it was closed
            if heartbeat.stopped is not None and arrivals.in_calls >= heartbeat.stopped[1]:
                break
            if heartbeat.closed is not None and arrivals.in_calls >= heartbeat.closed:
                break


def stages_of(settings: Settings, until: Until, previews: bool) -> tuple[Stage, ...]:
    """The stages that a graph has; `previews` says whether some are still to be made."""
    wanted = {"text", *(("preview", *settings.score.stages) if previews else ())}
    wanted |= {"refine"} if until == "refine" else set()
    return tuple(stage for stage in STAGES if stage in wanted)


def gate_of(
    work: Work, settings: Settings, quota: Quota | None, held_seconds: Mapping[Stage, float] | None = None
) -> Gate | None:
    """What lets candidates begin until the quota is used up; None without one.

    `held_seconds` is what the pools have held in the job's earlier rounds, which its budget has paid for.
    """
    if quota is None:
        return None
    if work.until != "refine" and quota.accept is not None and work.rendered < quota.accept:
        quota = replace(quota, accept=None)  # all previews are wanted, to be judged together
    rows = work.rows
    waiting = rows["clip_id"].filter(pc.is_in(rows["status"], pa.array(["previewed", "approved"]))).to_pylist()
    spent = quota.held(settings.pools, held_seconds or {})
    return Gate(quota, settings.pools, work.rendered, set(waiting), spent_hours=spent)


def _insist(flush: Callable[[], None], patience_seconds: float) -> None:
    """Write the ledger's last rows, against a store that is away for so long. Each try in vain is told of.

    A try waits for the heartbeat's that is under way: its rows are among the last.
    """
    deadline, pause = time.monotonic() + patience_seconds, 1.0
    while True:
        try:
            return flush()
        except ClaimLostError:
            return  # what is left is for the job that has the run now
        except ActorDiedError:
            raise  # and the rows went with it
        except Exception as error:
            if time.monotonic() + pause > deadline:
                raise
            log.warning("the last rows are not written, trying again in %.0f s: %s", pause, in_a_line(error))
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_DELAY)


def _totals(work: Work, keep: int | None) -> dict[Stage, int]:
    """How many rows each stage gets at most, if `keep` candidates of a prompt survive."""
    rows = work.rows
    open_ = rows["id"].filter(pc.equal(rows["status"], "open"))
    fresh, prompts = len(open_), len(open_.unique())
    survivors = fresh if keep is None else min(fresh, keep * prompts)
    refine = rows.num_rows - fresh + survivors
    return {"text": rows.num_rows, "preview": fresh, "score": fresh, "rate": fresh, "refine": refine}
