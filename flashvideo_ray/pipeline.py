"""The pipeline: prompts to previews to clips, as one Ray Data graph that reads top to bottom (`build_graph`)."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flashvideo_ray import cluster, ledger, prompts, runs, scorers, stage_base, stages, weights
from flashvideo_ray.claim import Claim, Identity
from flashvideo_ray.patient import PatientStore
from flashvideo_ray.progress import Progress
from flashvideo_ray.runs import Until
from flashvideo_ray.settings import STAGES, Settings, Stage
from flashvideo_ray.storage import Store
from flashvideo_ray.tracker import Tracker, TrackerClient

_LAST_FLUSH_SECONDS = 60.0
_CHUNK = 1000  # candidates in one block of the input
log = logging.getLogger("flashvideo_ray")


@dataclass(frozen=True)
class RunResult:
    """What a job did: how the candidates ended that it worked on, and the state of the whole run."""

    output: str
    ended: dict[str, int]  # by status, in this job
    total: dict[str, int]  # by status, in the run
    seconds: float

    @property
    def exit_status(self) -> int:
        """0: all candidates that ended are rendered or rejected; 3: some failed."""
        return 3 if self.total.get("failed") else 0


def render(
    prompt_url: str,
    output: str,
    settings: Settings | None = None,
    *,
    until: Until = "refine",
    retry: str | None = None,
    takeover: bool = False,
) -> RunResult:
    """Render prompts into OUTPUT: text, preview, score, refine, publish.

    Starts a run or takes one up: candidates that ended before are not done again, and a finished preview is kept.
    `until="preview"` stops after stage 1 and scores. `retry="failed"` takes up candidates that failed, and
    `retry="failed:OutOfMemoryError"` those of one class. One job at a time works on a run: another one is refused until
    the first has ended or has not been heard of for `ledger.lease_seconds`, unless `takeover`.
    Raises an InputError of its kind (PromptError, SettingsError, RuleError, ModelNotFoundError, RecipeError,
    PlacementError, ClaimedError) before anything is started.
    """
    started = time.monotonic()
    settings = weights.with_model_defaults(settings or Settings())
    runs.check_retry(retry)
    runs.check_rules(settings)
    weights.check_sizes(settings)
    recipe = runs.recipe_of(settings)
    table = prompts.read_prompts(prompt_url, base_seed=settings.seed, reserved=[*stage_base.row_schema().names, "at"])
    runs.warn_of_prompts(table, settings)
    table = prompts.candidates(table, settings.candidates, settings.stage1_recipe(), recipe["fingerprints"]["preview"])
    store = Store(output)
    ledger.check_recipe(store, recipe)
    extra = [field for field in table.schema if field.name not in stage_base.row_schema().names]
    about = runs.about(settings, table)

    def open_rows() -> pa.Table:
        return runs.open_rows(store, table, stage_base.row_schema(extra), settings, until, retry)

    return _run(_Job(store, settings, recipe, about, open_rows, extra, until, takeover), started)


def preview(
    prompt_url: str,
    output: str,
    settings: Settings | None = None,
    *,
    retry: str | None = None,
    takeover: bool = False,
) -> RunResult:
    """Stage 1 and scores only; `refine` takes it from there, whenever and wherever."""
    return render(prompt_url, output, settings, until="preview", retry=retry, takeover=takeover)


def refine(
    output: str, settings: Settings | None = None, *, retry: str | None = None, takeover: bool = False
) -> RunResult:
    """Stage 2 for all survivors of a run that have no clip yet, from their kept latents.

    `settings` defaults to those the run was started with; `retry` and `takeover` are as in `render`. Raises NoRunError
    where there is no run, and what `render` raises.
    """
    started = time.monotonic()
    runs.check_retry(retry)
    store = Store(output)
    run = ledger.read_run(store)
    if run is None:
        raise ledger.NoRunError(f"{output}: no run here (no run.json); start one with render or preview")
    settings = weights.with_model_defaults(settings or Settings.of_tree(run["settings"], where="run.json"))
    runs.check_rules(settings)
    recipe = runs.recipe_of(settings)
    ledger.check_recipe(store, recipe)
    own = {*stage_base.row_schema().names, "at"}
    extra = [field for field in ledger.read(store, "previews").schema if field.name not in own]
    extra = [field for field in extra if not field.name.startswith("score_")]

    def open_rows() -> pa.Table:
        return runs.survivors(store, stage_base.row_schema(extra), settings, retry)

    return _run(_Job(store, settings, recipe, {}, open_rows, extra, "refine", takeover), started)


def build_graph(
    rows: pa.Table, store: Store, settings: Settings, recipe: Mapping[str, Any], events: TrackerClient, until: Until
) -> ray.data.Dataset:
    """The graph. Rows have the schema of `row_schema` and never leave the dataset, whatever becomes of them."""
    pools = settings.pools
    text = {"settings": settings, "events": events}
    common = {**text, "store": store}
    publishing = {**common, "fps": recipe["fps"], "provenance": runs.provenance(recipe)}

    # A block is the unit of streaming: with one row in each, the first clip is done while previews are being made.
    chunks = [rows.slice(start, _CHUNK) for start in range(0, rows.num_rows, _CHUNK)]
    ds: ray.data.Dataset = ray.data.from_arrow([chunk.combine_chunks() for chunk in chunks])
    ds = ds.repartition(target_num_rows_per_block=1)

    # Text is encoded once, for both stages.
    ds = ds.map_batches(stages.EncodeText, fn_constructor_kwargs=text, **cluster.map_options(pools.text))

    # Rows that already have a preview pass through these two.
    ds = ds.map_batches(stages.Preview, fn_constructor_kwargs=common, **cluster.map_options(pools.preview))
    ds = ds.map_batches(stages.Score, fn_constructor_kwargs=publishing, **cluster.map_options(pools.score))
    if until == "preview":
        return ds.drop_columns(list(stage_base.PAYLOAD))

    # Only survivors cost anything here. 1080p frames stay in the actor: what leaves it is an MP4, for the store.
    return ds.map_batches(
        stages.Refine,
        fn_constructor_kwargs=publishing,
        **cluster.map_options(pools.refine, calls=cluster.REFINE_CALLS),
    )


@dataclass(frozen=True)
class _Job:
    """What one job has to do: the open rows of a run (read from its ledger when asked), and how far to take them."""

    store: Store
    settings: Settings
    recipe: Mapping[str, Any]
    about: Mapping[str, Any]
    open_rows: Callable[[], pa.Table]
    extra: list[pa.Field]
    until: Until
    takeover: bool


def _run(job: _Job, started: float) -> RunResult:
    """Do the job, if there is anything to do, and bring the summary and the report up to date."""
    ended: Counter[str] = Counter()
    if job.open_rows().num_rows:
        cluster.connect(job.settings.pools)
        identity = Identity.of_this_process()
        with Claim(job.store, identity, job.settings.ledger.lease_seconds, job.takeover) as claim:
            # Read again: another job may have worked on the run until just now.
            rows = job.open_rows()
            ledger.open_run(job.store, job.recipe, job.about)
            if rows.num_rows:
                _run_graph(job, rows, claim, ended)
                ledger.compact(job.store)
            total = runs.finish(job.store, job.settings.pools, time.monotonic() - started)
    else:
        total = runs.finish(job.store, job.settings.pools)
    return RunResult(job.store.url, dict(ended), total, time.monotonic() - started)


def _run_graph(job: _Job, rows: pa.Table, claim: Claim, ended: Counter[str]) -> None:
    """Run the graph over the rows and bring what comes out of it into the ledger."""
    settings, store = job.settings, job.store
    names = [f"score_{name}" for spec in settings.score.scorers for name in scorers.resolve(spec.name).names]
    scores = [pa.field(name, pa.float64()) for name in names]
    # The ledger's rows wait in memory when the store is away; only what the stages put and get must wait there.
    clips = ledger.Writer(store, "clips", ledger.extended(ledger.CLIPS, job.extra), settings.ledger)
    # On this node, which the run cannot outlive anyway, and without a CPU: it answers short questions.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    tracker: Any = (
        ray.remote(Tracker)
        .options(num_cpus=0, scheduling_strategy=here)
        .remote(store, ledger.extended(ledger.PREVIEWS, [*job.extra, *scores]), settings.ledger)
    )
    _stop_on_sigterm()
    _configure_data()
    patient = PatientStore(store.url, settings.store_patience_seconds)
    graph = build_graph(rows, patient, settings, job.recipe, TrackerClient(tracker, ray.get), job.until)
    shown = STAGES if job.until == "refine" else STAGES[:-1]
    progress = Progress(settings, _totals(rows, job.until), shown)
    try:
        with progress, _Heartbeat(tracker, clips, progress, ended):
            batches: Iterator[pa.Table] = iter(graph.iter_batches(batch_size=None, batch_format="pyarrow"))
            for batch in batches:
                claim.check()
                for row in batch.to_pylist():
                    ended[row["status"]] += 1
                    if row["status"] != "previewed":
                        clips.append(row)
    finally:
        # Each of them, whatever becomes of the others: a row that is lost here is paid for again.
        with ExitStack() as last:
            last.callback(ray.kill, tracker)
            last.callback(lambda: _insist(clips.flush))
            # The last one first: a clip's row follows its preview's.
            last.callback(lambda: _insist(lambda: ray.get(tracker.flush.remote())))


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
    """Once a second: rows that are due become durable, and progress is shown."""

    def __init__(self, tracker: Any, clips: ledger.Writer, progress: Progress, ended: Mapping[str, int]):
        self._tracker, self._clips, self._progress, self._ended = tracker, clips, progress, ended
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(_LAST_FLUSH_SECONDS)
        self._once(last=True)

    def _beat(self) -> None:
        while not self._stop.wait(1.0):
            self._once()

    def _once(self, last: bool = False) -> None:
        """Errors are told and left to the next beat: rows stay in memory until they are written."""
        try:
            states = ray.get(self._tracker.tick.remote())  # first: a clip's row follows its preview's
            self._clips.flush_if_due()
            self._progress.update(states, self._ended, last)
        except Exception as error:
            log.warning("ledger not written, trying again: %s: %s", type(error).__name__, error)


def _stop_on_sigterm() -> None:
    """SIGTERM (`ray job stop`, a node that is taken away) stops a job the way Ctrl-C does: the ledger is written."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _configure_data() -> None:
    """Ray Data for long rows: keep nothing in order, wait as long as it takes, and leave the talking to us."""
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = False
    context.execution_no_progress_timeout_s = 24 * 3600  # waiting for a spot card can take hours
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it says that its bars are off


def _totals(rows: pa.Table, until: Until) -> dict[Stage, int]:
    statuses = Counter(rows["status"].to_pylist())
    fresh, kept = statuses["open"], statuses["previewed"]
    return {
        "text": fresh + (kept if until == "refine" else 0),
        "preview": fresh,
        "score": fresh,
        "refine": fresh + kept,
    }
