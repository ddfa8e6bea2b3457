"""A run's beginning and end: its recipe, what is left to do, and the summary and report of what was done."""

from __future__ import annotations

import json
import logging
import platform
import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray import ledger, prompts, report, scorers, stages, weights
from flashvideo_ray.nano import vocabulary
from flashvideo_ray.selection import Requirement, check_names, decide
from flashvideo_ray.settings import STAGES, Pools, Settings, SettingsError
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


def about(settings: Settings, table: pa.Table) -> dict[str, Any]:
    """What run.json records beside the recipe."""
    return {
        "settings": settings.model_dump(mode="json"),
        "candidates": table.num_rows,
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


def check_rules(settings: Settings) -> None:
    """Raise SettingsError or RuleError if a scorer or a requirement of the settings cannot be used."""
    try:
        known = [name for spec in settings.score.scorers for name in scorers.load(spec.name, spec.options).names]
    except ValueError as error:
        raise SettingsError(f"score.scorers: {error}") from None
    twice = sorted(name for name, count in Counter(known).items() if count > 1)
    if twice:
        raise SettingsError(f"score.scorers: {', '.join(twice)} would be given by two scorers; leave one out")
    check_names([Requirement.parse(text) for text in settings.select.require], known)


def warn_of_prompts(table: pa.Table, settings: Settings) -> None:
    """Say what will be cut or have no trained meaning; nothing of it stops a run."""
    longest = max((_prefix(settings, "preview"), _prefix(settings, "refine")), key=len)
    texts = [longest + prompt for prompt in table["prompt"].to_pylist()]
    counts, limit = stages.count_tokens(settings.preview.model, texts)
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


def ended(store: Store, retry: str | None = None) -> set[str]:
    """The candidates that have ended and are not to be taken up again."""
    clips = ledger.read(store, "clips", ["clip_id", "status", "error_class"])
    if retry is None:
        return set(clips["clip_id"].to_pylist())
    again = pc.equal(clips["status"], "failed")
    _, _, error_class = retry.partition(":")
    if error_class:
        again = pc.and_(again, pc.fill_null(pc.equal(clips["error_class"], error_class), False))
    return set(clips.filter(pc.invert(again))["clip_id"].to_pylist())


def open_rows(
    store: Store, table: pa.Table, schema: pa.Schema, settings: Settings, until: Until, retry: str | None = None
) -> pa.Table:
    """The candidates that have not ended, as rows of the graph: those with a preview carry on from it."""
    _check_carried(store, table)
    over = ended(store, retry)
    made = {row["clip_id"]: row for row in _decided(ledger.read(store, "previews"), settings)}
    ids = table["clip_id"].to_pylist()
    finished_here = {clip_id for clip_id, row in made.items() if until == "preview" and row["status"] == "previewed"}
    keep = [clip_id not in over and clip_id not in finished_here for clip_id in ids]
    table = table.filter(pa.array(keep, pa.bool_()))
    ids = table["clip_id"].to_pylist()
    for name in ("status", "reason", "stage", "latents", "preview", "poster"):
        values = [made[clip_id][name] if clip_id in made else None for clip_id in ids]
        if name == "status":
            values = [value or "open" for value in values]
        table = table.append_column(name, pa.array(values, pa.string()))
    return as_rows(table, schema)


def survivors(store: Store, schema: pa.Schema, settings: Settings, retry: str | None = None) -> pa.Table:
    """The previews that have not ended, as rows of the graph, with the decision that these settings make."""
    previews = ledger.read(store, "previews")
    over = pa.array(sorted(ended(store, retry)), pa.string())
    previews = previews.filter(pc.invert(pc.is_in(previews["clip_id"], over)))
    decided = previews.schema.append(pa.field("stage", pa.string()))
    return as_rows(pa.Table.from_pylist(_decided(previews, settings), schema=decided), schema)


def _decided(previews: pa.Table, settings: Settings) -> list[dict[str, Any]]:
    """Rows of previews as `select` decides on them now: it may have been changed since they were scored."""
    requirements = [Requirement.parse(text) for text in settings.select.require]
    rows = previews.to_pylist()
    for row in rows:
        scores = {name.removeprefix("score_"): value for name, value in row.items() if name.startswith("score_")}
        decision = decide(scores, requirements)
        row["status"] = "previewed" if decision.survives else "rejected"
        row["reason"] = decision.reason
        row["stage"] = None if decision.survives else "score"
    return rows


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


def finish(store: Store, pools: Pools, seconds: float = 0.0) -> dict[str, int]:
    """Write summary.json and report.html from the ledger, after a job of so many seconds of wall time.

    Returns how many candidates have each status.
    """
    run = ledger.read_run(store)
    if run is None:
        raise ledger.NoRunError(f"{store.url}: no run here (no run.json)")
    previews, clips = ledger.read(store, "previews"), ledger.read(store, "clips")
    summary = report.summarise(previews, clips)
    summary["wall_seconds"] = _wall_seconds(store) + seconds
    for stage, numbers in summary["stages"].items():
        cards = getattr(pools, stage).num_gpus if stage in STAGES else 0
        numbers["gpu_seconds"] = round(cards * numbers["seconds"], 3)
    store.put("summary.json", json.dumps(summary, indent=2).encode())
    page = report.write_report(
        previews,
        clips,
        run,
        summary,
        poster=lambda key: _bytes(store, key),
        title=store.url.rstrip("/").rpartition("/")[2],
    )
    store.put("report.html", page.encode())
    return statuses(previews, clips)


def statuses(previews: pa.Table, clips: pa.Table) -> dict[str, int]:
    """How many candidates have each status; one that has not ended counts as its preview says."""
    state = dict(zip(previews["clip_id"].to_pylist(), previews["status"].to_pylist(), strict=True))
    state |= dict(zip(clips["clip_id"].to_pylist(), clips["status"].to_pylist(), strict=True))
    return dict(Counter(state.values()))


def _wall_seconds(store: Store) -> float:
    """Of all jobs before this one."""
    try:
        return float(json.loads(store.get("summary.json")).get("wall_seconds", 0.0))
    except (FileNotFoundError, ValueError):
        return 0.0


def _bytes(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key)
    except FileNotFoundError:
        return None
