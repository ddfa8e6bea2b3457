"""A run's beginning and end: its recipe, what is left to do, and the summary and report of what was done."""

from __future__ import annotations

import json
import logging
import platform
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray import accounting, audit, decisions, ledger, prompts, report, scorers, video, weights
from flashvideo_ray.nano import vocabulary
from flashvideo_ray.selection import SCORE, Opinion, audited, check_rules, select
from flashvideo_ray.settings import STAGES, Settings, SettingsError
from flashvideo_ray.stage_base import MISSING_SCORE
from flashvideo_ray.storage import Store

Until = Literal["preview", "refine"]
log = logging.getLogger("flashvideo_ray")


def recipe_of(settings: Settings) -> dict[str, Any]:
    """What a run has exactly one of. Models stand in it by fingerprint: where their files are does not matter."""
    recipe = settings.recipe()
    fingerprints = {}
    for stage in ("preview", "refine"):
        del recipe[stage]["model"]
        fingerprints[stage] = weights.fingerprint(getattr(settings, stage).model, stage)
    fps = weights.sampling_defaults(settings.preview.model, "preview")["fps"]
    return {**recipe, "fps": fps, "fingerprints": fingerprints}


def about(settings: Settings, candidates: int) -> dict[str, Any]:
    """What run.json records beside the recipe."""
    return {
        "settings": settings.model_dump(mode="json"),
        "candidates": candidates,
        "command": shlex.join(sys.argv),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("flashvideo-ray", "ray", "torch", "diffusers", "transformers")},
        },
    }


def provenance(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Which settings and weights made a file, for the file itself."""
    return {
        "comment": "made by flashvideo-ray",
        "settings": json.dumps({stage: recipe[stage] for stage in ("preview", "refine")}),
        "model_fingerprints": json.dumps(recipe["fingerprints"]),
    }


def check_scoring(settings: Settings) -> None:
    """Raise SettingsError or RuleError if a scorer or a requirement of the settings cannot be used."""
    try:
        known = [name for spec in settings.score.scorers for name in scorers.check(spec.name, spec.options)]
    except ValueError as error:
        raise SettingsError(f"score.scorers: {error}") from None
    twice = sorted(name for name, count in Counter(known).items() if count > 1)
    if twice:
        raise SettingsError(f"score.scorers: {', '.join(twice)} would be given by two scorers; leave one out")
    check_rules(settings.select, known)


def check_video(settings: Settings) -> None:
    """Raise SettingsError if clips cannot be encoded so. NVENC is looked for where the clips are made, not here."""
    own = settings.video
    if own.codec != "libx264":
        return
    try:
        video.check_encoder(own.codec, own.encoder_preset)
    except RuntimeError as error:
        raise SettingsError(f"video.encoder_preset: {error}") from None


def warn_of_prompts(table: pa.Table, settings: Settings) -> None:
    """Say what will be cut or have no trained meaning; nothing of it stops a run."""
    longest = max((_prefix(settings, "preview"), _prefix(settings, "refine")), key=len)
    texts = [longest + prompt for prompt in table["prompt"].to_pylist()]
    counts, limit = weights.count_tokens(settings.preview.model, texts)
    cut = [(row, count) for row, count in enumerate(counts, start=1) if count > limit]
    if cut:
        shown = ", ".join(f"row {row} ({count})" for row, count in cut[: prompts.SHOWN])
        more = f" and {len(cut) - prompts.SHOWN} more" if len(cut) > prompts.SHOWN else ""
        log.warning(
            "%d of %d prompts have more than %d tokens and are cut there: %s%s",
            len(cut),
            len(counts),
            limit,
            shown,
            more,
        )
    if settings.preview.model == "nano":
        unknown = Counter(word for prompt in table["prompt"].to_pylist() for word in vocabulary.unknown_words(prompt))
        if unknown:
            log.warning(
                "the nano model does not know %d words of these prompts: %s; it was trained on prompts such as: %s",
                len(unknown),
                ", ".join(word for word, _ in unknown.most_common(20)) + (" …" if len(unknown) > 20 else ""),
                vocabulary.EXAMPLES[0],
            )
    negatives = sum(bool(text) for text in table["negative_prompt"].to_pylist())
    if negatives:
        log.warning(
            "%d prompts have a negative_prompt: FlashVideo was trained without any, its own is all zeros", negatives
        )


def _prefix(settings: Settings, stage: weights.ModelStage) -> str:
    return weights.sampling_defaults(getattr(settings, stage).model, stage).get("prompt_prefix", "")


def check_retry(retry: str | None) -> None:
    """Raise SettingsError unless it is None, `failed` or `failed:ErrorClass`."""
    if retry is not None and (retry.partition(":")[0] != "failed" or retry.endswith(":")):
        raise SettingsError(f"--retry {retry}: write failed, or failed:ErrorClass as `status` and the report show it")


@dataclass(frozen=True)
class Work:
    """What is left to do: one round of a job.

    `rows` go through the graph, those that have a preview first. `context` holds previews of further candidates of
    their prompts, to be compared with. `decided` need nothing more than their row in the ledger.
    """

    rows: pa.Table
    context: pa.Table
    decided: pa.Table
    until: Until

    def __bool__(self) -> bool:
        return bool(self.rows.num_rows or self.decided.num_rows)


def next_work(
    store: Store,
    table: pa.Table | None,
    schema: pa.Schema,
    settings: Settings,
    until: Until = "refine",
    retry: str | None = None,
    more: Callable[[], pa.Table] | None = None,
) -> Work:
    """The candidates that have not ended, and how far to take them in the next round.

    Args:
        table: the candidates that the job is about; None for all that have a preview.
        schema: of rows of the graph.
        retry: as `check_retry` lets pass; failed candidates are taken up again.
        more: further candidates of the prompts in `table`, for those none of whose candidates survived.

    Rules that look at the whole run need all previews first: then a round makes previews, and the next one goes on. A
    preview whose latents were pruned is made anew if it is needed.
    """
    if table is not None:
        _check_carried(store, table)
    previews = judged(ledger.read(store, "previews"), settings, decisions.opinions(store))
    clips = ledger.read(store, "clips", ["clip_id", "status", "stage", "error_class", "clip"])
    over = _ended(previews, clips, settings, retry)
    if table is not None and more is not None and settings.select.draw:
        table = _with_more(table, more, previews, over, clips)
    previews = previews.filter(pc.or_(previews["latents"].is_valid(), pc.is_in(previews["clip_id"], over)))
    if table is not None:
        previews_here = previews.filter(pc.is_in(previews["clip_id"], table["clip_id"].combine_chunks()))
        fresh = _without(_without(table, previews["clip_id"]), over)
    else:
        previews_here, fresh = previews, previews.slice(0, 0)
    ready = _without(previews_here, over)
    if fresh.num_rows and settings.candidates > 1:
        # Candidates whose prompt has others still to come are judged with them, and go on in the next round.
        context = previews_here.filter(pc.is_in(previews_here["id"], fresh["id"].combine_chunks()))
        ready = _without(ready, context["clip_id"])
    else:
        context = previews.slice(0, 0)
    lost = pc.and_(pc.is_in(ready["status"], pa.array(["rejected", "failed"])), pc.invert(ready["audit"]))
    decided, survivors = ready.filter(lost), ready.filter(pc.invert(lost))
    if until == "preview":
        survivors = survivors.slice(0, 0)
    if fresh.num_rows and settings.select.needs_whole_run:
        until, survivors, decided = "preview", survivors.slice(0, 0), decided.slice(0, 0)
    rows = [as_rows(survivors, schema), as_rows(_grouped(fresh, context), schema)]
    return Work(pa.concat_tables(rows), context, as_rows(decided, schema), until)


def judged(previews: pa.Table, settings: Settings, people: Mapping[str, Opinion]) -> pa.Table:
    """Previews with what selection says of them now: `status`, `reason`, `rank`, `stage`, `audit` and the error."""
    verdicts = select(previews, settings.select, people)
    status = verdicts["status"]
    for name in ("status", "reason", "rank"):
        previews = previews.set_column(previews.schema.get_field_index(name), name, verdicts[name])
    out, failed = pc.is_in(status, pa.array(["rejected", "failed"])), pc.equal(status, "failed")
    by_rule = [False] * previews.num_rows
    if settings.select.audit:
        by_rule = [
            said == "rejected" and clip_id not in people and audited(clip_id, settings.select.audit)
            for clip_id, said in zip(previews["clip_id"].to_pylist(), status.to_pylist(), strict=True)
        ]
    null = pa.scalar(None, pa.string())
    return (
        previews.append_column("stage", pc.if_else(out, settings.score.stages[-1], null))
        .append_column("audit", pa.array(by_rule, pa.bool_()))
        .append_column("error_class", pc.if_else(failed, MISSING_SCORE, null))
        .append_column("error", pc.if_else(failed, verdicts["reason"], null))
    )


def _ended(previews: pa.Table, clips: pa.Table, settings: Settings, retry: str | None) -> pa.Array:
    """The candidates that need nothing more, as selection is now."""
    status = dict(zip(previews["clip_id"].to_pylist(), previews["status"].to_pylist(), strict=True))
    audit = dict(zip(previews["clip_id"].to_pylist(), previews["audit"].to_pylist(), strict=True))
    _, _, wanted_class = (retry or "").partition(":")
    over = []
    for row in clips.select(["clip_id", "status", "stage", "error_class", "clip"]).to_pylist():
        clip_id, was, now = row["clip_id"], row["status"], status.get(row["clip_id"])
        if was == "rendered":
            done = True
        elif was == "rejected":
            done = now in ("rejected", "failed", None) and bool(row["clip"] or not audit.get(clip_id))
        elif was == "failed" and row["error_class"] == MISSING_SCORE:
            done = now == "failed"
        elif was == "failed":
            done = retry is None or bool(wanted_class and wanted_class != row["error_class"])
        else:
            done = False  # skipped
        if done:
            over.append(clip_id)
    return pa.array(over, pa.string())


def _with_more(
    table: pa.Table, more: Callable[[], pa.Table], previews: pa.Table, over: pa.Array, clips: pa.Table
) -> pa.Table:
    """The table, and further candidates of the prompts all of whose candidates were judged and none survived."""
    gone = pc.is_in(previews["status"], pa.array(["rejected", "failed"]))
    lost = set(previews.filter(gone)["clip_id"].to_pylist())
    lost |= set(clips.filter(pc.equal(clips["status"], "failed"))["clip_id"].to_pylist()) & set(over.to_pylist())
    hopeful = {
        prompt
        for clip_id, prompt in zip(table["clip_id"].to_pylist(), table["id"].to_pylist(), strict=True)
        if clip_id not in lost
    }
    further = more()
    return pa.concat_tables(
        [table, further.filter(pc.invert(pc.is_in(further["id"], pa.array(sorted(hopeful), pa.string()))))]
    )


def _grouped(fresh: pa.Table, context: pa.Table) -> pa.Table:
    """Open candidates, each with how many of its prompt are to be judged together."""
    others = Counter(context["id"].to_pylist())
    ids = fresh["id"].to_pylist()
    sizes = Counter(ids)
    group = pa.array([sizes[prompt] + others[prompt] for prompt in ids], pa.int32())
    status = pa.array(["open"] * fresh.num_rows, pa.string())
    fresh = fresh.drop_columns([name for name in ("status", "audit") if name in fresh.column_names])
    return fresh.append_column("group", group).append_column("status", status)


def context_rows(context: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """Previews to compare with, by prompt, as rows of the graph are compared."""
    names = [name for name in context.column_names if name.startswith(SCORE) and name != "score_seconds"]
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in context.select(["clip_id", "id", "candidate", "scorer_errors", "status", *names]).to_pylist():
        scores = [(name.removeprefix(SCORE), row.pop(name)) for name in names]
        by_prompt.setdefault(row["id"], []).append({**row, "scores": scores, "context": True})
    return by_prompt


def _without(table: pa.Table, clip_ids: pa.Array | pa.ChunkedArray) -> pa.Table:
    values = clip_ids.combine_chunks() if isinstance(clip_ids, pa.ChunkedArray) else clip_ids
    return table.filter(pc.invert(pc.is_in(table["clip_id"], values)))


def _check_carried(store: Store, table: pa.Table) -> None:
    """Raise PromptError if a column of the prompts has another type in the ledger, which could not be read then."""
    carried = [name for name in table.column_names if name not in ledger.CLIPS.names]
    for which in ("clips", "previews"):
        there = ledger.read(store, which, carried).schema
        for name in carried:
            if name in there.names and there.field(name).type not in (table.schema.field(name).type, pa.null()):
                now, before = table.schema.field(name).type, there.field(name).type
                raise prompts.PromptError(
                    f"column {name!r} holds {now}, and held {before} in the prompts that this run was started with; "
                    "make them the same, or use another OUTPUT"
                )


def as_rows(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with exactly the schema's columns; what it does not have is null."""
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def finish(
    store: Store, settings: Settings, seconds: float = 0.0, usage: Mapping[str, Mapping[str, float]] | None = None
) -> dict[str, int]:
    """Write summary.json and report.html from the ledger, after a job of so many seconds of wall time.

    `usage` is what the job's pools held and used, by stage, in seconds of actors. Returns how many candidates have each
    status.
    """
    run = ledger.read_run(store)
    if run is None:
        raise ledger.NoRunError(f"{store.url}: no run here (no run.json)")
    previews, clips = ledger.read(store, "previews"), ledger.read(store, "clips")
    before = _summary(store)
    summary = report.summarise(previews, clips)
    summary["wall_seconds"] = before.get("wall_seconds", 0.0) + seconds
    summary["pools"] = _added(before.get("pools", {}), usage or {})
    for stage, numbers in summary["stages"].items():
        cards = getattr(settings.pools, stage).num_gpus if stage in STAGES else 0
        numbers["gpu_seconds"] = round(cards * numbers["seconds"], 3)
    from flashvideo_ray import estimates  # it needs torch, which `status` and the like do not

    operations = estimates.known_operations(settings)
    summary["bill"] = accounting.as_dict(accounting.bill(previews, clips, settings, summary["pools"], operations))
    store.put("summary.json", json.dumps(summary, indent=2).encode())
    page = report.write_report(
        previews,
        clips,
        run,
        summary,
        audit=audit.read(store),
        poster=lambda key: _bytes(store, key),
        title=store.url.rstrip("/").rpartition("/")[2],
    )
    store.put("report.html", page.encode())
    return statuses(previews, clips)


def _added(before: Mapping[str, Any], now: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """What the pools held and used in all jobs of the run."""
    return {
        stage: {
            name: round(before.get(stage, {}).get(name, 0.0) + now.get(stage, {}).get(name, 0.0), 3)
            for name in ("held_seconds", "busy_seconds")
        }
        for stage in dict.fromkeys([*before, *now])
    }


def statuses(previews: pa.Table, clips: pa.Table) -> dict[str, int]:
    """How many candidates have each status; one that has not ended counts as its preview says."""
    state = dict(zip(previews["clip_id"].to_pylist(), previews["status"].to_pylist(), strict=True))
    state |= dict(zip(clips["clip_id"].to_pylist(), clips["status"].to_pylist(), strict=True))
    return dict(Counter(state.values()))


def _summary(store: Store) -> dict[str, Any]:
    """Of the jobs before this one."""
    try:
        return dict(json.loads(store.get("summary.json")))
    except (FileNotFoundError, ValueError):
        return {}


def _bytes(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key)
    except FileNotFoundError:
        return None
