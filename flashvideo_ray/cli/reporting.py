"""Commands that tell of a run or a clip, and change nothing of what they tell."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from flashvideo_ray.cli.options import (
    ColumnOption,
    ConfigOption,
    OnlyOption,
    OutputArgument,
    PromptsArgument,
    SetOption,
    TrustOption,
)
from flashvideo_ray.cli.outcome import console, guarded
from flashvideo_ray.cli.runs import columns_as_overrides, existing_run
from flashvideo_ray.graph.console import without_false_alarms
from flashvideo_ray.settings import Settings


def status(
    output: OutputArgument,
    exit_status: Annotated[
        bool, typer.Option("--exit-status", help="Say nothing, and end as the last job of the run did.")
    ] = False,
) -> None:
    """How far a run is, from its ledger."""

    def last() -> int:
        from flashvideo_ray.graph import ending
        from flashvideo_ray.ledger.store import Store

        return ending.exit_status(Store(output))

    if exit_status:
        raise typer.Exit(guarded(last))

    def show() -> None:
        from flashvideo_ray.accounting import terminal
        from flashvideo_ray.graph import finish
        from flashvideo_ray.graph.standing import Standing
        from flashvideo_ray.ledger.store import Store

        store = Store(output)
        run = existing_run(store)
        settings = finish.settings_of(store, run)
        now = Standing.read(store, settings, figures=True)
        console.print(store.url, markup=False, soft_wrap=True)
        table = Table("status", "candidates")
        for name, count in now.counts(run["candidates"]).items():
            table.add_row(name, str(count))
        console.print(table)
        told = finish.forecast_of(store, settings, now, run["candidates"])
        console.print(terminal.forecast_line(told, dt.datetime.now(dt.UTC)), markup=False, highlight=False)

    guarded(show)


def list_(
    output: OutputArgument,
    where: Annotated[
        str | None, typer.Argument(metavar="[EXPR]", help="Such as \"status == 'failed' and stage == 'refine'\".")
    ] = None,
    ids: Annotated[bool, typer.Option("--ids", help="Their clip_ids, one a line.")] = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="A JSON object a line, with all columns.")] = False,
    parquet: Annotated[
        str | None, typer.Option(metavar="DEST", help="Write prompts that `render` makes the same candidates of.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows of the table.")] = 40,
) -> None:
    """Candidates of a run, all or those that EXPR holds for: a table, ids, JSON, or prompts to submit again."""

    def show() -> None:
        from flashvideo_ray.accounting import terminal
        from flashvideo_ray.graph import candidates, listing
        from flashvideo_ray.ledger.store import Store
        from flashvideo_ray.settings import SettingsError

        if ids + jsonl + (parquet is not None) > 1:
            raise SettingsError("--ids, --jsonl, --parquet: ask for one of them")
        rows, total = listing.chosen(Store(output), where)
        if ids:
            for clip_id in rows["clip_id"].to_pylist():
                print(clip_id)
        elif jsonl:
            for line in listing.json_lines(rows):
                print(line)
        elif parquet is not None:
            listing.write_prompts(rows, parquet)
            console.print(f"{rows.num_rows:,} of {total:,} candidates in {parquet}", markup=False, soft_wrap=True)
            if lost := listing.without_columns(rows):
                names = ", ".join(candidates.carried(rows))
                console.print(
                    f"{lost:,} of them have not begun: the ledger does not know what their prompts have in {names}.",
                    markup=False,
                    soft_wrap=True,
                )
        else:
            shown = candidates.named_as_in_rules(rows.slice(0, limit))
            if shown.num_rows:
                console.print(terminal.candidates_table(shown.to_pylist()))
            left = rows.num_rows - shown.num_rows
            more = f", {left:,} more not shown (--limit)" if left else ""
            console.print(f"{rows.num_rows:,} of {total:,} candidates{more}.", highlight=False)

    guarded(show)


def report(
    output: OutputArgument,
    trace: Annotated[
        bool, typer.Option("--trace", help="Also trace.json: where each clip's seconds went, for ui.perfetto.dev.")
    ] = False,
) -> None:
    """Write report.html and summary.json anew from the ledger."""

    def write() -> None:
        from flashvideo_ray.graph import finish
        from flashvideo_ray.ledger.store import Store

        store = Store(output)
        finish.finish(store, finish.settings_of(store, existing_run(store)))
        if trace:
            from flashvideo_ray.accounting import trace as tracing
            from flashvideo_ray.ledger import tables

            found = tracing.trace(tables.read(store, "previews"), tables.read(store, "clips"))
            store.put("trace.json", json.dumps(found).encode())
            console.print(f"{store.url}/trace.json", markup=False, soft_wrap=True)
        console.print(f"{store.url}/report.html", markup=False, soft_wrap=True)

    guarded(write)


def plan(
    prompts: PromptsArgument,
    config: ConfigOption = None,
    set_: SetOption = None,
    column: ColumnOption = None,
    only: OnlyOption = None,
    seconds: Annotated[
        str | None, typer.Option(metavar="STAGE=S,…", help="Seconds a call: preview=30.1,refine=72.2.")
    ] = None,
    run: Annotated[str | None, typer.Option("--from", metavar="RUN", help="A run to take seconds from.")] = None,
    keep_rate: Annotated[float | None, typer.Option(min=0, max=1, help="Share of previews that survive.")] = None,
    card_memory: Annotated[
        str | None,
        typer.Option(metavar="STAGE=GIB,…", help="What a process finds on the cards: preview=79.1,refine=44.4."),
    ] = None,
    card: Annotated[
        Path | None, typer.Option(metavar="JSON", help="What benchmarks/gpu.py measured on such a card.")
    ] = None,
    cards: Annotated[
        float | None,
        typer.Option(min=0, help="Of preview and refine together, for sizes of `auto` and the best split."),
    ] = None,
) -> None:
    """Clips, hours, money and balance of a run before it is made: exit status 2 if a stage cannot fit its card."""

    def predict() -> int:
        from flashvideo_ray.accounting import plan as planning
        from flashvideo_ray.accounting import terminal
        from flashvideo_ray.accounting.card import Card
        from flashvideo_ray.graph import checks
        from flashvideo_ray.ledger.store import Store
        from flashvideo_ray.prompts import CANDIDATE

        settings = Settings.load(config, [*(set_ or []), *columns_as_overrides(column)])
        rows = checks.read_prompts(prompts, settings, only)
        settings = checks.with_previews(settings, rows)
        if CANDIDATE in rows.column_names:  # each row is one
            settings = settings.model_copy(update={"candidates": 1})
        count = rows.num_rows
        measures = None
        if run is not None:
            existing_run(Store(run))
            measures = planning.measured(Store(run))
        if seconds is not None:
            measures = planning.declared(seconds, measures)
        figures = Card.read(card)
        measures = measures or planning.published(settings, figures)
        memory = planning.assignments(card_memory, "--card-memory") if card_memory is not None else {}
        found = planning.plan(count, settings, measures, keep_rate, memory, figures, cards)
        console.print(terminal.plan_page(found, settings.prices.currency), highlight=False)
        return 0 if all(fit.fits for fit in found.fits) else 2

    raise typer.Exit(guarded(predict))


def doctor(
    output: Annotated[str | None, typer.Argument(help="Where a run is to go, or is.")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Can this machine, cluster, store and model do the job? A line for each thing, within a minute.

    Status 1 if something is broken. Nothing is rendered.
    """

    def look() -> int:
        from flashvideo_ray.accounting import terminal
        from flashvideo_ray.graph import doctor as examining

        settings = Settings.load(config, set_ or [])
        with without_false_alarms(), console.status("looking"):
            found = examining.examine(settings, output)
        lines = [(line.level, line.where, line.about, line.message, line.mend) for line in found]
        terminal.print_lines(console, terminal.finding_lines(lines))
        return 1 if any(line.level == "broken" for line in found) else 0

    raise typer.Exit(guarded(look))


def inspect(
    file: Annotated[str, typer.Argument(help="An MP4: a path or any fsspec URL.")],
    trust: TrustOption = None,
    json_: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """How a clip was made, from its file alone, and how to make it again: status 1 if its signature does not hold."""

    def look() -> int:

        from flashvideo_ray.accounting import terminal
        from flashvideo_ray.media import credentials, inspection

        found = inspection.inspect(file, credentials.trusted(trust) if trust is not None else None)
        if json_:
            print(inspection.as_json(asdict(found), indent=2))
        else:
            terminal.print_lines(console, terminal.inspection_lines(found))
        own = found.signature
        return 0 if own is None or (own.holds and own.trusted is not False) else 1

    raise typer.Exit(guarded(look))
