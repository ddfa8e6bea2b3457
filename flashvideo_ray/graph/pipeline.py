"""The pipeline: prompts to previews to clips, as one Ray Data graph that reads top to bottom (`build_graph`)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data

from flashvideo_ray import identity, prompts
from flashvideo_ray.graph import (
    checks,
    datasets,
    ending,
    fetching,
    finish,
    labels,
    logs,
    nightly,
    remaining,
    scoring,
    stages,
)
from flashvideo_ray.graph.bundles import bundled
from flashvideo_ray.graph.job import Job, RunResult, run_job
from flashvideo_ray.graph.quota import Quota
from flashvideo_ray.graph.recipe import about, recipe_of, sizes, with_added_scorers
from flashvideo_ray.graph.remaining import Until
from flashvideo_ray.graph.rounds import stages_of
from flashvideo_ray.graph.shared_cards import SharedCards
from flashvideo_ray.graph.stage_base import PAYLOAD, row_schema
from flashvideo_ray.graph.tracker_client import TrackerClient
from flashvideo_ray.ledger import run_file
from flashvideo_ray.ledger.shard import Shard
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.media import provenance
from flashvideo_ray.settings import STAGES, Settings, Stage

__all__ = ["RunResult", "build_graph", "preview", "refine", "render"]


def render(
    prompt_url: str,
    output: str,
    settings: Settings | None = None,
    *,
    until: Until = "refine",
    retry: str | None = None,
    takeover: bool = False,
    quota: Quota | None = None,
    relabel: bool = False,
    only: str | None = None,
    not_in: Sequence[str] = (),
    shard: Shard | None = None,
) -> RunResult:
    """Render prompts into OUTPUT: text, preview, score, refine, publish.

    Starts a run or takes one up: candidates that ended before are not done again, and a finished preview is kept.
    `until="preview"` stops after stage 1 and scores. `retry="failed"` takes up candidates that failed, and
    `retry="failed:OutOfMemoryError"` those of one class. One job at a time works on a run: another one is refused until
    the first has ended or has not been heard of for `ledger.lease_seconds`, unless `takeover`. With a `quota` the job
    ends when it has enough; what is left is `skipped`, and taken up by a later job. Candidates that the run has under
    other ids or with other carried columns are refused, or get the new ones with `relabel`. `only` takes a part of the
    prompts: a condition on their columns, or ids. Prompts that one of the runs `not_in` has done are left out; what
    they skipped, failed or left open is carried over. Of a `shard` the job is about that share of the prompts, beside
    jobs on the others, into one ledger; it has its share of a quota's clips.
    Raises an InputError of its kind (PromptError, SettingsError, RuleError, ModelNotFoundError, RecipeError,
    PlacementError, ClaimedError) before anything is started.
    """
    settings = settings or Settings()
    logs.use(settings.log_format)
    with ending.told(output, settings, shard) as end:
        end.result = _render(
            prompt_url, output, settings, until, retry, takeover, quota, relabel, only, not_in, shard, end
        )
    return end.result


def _render(
    prompt_url: str,
    output: str,
    settings: Settings,
    until: Until,
    retry: str | None,
    takeover: bool,
    quota: Quota | None,
    relabel: bool,
    only: str | None,
    not_in: Sequence[str],
    shard: Shard | None,
    end: ending.Ending,
) -> RunResult:
    started = time.monotonic()
    store = Store(output)
    checks.check_retry(retry)
    checks.check_quota(quota, until)
    settings = with_added_scorers(settings, run_file.read_run(store))
    rows = nightly.without_done(checks.read_prompts(prompt_url, settings, only), not_in)
    if not rows.num_rows:
        return RunResult(store.url, {}, {}, time.monotonic() - started)
    settings = checks.with_previews(settings, rows)
    settings = checks.check(settings, [s for s in STAGES if s != "refine" or until == "refine"])
    recipe = recipe_of(settings)
    if prompts.CANDIDATE not in rows.column_names:  # else each row is one, of a run that held them
        checks.check_count(rows.num_rows, settings)
    checks.check_shard(shard, settings, until)
    fingerprint = recipe["fingerprints"]["preview"]

    def candidates(first: int, count: int) -> pa.Table:
        return identity.candidates(rows, count, settings.stage1_recipe(), fingerprint, first)

    told = about(settings, rows.num_rows * (1 if prompts.CANDIDATE in rows.column_names else settings.candidates))
    if shard is not None:
        identity.check_distinct(rows, settings.candidates, settings.stage1_recipe(), fingerprint)
        rows = shard.of(rows)
        if not rows.num_rows:
            return RunResult(store.url, {}, {}, time.monotonic() - started)
    checks.warn_of_prompts(rows, settings)
    run_file.check_recipe(store, recipe)
    rows = labels.agreed(store, rows)
    table = candidates(0, settings.candidates)
    extra = [field for field in table.schema if field.name not in row_schema().names]
    schema = row_schema(extra)

    def next_work(run: Store, again: str | None) -> remaining.Work:
        more = partial(candidates, settings.candidates, settings.select.draw)
        return remaining.next_work(run, table, schema, settings, until, again, more, relabel, shard)

    needed = stages_of(settings, until, previews=True)
    quota = quota.part(shard) if quota is not None else None
    job = Job(store, settings, recipe, told, needed, next_work, extra, takeover, retry, quota, end, shard)
    return run_job(job, build_graph, started)


def preview(
    prompt_url: str,
    output: str,
    settings: Settings | None = None,
    *,
    retry: str | None = None,
    takeover: bool = False,
    quota: Quota | None = None,
    relabel: bool = False,
    only: str | None = None,
) -> RunResult:
    """Stage 1 and scores only; `refine` takes it from there, whenever and wherever."""
    return render(
        prompt_url,
        output,
        settings,
        until="preview",
        retry=retry,
        takeover=takeover,
        quota=quota,
        relabel=relabel,
        only=only,
    )


def refine(
    output: str,
    settings: Settings | None = None,
    *,
    retry: str | None = None,
    takeover: bool = False,
    quota: Quota | None = None,
) -> RunResult:
    """Stage 2 for all survivors of a run that have no clip yet, and what people approved, from their kept latents.

    `settings` defaults to those the run was started with; the others are as in `render`. Raises NoRunError where there
    is no run, and what `render` raises.
    """
    started = time.monotonic()
    checks.check_retry(retry)
    store = Store(output)
    run = run_file.read_run(store)
    if run is None:
        raise run_file.NoRunError(f"{output}: no run here (no run.json); start one with render or preview")
    settings = settings or finish.settings_of(store, run)
    logs.use(settings.log_format)
    with ending.told(output, settings) as end:
        end.result = _refine(store, run, settings, retry, takeover, quota, started, end)
    return end.result


def _refine(
    store: Store,
    run: Mapping[str, Any],
    settings: Settings,
    retry: str | None,
    takeover: bool,
    quota: Quota | None,
    started: float,
    end: ending.Ending,
) -> RunResult:
    settings = with_added_scorers(settings, run)
    settings = checks.check(settings, ("text", "refine"))
    recipe = recipe_of(settings)
    run_file.check_recipe(store, recipe)
    extra = labels.fields(store)

    def next_work(run: Store, again: str | None) -> remaining.Work:
        return remaining.next_work(run, None, row_schema(extra), settings, retry=again)

    record = {"settings": settings.model_dump(mode="json"), "sizes": sizes(settings)}
    needed = stages_of(settings, "refine", previews=False)
    job = Job(store, settings, recipe, record, needed, next_work, extra, takeover, retry, quota, end)
    return run_job(job, build_graph, started)


def build_graph(
    rows: pa.Table,
    store: Store,
    settings: Settings,
    recipe: Mapping[str, Any],
    events: TrackerClient,
    needed: Sequence[Stage],
    cards: SharedCards,
) -> ray.data.Dataset:
    """The graph. Rows have the schema of `row_schema`, and only those that are out when they are judged leave it early.

    `needed` are the stages that a row needs: no others are opened.
    """
    pools = settings.pools
    text = {"settings": settings, "events": events, "fingerprints": recipe["fingerprints"]}
    common = {"settings": settings, "events": events, "store": store}
    publishing = {**common, "fps": recipe["fps"], "provenance": provenance.of_run(recipe, settings)}

    # A block is the unit of streaming: with one row in each, the first clip is done while previews are being made.
    # At first a row holds all candidates with the same text, which is encoded once, for the stages that are to come.
    ds = datasets.dataset_of(bundled(rows, "prompt"))
    readers = [stage for stage in needed if stage in ("preview", "refine")]
    ds = ds.map_batches(
        stages.EncodeTexts,
        fn_constructor_kwargs={**text, "readers": readers},
        **datasets.map_options(pools.text, same_rows=False, cards=cards.next_of("text")),
    )

    # Rows that already have a preview pass through these, if others need them.
    if "preview" in needed:
        ds = ds.map_batches(
            fetching.stage_1(settings),
            fn_constructor_kwargs={**text, "store": store},
            **datasets.map_options(pools.preview, calls=datasets.PUBLISHING_CALLS, cards=cards.next_of("preview")),
        )
    # Candidates of one prompt leave the last of the scoring stages together, when all of them are judged.
    for name in (stage for stage in settings.score.stages if stage in needed):
        ds = ds.map_batches(
            scoring.Rate if name == "rate" else scoring.Score,
            fn_constructor_kwargs=publishing,
            **datasets.map_options(
                getattr(pools, name), same_rows=name != settings.score.stages[-1], cards=cards.next_of(name)
            ),
        )
    if "refine" not in needed:
        return ds.drop_columns(list(PAYLOAD), **datasets.GLUE)

    # Only survivors cost anything here. 1080p frames stay in the actor: what leaves it is an MP4, for the store.
    return ds.map_batches(
        stages.Refine,
        fn_constructor_kwargs=publishing,
        **datasets.map_options(pools.refine, calls=datasets.PUBLISHING_CALLS, cards=cards.next_of("refine")),
    )
