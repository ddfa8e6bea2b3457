"""More scores for the previews of a run, without stage 1: measured on the stored preview MP4s."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray import scorers
from flashvideo_ray.errors import InputError, message_of
from flashvideo_ray.graph import checks, cluster, datasets
from flashvideo_ray.graph.logs import say
from flashvideo_ray.ledger import held_store, jobs, run_file, tables
from flashvideo_ray.ledger.patience import PatientStore
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.media import video
from flashvideo_ray.scorers import columns
from flashvideo_ray.scorers.panel import Panel, Scored, names_of
from flashvideo_ray.settings import ScorerSettings, Settings

_AT_ONCE = 1000  # rows handed over to Ray
_DURABLE = 10_000  # previews whose scores are written together; actors load their scorers anew for each so many


class ScorerError(InputError):
    """Scores that a run cannot be given."""


class Rescore:
    """Adds the numbers of some scorers to rows with `clip_id`, `prompt` and `preview`; an actor of Ray Data."""

    def __init__(self, specs: Sequence[ScorerSettings], store: Store, fps: float):
        self.store = store
        with store.opening():
            self.panel = Panel(specs, fps)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row for each of the batch: `clip_id`, `score_<name>` …, `scorer_errors`."""
        texts = [pa.field(name, pa.string()) for name in ("clip_id", "scorer_errors")]
        schema = pa.schema([*texts, *columns.fields(self.panel.names)])
        return pa.Table.from_pylist([self._row(row) for row in batch.to_pylist()], schema=schema)

    def _row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        scored = self._scored(row)
        for error in scored.errors:
            say(f"{row['clip_id']}: {error}")
        numbers = {columns.column(name): value for name, value in scored.numbers.items()}
        return {"clip_id": row["clip_id"], **numbers, "scorer_errors": "; ".join(scored.errors) or None}

    def _scored(self, row: Mapping[str, Any]) -> Scored:
        try:
            frames, _ = video.decode_mp4(self.store.get(row["preview"]))
        except Exception as error:
            return Scored({}, (f"its preview cannot be read: {type(error).__name__}: {message_of(error)}",))
        return self.panel(frames, row["prompt"])


def rescore(output: str, specs: Sequence[ScorerSettings], settings: Settings, *, takeover: bool = False) -> int:
    """Give all previews of a run the scores of further scorers, which become part of its recipe.

    Returns how many got them: previews that have all of these scores are left alone, so it may be repeated, and goes on
    where it was cut short. Raises NoRunError where there is no run, and ScorerError if a scorer cannot be used or the
    run has it with other options.
    """
    store = Store(output)
    run = run_file.read_run(store)
    if run is None:
        raise run_file.NoRunError(f"{output}: no run here (no run.json)")
    started = time.monotonic()
    specs, further = _merged(specs, settings)
    names = [columns.column(name) for name in names_of(specs)]
    previews = tables.read(store, "previews")
    have = [name for name in names if name in previews.column_names]
    lacks = pa.array([len(have) < len(names)] * previews.num_rows, pa.bool_())
    for name in have:
        lacks = pc.or_(lacks, previews[name].is_null())
    rows = previews.filter(pc.and_(lacks, previews["preview"].is_valid()))
    if rows.num_rows:
        stages_ = tuple(dict.fromkeys(spec.pool for spec in specs))
        cluster.connect(settings.pools, stages_)
    more = [spec.model_dump(mode="json") for spec in further]
    for tree in (run["settings"]["score"], run["recipe"]["score"]):
        tree["scorers"] = [*tree["scorers"], *more]
    run["added_scorers"] = [*run.get("added_scorers", []), *more]
    with held_store.hold(store, settings, takeover) as store:
        for first in range(0, max(1, rows.num_rows), _DURABLE):
            some = rows.slice(first, _DURABLE)
            scored = _scored(some, specs, store, settings, float(run["recipe"]["fps"])) if some.num_rows else {}
            if not first:  # known to work, and known to the run before it has such a score
                store.put("run.json", json.dumps(run, indent=2).encode())
            tables.supersede(store, "previews", _joined(some, scored, names))
        told = jobs.newest_settings(store, run) | {"score": run["settings"]["score"]}
        jobs.note(store, run, told, time.monotonic() - started)
    return rows.num_rows


def _merged(specs: Sequence[ScorerSettings], settings: Settings) -> tuple[list[ScorerSettings], list[ScorerSettings]]:
    """The scorers asked for, each once and as the run calls it; and those of them that the run does not have yet.

    A short name and a path may lead to the same scorer. Raises ScorerError, and what `checks.check` raises.
    """
    known = {_class_of(spec): spec for spec in settings.score.scorers}
    wanted: dict[type | str, ScorerSettings] = {}
    for spec in specs:
        scorer = _class_of(spec)
        there = wanted.get(scorer) or known.get(scorer)
        if there is not None and there.options != spec.options:
            raise ScorerError(
                f"{spec.name} is asked for with the options {spec.options}, and there it is {there.name} with "
                f"{there.options}; one run has one of each, so use another OUTPUT (refine NEW --from OLD)"
            )
        wanted[scorer] = there or spec
    further = [spec for scorer, spec in wanted.items() if scorer not in known]
    score = settings.score.model_copy(update={"scorers": (*settings.score.scorers, *further)})
    checks.check(settings.model_copy(update={"score": score}), score.stages)
    return list(wanted.values()), further


def _class_of(spec: ScorerSettings) -> type | str:
    try:
        return scorers.resolve(spec.name)
    except ValueError:
        return spec.name  # the checks say what is wrong with it


def _scored(
    rows: pa.Table, specs: Sequence[ScorerSettings], store: Store, settings: Settings, fps: float
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {row["clip_id"]: {} for row in rows.select(["clip_id"]).to_pylist()}
    patient = PatientStore(store.url, settings.store_patience_seconds)
    table = rows.select(["clip_id", "prompt", "preview"]).combine_chunks()
    for pool in dict.fromkeys(spec.pool for spec in specs):
        own = [spec for spec in specs if spec.pool == pool]
        with datasets.data_context():
            pieces = (table.slice(start, _AT_ONCE) for start in range(0, table.num_rows, _AT_ONCE))
            ds = datasets.dataset_of(pieces).map_batches(
                Rescore,
                fn_constructor_kwargs={"specs": own, "store": patient, "fps": fps},
                **datasets.map_options(getattr(settings.pools, pool)),
            )
            for batch in ds.iter_batches(batch_size=None, batch_format="pyarrow"):
                for row in pa.table(batch).to_pylist():
                    errors = [found[row["clip_id"]].get("scorer_errors"), row.pop("scorer_errors")]
                    found[row["clip_id"]] |= {**row, "scorer_errors": "; ".join(filter(None, errors)) or None}
    return found


def _joined(rows: pa.Table, scored: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> pa.Table:
    """Preview rows with their new scores; errors stand beside those of earlier scores."""
    for name in names:
        values = [scored[clip_id].get(name) for clip_id in rows["clip_id"].to_pylist()]
        rows = tables.with_column(rows, name, pa.array(values, pa.float64()))
    errors = [
        "; ".join(filter(None, [before, scored[clip_id].get("scorer_errors")])) or None
        for clip_id, before in zip(rows["clip_id"].to_pylist(), rows["scorer_errors"].to_pylist(), strict=True)
    ]
    return tables.with_column(rows, "scorer_errors", pa.array(errors, pa.string()))
