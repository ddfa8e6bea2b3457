"""The end of a job: summary.json and report.html anew from the ledger."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.accounting import billing, report
from flashvideo_ray.accounting.summary import statuses, summarise
from flashvideo_ray.graph import audit
from flashvideo_ray.graph.verdicts import judged
from flashvideo_ray.ledger import decisions, jobs, run_file, tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.texts import COLUMNS, Texts, still_open
from flashvideo_ray.settings import Settings

_IN = ("previewed", "approved")
_VERDICT = ("status", "reason", "stage", "error_class", "error")


def settings_of(store: Store, run: Mapping[str, Any]) -> Settings:
    """The settings of a run, as its newest job was told them."""
    return Settings.of_tree(jobs.newest_settings(store, run), where="run.json")


def finish(store: Store, settings: Settings) -> dict[str, int]:
    """Write summary.json and report.html from the ledger. Returns how many candidates have each status."""
    run = run_file.read_run(store)
    if run is None:
        raise run_file.NoRunError(f"{store.url}: no run here (no run.json)")
    jobs.take_up(store, run)
    previews, clips = present(store, settings)
    summary = summary_of(store, settings, previews, clips)
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
    return dict(Counter(statuses(previews, clips).values()))


def summary_of(store: Store, settings: Settings, previews: pa.Table, clips: pa.Table) -> dict[str, Any]:
    """summary.json of a run whose `present` rows these are."""
    summary = summarise(previews, clips)
    old = earlier(store)
    summary["earlier_texts"] = len(statuses(*old))
    done = jobs.read(store)
    summary["wall_seconds"], summary["pools"] = jobs.usage(done)
    summary["troubles"] = [row["error"] for row in done if row["error"]]
    from flashvideo_ray.accounting import estimates

    operations = estimates.known_operations(settings)
    # What earlier texts took was paid all the same.
    paid = [pa.concat_tables(pair, promote_options="permissive") for pair in ((previews, old[0]), (clips, old[1]))]
    bill = billing.bill(paid[0], paid[1], settings, summary["pools"], operations)
    if (unknown := estimates.not_known(settings)) is not None:
        bill = replace(bill, notes=(*bill.notes, f"{unknown}; so neither is what a single stage would take"))
    for stage, numbers in summary["stages"].items():
        cards = [line.device_seconds for line in bill.lines if (line.stage, line.unit) == (stage, "GPU")]
        numbers["gpu_seconds"] = round(sum(cards), 3)
    summary["bill"] = billing.as_dict(bill)
    return summary


def present(store: Store, settings: Settings) -> tuple[pa.Table, pa.Table]:
    """Previews and clips of the prompts as they are now, with what selection and people say of the candidates now.

    A clip stays, and so does a failure of a stage. A rejection does not outlive what it came of: where `select` or a
    person decided anew, its row says so here, as the next job will.
    """
    previews, clips = tables.read(store, "previews"), tables.read(store, "clips")
    texts = Texts.of(tables.read(store, "candidates"), previews, clips)
    previews, clips = texts.present(previews), texts.present(clips)
    people = decisions.opinions(store)
    verdicts = judged(previews, settings, people).select([*_VERDICT, "clip_id"]).to_pylist()
    # Rules about the whole run come after a preview's row: what nobody said in person counts if row and rules agree.
    now = {
        verdict["clip_id"]: verdict
        for verdict, written in zip(verdicts, previews["status"].to_pylist(), strict=True)
        if verdict["clip_id"] in people or (verdict["status"] in _IN) == (written in _IN)
    }
    ended = clips.select([name for name in ("clip_id", "status", "error_class") if name in clips.column_names])
    anew = {
        row["clip_id"]: now[row["clip_id"]]
        for row in ended.to_pylist()
        if row["clip_id"] in now
        and (row["status"] in ("rejected", "skipped") or row.get("error_class") == tables.MISSING_SCORE)
        and (now[row["clip_id"]]["status"] in _IN) != (row["status"] == "skipped")
    }
    return _decided(previews, {clip_id: now[clip_id] for clip_id in people if clip_id in now}), _decided(clips, anew)


def earlier(store: Store) -> tuple[pa.Table, pa.Table]:
    """Previews and clips of texts that prompts had before."""
    texts = Texts.read(store)
    previews, clips = (tables.read(store, table) for table in ("previews", "clips"))
    return tuple(rows.filter(pc.invert(texts.holds(rows))) for rows in (previews, clips))


def standing(store: Store, settings: Settings, wanted: int) -> dict[str, int]:
    """How many candidates have each status, those that are `open`, and those of an `earlier text`.

    `wanted` is what run.json says of their number, for runs whose ledger does not.
    """
    found = statuses(*present(store, settings))
    candidates = tables.read(store, "candidates", COLUMNS)
    open_ = still_open(candidates, found) if candidates.num_rows else max(0, wanted - len(found))
    before = len(statuses(*earlier(store)))
    return {**Counter(found.values()), "open": open_, **({"earlier text": before} if before else {})}


def _decided(table: pa.Table, verdicts: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """The rows with these verdicts instead of theirs."""
    if not verdicts:
        return table
    ids = table["clip_id"].to_pylist()
    for name in _VERDICT:
        if name in table.column_names:
            old = zip(ids, table[name].to_pylist(), strict=True)
            values = [verdicts[clip_id][name] if clip_id in verdicts else value for clip_id, value in old]
            table = tables.with_column(table, name, pa.array(values, table.schema.field(name).type))
    return table


def _bytes(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key)
    except FileNotFoundError:
        return None
