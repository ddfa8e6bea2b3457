"""Commands. Thin: they read arguments, call the package and turn errors into one clear line and an exit status.

Exit status: 0 all candidates ended as rendered or rejected; 3 some failed (they are in the ledger); 2 the input or the
settings are wrong and nothing was started; 1 anything else.
"""

from __future__ import annotations

import enum
import logging
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from flashvideo_ray.accounting.terminal import duration
from flashvideo_ray.errors import InputError, JobError, in_a_line
from flashvideo_ray.graph.console import without_false_alarms
from flashvideo_ray.graph.quota import Quota
from flashvideo_ray.ledger.claim import ClaimLostError
from flashvideo_ray.settings import Settings

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Two-stage video rendering on Ray."
)
console = Console()

ConfigOption = Annotated[
    str | None, typer.Option("-c", "--config", help="A preset (nano, flashvideo-1080p) or a YAML file.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one setting, e.g. pools.refine.size=4.")
]
RetryOption = Annotated[
    str | None, typer.Option(help="Take up candidates again: failed, or failed:ErrorClass for one class.")
]
TakeoverOption = Annotated[bool, typer.Option("--takeover", help="Take the run from a job that still holds it.")]
RelabelOption = Annotated[
    bool, typer.Option("--relabel", help="Give candidates of the run the ids and other columns that PROMPTS has now.")
]
TrustOption = Annotated[
    str | None, typer.Option(metavar="FILE", help="Certificates in PEM that those of signed videos must lead to.")
]
AcceptOption = Annotated[int | None, typer.Option(help="End when the run has so many rendered clips.")]
BudgetOption = Annotated[
    str | None, typer.Option(help="End when this job's pools held cards for so long: '200 gpu-hours' (or cpu-hours).")
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="FIELD=NAME",
        help="What a column is called: prompt=caption; also id, seed, negative_prompt.",
    ),
]
OnlyOption = Annotated[
    str | None, typer.Option(metavar="EXPR|IDS", help="A part of them: \"mood == 'calm'\", or ids: a,b,c or @FILE.")
]
PromptsArgument = Annotated[
    str,
    typer.Argument(
        help="Parquet, .jsonl, .csv, .tsv, .json or .txt, also .gz or .zst: a file, folder or glob, any fsspec URL."
    ),
]
OutputArgument = Annotated[str, typer.Argument(help="The run: a folder or any fsspec URL, such as s3://bucket/run1.")]


class Until(enum.Enum):
    """Where a job may stop."""

    preview = "preview"
    refine = "refine"


@app.command()
def render(
    prompts: PromptsArgument,
    output: OutputArgument,
    config: ConfigOption = None,
    set_: SetOption = None,
    column: ColumnOption = None,
    only: OnlyOption = None,
    until: Annotated[Until, typer.Option(help="Stop after this stage.")] = Until.refine,
    retry: RetryOption = None,
    takeover: TakeoverOption = False,
    relabel: RelabelOption = False,
    accept: AcceptOption = None,
    budget: BudgetOption = None,
) -> None:
    """Render prompts to clips: preview, score, select, refine. Start it again and it carries on."""
    from flashvideo_ray.graph import pipeline

    def job() -> Any:
        settings = Settings.load(config, [*(set_ or []), *_columns(column)])
        quota = Quota.parse(accept, budget)
        return pipeline.render(
            prompts,
            output,
            settings,
            until=until.value,
            retry=retry,
            takeover=takeover,
            quota=quota,
            relabel=relabel,
            only=only,
        )

    raise typer.Exit(run_job(job))


@app.command()
def preview(
    prompts: PromptsArgument,
    output: OutputArgument,
    config: ConfigOption = None,
    set_: SetOption = None,
    column: ColumnOption = None,
    only: OnlyOption = None,
    retry: RetryOption = None,
    takeover: TakeoverOption = False,
    relabel: RelabelOption = False,
) -> None:
    """Stage 1 and scores only; `refine` goes on from there."""
    from flashvideo_ray.graph import pipeline

    def job() -> Any:
        settings = Settings.load(config, [*(set_ or []), *_columns(column)])
        return pipeline.preview(prompts, output, settings, retry=retry, takeover=takeover, relabel=relabel, only=only)

    raise typer.Exit(run_job(job))


@app.command()
def refine(
    output: OutputArgument,
    config: ConfigOption = None,
    set_: SetOption = None,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="OLD", help="Begin OUTPUT with the previews of the run OLD.")
    ] = None,
    retry: RetryOption = None,
    takeover: TakeoverOption = False,
    accept: AcceptOption = None,
    budget: BudgetOption = None,
) -> None:
    """Stage 2 for the survivors of a run that have no clip yet, from their kept latents."""
    from flashvideo_ray.graph import pipeline

    def job() -> Any:
        quota = Quota.parse(accept, budget)
        settings = _run_settings(output if from_ is None else from_, config, set_ or [])
        if from_ is not None:
            settings = _branch(from_, output, settings, takeover)
        return pipeline.refine(output, settings, retry=retry, takeover=takeover, quota=quota)

    raise typer.Exit(run_job(job))


@app.command()
def select(
    output: OutputArgument,
    require: Annotated[
        list[str] | None, typer.Option(help="A rule such as 'motion > 0.5'; several must all hold.")
    ] = None,
    rank: Annotated[str | None, typer.Option(help="Compare candidates by this, such as 'alignment + motion'.")] = None,
    keep: Annotated[int | None, typer.Option(help="So many candidates of each prompt survive.")] = None,
    set_: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    takeover: TakeoverOption = False,
) -> None:
    """Decide anew on all previews from the ledger alone: rules given here replace those of the run."""

    def decide() -> None:
        from flashvideo_ray.graph import checks, reselect
        from flashvideo_ray.ledger.store import Store

        store = Store(output)
        tree = _existing_run(store)["settings"]
        rules = {"require": require, "rank": rank, "keep": keep}
        tree["select"] |= {name: value for name, value in rules.items() if value is not None}
        settings = Settings.of_tree(tree, set_ or [], "run.json")
        checks.check(settings, ())
        with nullcontext(store) if dry_run else _held(store, takeover) as run:
            found = reselect.reselect(run, settings, write=not dry_run)
        table = Table("before", "now", "previews")
        for (before, now), count in sorted(found.changes.items()):
            table.add_row(before, now, f"{count:,}")
        if found.changes:
            console.print(table)
        console.print(f"{found.survivors:,} of {found.previews:,} previews survive.")
        if not found.changes:
            console.print("No decision changed.")
        cost = (
            ""
            if found.refine_seconds is None
            else (
                f", about {duration(found.admitted * found.refine_seconds)} of stage 2 "
                f"at {found.refine_seconds:.2f} s a clip (mean of this run)"
            )
        )
        console.print(f"refine would render {found.admitted:,} clips{cost}.")
        if found.pruned:
            console.print(f"{found.pruned:,} of them have no latents any more: `render` makes their previews anew.")
        if found.spared:
            console.print(f"{found.spared:,} clips that these rules would reject are rendered already, and stay.")

    _guarded(decide)


@app.command()
def score(
    output: OutputArgument,
    with_: Annotated[
        list[str],
        typer.Option("--with", metavar="SCORER[=MODEL]", help="Such as phash, or clip=openai/clip-vit-base-patch32."),
    ],
    set_: SetOption = None,
    takeover: TakeoverOption = False,
) -> None:
    """Add scores to the previews of a run, without stage 1. `select` can use them then."""

    def measure() -> None:
        from flashvideo_ray.graph import rescore
        from flashvideo_ray.ledger.store import Store
        from flashvideo_ray.settings import ScorerSettings

        tree = _existing_run(Store(output))["settings"]
        settings = Settings.of_tree(tree, set_ or [], "run.json")
        specs = []
        for text in with_:
            name, _, model = text.partition("=")
            specs.append(ScorerSettings(name=name, options={"model": model} if model else {}))
        count = rescore.rescore(output, specs, settings, takeover=takeover)
        console.print(f"{count:,} previews got {', '.join(spec.name for spec in specs)}.")

    _guarded(measure)


@app.command()
def prune(
    output: OutputArgument,
    keep: Annotated[
        str, typer.Option(help="What stays of candidates that have ended: latents, previews, both or nothing.")
    ] = "previews",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    takeover: TakeoverOption = False,
) -> None:
    """Remove latents or previews of candidates that are rendered, rejected or failed; asks first."""

    def remove() -> None:
        from flashvideo_ray.ledger import prune as pruning
        from flashvideo_ray.ledger.store import Store
        from flashvideo_ray.settings import SettingsError

        kept = [word.strip() for word in keep.split(",") if word.strip() not in ("", "nothing")]
        if not set(kept) <= {"latents", "previews"}:
            raise SettingsError(f"--keep {keep}: write latents, previews, both with a comma, or nothing")
        store = Store(output)
        _existing_run(store)
        with _held(store, takeover) as run:
            planned = pruning.plan(run, kept)
            size = f"{planned.bytes / 1e6:,.1f} MB"
            if not planned.keys:
                console.print("Nothing to remove.")
                return
            console.print(f"{len(planned.keys):,} objects of {planned.rows.num_rows:,} candidates, {size}.")
            if "latents" not in kept:
                console.print("Without their latents, other rules or another stage 2 would have to pay stage 1 again.")
            if yes or typer.confirm("Remove them?"):
                pruning.prune(run, planned)
                console.print(f"Removed {size}.")

    _guarded(remove)


@app.command()
def status(output: OutputArgument) -> None:
    """How far a run is, from its ledger."""

    def show() -> None:
        from flashvideo_ray.graph import finish
        from flashvideo_ray.ledger.store import Store

        store = Store(output)
        run = _existing_run(store)
        counts = finish.standing(store, finish.settings_of(store, run), run["candidates"])
        console.print(store.url, markup=False, soft_wrap=True)
        table = Table("status", "candidates")
        for name, count in counts.items():
            table.add_row(name, str(count))
        console.print(table)

    _guarded(show)


@app.command("list")
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

    _guarded(show)


@app.command()
def report(output: OutputArgument) -> None:
    """Write report.html and summary.json anew from the ledger."""

    def write() -> None:
        from flashvideo_ray.graph import finish
        from flashvideo_ray.ledger.store import Store

        store = Store(output)
        finish.finish(store, finish.settings_of(store, _existing_run(store)))
        console.print(f"{store.url}/report.html", markup=False, soft_wrap=True)

    _guarded(write)


@app.command()
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
        str | None, typer.Option(metavar="STAGE=GIB,…", help="Memory of the cards: preview=80,refine=48.")
    ] = None,
    card: Annotated[
        Path | None, typer.Option(metavar="JSON", help="What benchmarks/gpu.py measured on such a card.")
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

        settings = Settings.load(config, [*(set_ or []), *_columns(column)])
        rows = checks.read_prompts(prompts, settings, only)
        if CANDIDATE in rows.column_names:  # each row is one
            settings = settings.model_copy(update={"candidates": 1})
        count = rows.num_rows
        measures = None
        if run is not None:
            _existing_run(Store(run))
            measures = planning.measured(Store(run))
        if seconds is not None:
            measures = planning.declared(seconds, measures)
        figures = Card.read(card)
        measures = measures or planning.published(settings, figures)
        memory = planning.assignments(card_memory, "--card-memory") if card_memory is not None else {}
        found = planning.plan(count, settings, measures, keep_rate, memory, figures)
        console.print(terminal.plan_page(found, settings.prices.currency), highlight=False)
        return 0 if all(fit.fits for fit in found.fits) else 2

    raise typer.Exit(_guarded(predict))


@app.command()
def audit(
    output: OutputArgument,
    held_out: Annotated[
        list[str] | None, typer.Option("--with", metavar="SCORER", help="A scorer that selection did not use.")
    ] = None,
) -> None:
    """How well scores of previews foretell those of clips, where select.audit refined rejected ones. No GPU."""

    def measure() -> None:
        from flashvideo_ray.accounting import terminal
        from flashvideo_ray.graph import audit as auditing
        from flashvideo_ray.graph import finish
        from flashvideo_ray.ledger.store import Store

        store = Store(output)
        settings = finish.settings_of(store, _existing_run(store))
        with console.status("scoring") as status:
            found = auditing.audit(
                store,
                settings,
                held_out or [],
                progress=lambda done, total: status.update(f"scoring: {done} of {total} videos"),
            )
        finish.finish(store, settings)
        console.print(terminal.audit_page(found), highlight=False)
        console.print(f"In {store.url}/{auditing.FILE} and report.html", markup=False, soft_wrap=True)

    _guarded(measure)


@app.command()
def verify(
    output: OutputArgument,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended.")] = False,
    decode: Annotated[bool, typer.Option(help="Fetch, hash and decode every object, or compare names only.")] = True,
    trust: TrustOption = None,
    takeover: TakeoverOption = False,
) -> None:
    """Prove that ledger and store agree: exit status 0 if they do, 1 if not."""

    def check() -> int:
        from flashvideo_ray import credentials
        from flashvideo_ray.graph import finish
        from flashvideo_ray.ledger import run_file
        from flashvideo_ray.ledger import verify as verification
        from flashvideo_ray.ledger.store import Store

        store = Store(output)
        trusted = credentials.trusted(trust) if trust is not None else None
        with suppress(run_file.DamagedRunError):  # which is among what is found
            own = finish.settings_of(store, _existing_run(store)).credentials
            if trusted is None and own is not None:
                trusted = credentials.trust_of(own)
        held = _held(store, takeover) if repair else nullcontext(store)
        with held as store, console.status("verifying") as status:
            report = verification.verify(
                store,
                repair=repair,
                decode=decode,
                trust=trusted,
                progress=lambda done, total: status.update(f"verifying: {done} of {total} rows"),
            )
            kinds = {finding.kind for finding in report.problems}
            if any(finding.repaired for finding in report.findings) and "run" not in kinds:
                run = run_file.read_run(store)
                if run is not None:  # what is written about the run is mended, too
                    finish.finish(store, finish.settings_of(store, run))
        for finding in report.findings:
            note = "mended" if finding.repaired else "notice" if finding.is_notice else "WRONG"
            where = finding.key or finding.clip_id
            console.print(f"{note}: {finding.kind}: {where}: {finding.message}", markup=False, soft_wrap=True)
        console.print(f"{report.rows} rows and {report.objects} objects: {len(report.problems)} problems")
        return 1 if report.problems else 0

    raise typer.Exit(_guarded(check))


@app.command()
def inspect(
    file: Annotated[str, typer.Argument(help="An MP4: a path or any fsspec URL.")],
    trust: TrustOption = None,
    json_: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """How a clip was made, from its file alone, and how to make it again: status 1 if its signature does not hold."""

    def look() -> int:
        import json
        from dataclasses import asdict

        from flashvideo_ray import credentials, inspection
        from flashvideo_ray.accounting import terminal

        found = inspection.inspect(file, credentials.trusted(trust) if trust is not None else None)
        if json_:
            print(json.dumps(asdict(found), indent=2, ensure_ascii=False))
        else:
            terminal.print_lines(console, terminal.inspection_lines(found))
        own = found.signature
        return 0 if own is None or (own.holds and own.trusted is not False) else 1

    raise typer.Exit(_guarded(look))


@app.command()
def compact(output: OutputArgument, takeover: TakeoverOption = False) -> None:
    """Merge the parts of the ledger into few; readers are not disturbed. Each job does it at its end."""

    def merge() -> None:
        from flashvideo_ray.ledger import tables
        from flashvideo_ray.ledger.store import Store

        store = Store(output)
        _existing_run(store)
        with _held(store, takeover) as run:
            for table, done in tables.compact(run).items():
                console.print(f"{table}: {done.rows} rows, {done.parts_before} parts before, {done.parts_after} now")

    _guarded(merge)


class ExportFormat(enum.Enum):
    """What `export` writes."""

    webdataset = "webdataset"
    hf = "hf"
    parquet = "parquet"
    jsonl = "jsonl"
    preference = "preference"


class MediaOf(enum.Enum):
    """Which videos `export` takes."""

    clips = "clips"
    previews = "previews"


@app.command()
def export(
    output: OutputArgument,
    dest: Annotated[str, typer.Argument(help="Where the dataset goes: a folder or any fsspec URL.")],
    format_: Annotated[ExportFormat, typer.Option("--format", help="preference: pairs, one chosen and one rejected.")],
    where: Annotated[
        str | None, typer.Option(metavar="EXPR", help="Such as \"motion > 0.5 and decision == 'approved'\".")
    ] = None,
    caption: Annotated[str, typer.Option(metavar="COLUMN", help="The column with the texts to train with.")] = "prompt",
    split: Annotated[str, typer.Option(help="Shares by prompt, such as train=0.9,val=0.1.")] = "train=1",
    shard_size: Annotated[str, typer.Option(help="What a shard takes at most.")] = "256MB",
    media: Annotated[bool, typer.Option("--media", help="parquet, jsonl: copy the videos into DEST.")] = False,
    media_of: Annotated[
        MediaOf | None, typer.Option(help="Clips, or previews that selection let through. Of preference: previews.")
    ] = None,
    rank: Annotated[
        str | None, typer.Option(metavar="EXPR", help="preference: compare by this, not by the run's rank.")
    ] = None,
    least_margin: Annotated[float, typer.Option(min=0, help="preference: of pairs by rank.")] = 0.0,
    pairs_a_prompt: Annotated[int, typer.Option(min=1, help="preference: those with the greatest margins.")] = 1,
    license_: Annotated[str | None, typer.Option("--license", help="For the card, as you state it.")] = None,
    ray: Annotated[
        bool | None,
        typer.Option("--ray/--no-ray", help="Tasks of Ray write the shards. By default where there are many."),
    ] = None,
    takeover: Annotated[bool, typer.Option("--takeover", help="Take DEST from an export that still holds it.")] = False,
) -> None:
    """Make a dataset of a run, or add to it what the run has got since. Start it again and it carries on."""

    def write() -> int:
        from flashvideo_ray import export as exporting

        default = MediaOf.previews if format_ is ExportFormat.preference else MediaOf.clips
        options = exporting.Options(
            format=format_.value,
            media_of=(media_of or default).value,
            copy_media=media,
            where=where,
            caption=caption,
            splits=exporting.parse_splits(split),
            shard_bytes=exporting.parse_bytes(shard_size),
            rank=rank,
            least_margin=least_margin,
            pairs_a_prompt=pairs_a_prompt,
            license=license_,
        )
        with console.status("reading the ledger") as status:
            done = exporting.export(
                output,
                dest,
                options,
                on_ray=ray,
                takeover=takeover,
                progress=lambda count, total: status.update(f"exporting: {count} of {total} shards"),
            )
        for line in done.lines():
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        return 0

    try:
        raise typer.Exit(_guarded(write))
    except (JobError, ClaimLostError) as error:
        print(f"error: {error}\nThe same command carries on.", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("Stopped. The same command carries on.", file=sys.stderr)
        raise typer.Exit(1) from None


@app.command()
def convert(
    checkpoints: Annotated[Path, typer.Argument(help="Folder with stage1.pt, stage2.pt and 3d-vae.pt.")],
    dest: Annotated[Path, typer.Argument(help="The model folder to make: preview/ and refine/.")],
    text_encoder: Annotated[str, typer.Option(help="T5 encoder: a folder or a hub id.")] = "google/t5-v1_1-xxl",
    dtype: Annotated[str, typer.Option(help="Of the weights written: bfloat16, float16 or float32.")] = "bfloat16",
    verify: Annotated[bool, typer.Option("--verify", help="Read all weights back and compare.")] = False,
) -> None:
    """Official FlashVideo checkpoints to a model folder in safetensors."""
    from flashvideo_ray.models.convert import ConversionError
    from flashvideo_ray.models.convert import convert as convert_checkpoints

    try:
        result = convert_checkpoints(checkpoints, dest, text_encoder=text_encoder, dtype=dtype, verify=verify)
    except ConversionError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    table = Table("network", "parameters", title=str(result.dest), title_justify="left")
    for name, count in result.parameters.items():
        table.add_row(name, f"{count:,}")
    console.print(table)
    console.print("Read back and compared: equal." if result.verified else "Not read back; --verify does that.")


@app.command()
def demo(
    output: Annotated[str, typer.Argument(help="Where the run goes.")] = "runs/demo",
    prompts: Annotated[int, typer.Option(min=1, max=30, help="How many of the bundled prompts.")] = 12,
    set_: SetOption = None,
) -> None:
    """Best of four of the bundled prompts, with the nano model, into a local folder."""
    import pyarrow.parquet as pq

    from flashvideo_ray import nano
    from flashvideo_ray.graph import pipeline

    with tempfile.TemporaryDirectory() as folder:
        chosen = f"{folder}/prompts.parquet"
        pq.write_table(pq.read_table(nano.demo_prompts()).slice(0, prompts), chosen)
        raise typer.Exit(run_job(lambda: pipeline.render(chosen, output, Settings.load("demo", set_ or []))))


@app.command()
def serve(
    output: OutputArgument,
    config: ConfigOption = None,
    set_: SetOption = None,
    host: Annotated[str, typer.Option(help="The address to listen on. Other than this machine's own needs tokens.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    token_file: Annotated[str | None, typer.Option(help="Lines role:name:token; else FLASHVIDEO_RAY_TOKENS.")] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="A further host name to answer for.")] = None,
    refine_approved: Annotated[bool, typer.Option(help="Refine a candidate as soon as it is approved.")] = False,
    queue_limit: Annotated[int, typer.Option(min=1, help="Candidates that may wait.")] = 1000,
) -> None:
    """Look at a run in the browser, submit prompts, decide, refine. Ctrl-C stops it; nothing is lost."""

    def run() -> None:
        from flashvideo_ray.serve import local
        from flashvideo_ray.serve.app import ServeSettings

        options = ServeSettings(
            output=output,
            config=config,
            set=tuple(set_ or ()),
            token_file=token_file,
            hosts=local.hosts(host, allow_host or []),
            refine_approved=refine_approved,
            queue_limit=queue_limit,
        )

        def say(text: str) -> None:
            console.print(text, markup=False, soft_wrap=True)

        with local.running(options, host, port, say) as address:
            console.print(f"{output} at {address} (Ctrl-C stops it)", markup=False, soft_wrap=True)
            threading.Event().wait()

    try:
        _guarded(run)
    except KeyboardInterrupt:
        console.print("Stopped. What was asked for is in the run; the same command carries on.")


def main() -> None:
    """Entry point of the console script."""
    app()


def run_job(job: Callable[[], Any]) -> int:
    """Run a job, print what it did and return its exit status."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_time=False, show_path=False)],
    )
    try:
        with without_false_alarms():
            try:
                result = job()
            except KeyboardInterrupt:
                import ray

                ray.shutdown()  # here, where Ray's last words about what was cut short are no news
                raise
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ClaimLostError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except JobError as error:
        print(f"error: {error}\nWhat is done is in the ledger; the same command carries on.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. What is done is in the ledger; the same command carries on.", file=sys.stderr)
        return 1
    except Exception as error:
        print(f"error: {in_a_line(error)}\n{_log_of(error)}", file=sys.stderr)
        return 1
    if not result.ended and not result.without_latents:
        console.print("Nothing to do: every candidate of these prompts has ended before.")
        if result.total.get("failed"):
            console.print(f"{result.total['failed']} of them failed; --retry failed takes them up again.")
    if result.without_latents:
        console.print(
            f"{result.without_latents:,} candidates are wanted whose latents were removed: "
            f"`flashvideo-ray render PROMPTS {result.output}` makes their previews anew and renders them.",
            markup=False,
            soft_wrap=True,
        )
    print_result(result)
    for fault in result.left_out:
        print(f"left out: {fault}", file=sys.stderr)
    if result.stopped is not None:
        print(f"stopped: {result.stopped}\nWhat had not begun is open; the same command carries on.", file=sys.stderr)
    return result.exit_status


def _log_of(error: Exception) -> str:
    """Where to read all of it; or all of it, where it cannot be stored."""
    import tempfile
    import traceback

    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="flashvideo-ray-", suffix=".log", delete=False) as log:
            log.write(text)
    except OSError:
        return text
    return f"All of it is in {log.name}. What is done is in the ledger; the same command carries on."


def print_result(result: Any) -> None:
    """The job's last lines: what became of the candidates, what each stage took, where to look."""
    import json

    from flashvideo_ray.accounting import terminal
    from flashvideo_ray.ledger.store import Store

    summary = json.loads(Store(result.output).get("summary.json"))
    console.print(f"{result.output} after {duration(result.seconds)}", markup=False, soft_wrap=True)
    table = Table("", "this job", "whole run")
    for name in ("rendered", "rejected", "failed", "skipped", "previewed", "approved"):
        if name in result.ended or name in result.total:
            table.add_row(name, str(result.ended.get(name, 0)), str(result.total.get(name, 0)))
    console.print(table)
    console.print(terminal.stages_table(summary))
    terminal.print_lines(console, terminal.bill_lines(summary["bill"]))
    console.print(f"Look at {result.output}/report.html", markup=False, soft_wrap=True)


def _columns(given: list[str] | None) -> list[str]:
    """`--column prompt=caption` as overrides of settings."""
    import json

    from flashvideo_ray.settings import SettingsError

    asked: dict[str, str] = {}
    for text in given or []:
        field, separator, name = text.partition("=")
        if not separator or not field.strip() or not name.strip():
            raise SettingsError(f"--column {text}: expected FIELD=NAME, for example --column prompt=caption")
        if field.strip() in asked:
            raise SettingsError(f"--column {text}: {field.strip()} is {asked[field.strip()]} already; give it once")
        asked[field.strip()] = name.strip()
    return [f"prompts.columns.{field}={json.dumps(name)}" for field, name in asked.items()]


def _run_settings(output: str, config: str | None, overrides: list[str]) -> Settings:
    """The settings of the run at OUTPUT with overrides, unless a config is named."""
    from flashvideo_ray.ledger import jobs
    from flashvideo_ray.ledger.store import Store

    if config is not None:
        return Settings.load(config, overrides)
    store = Store(output)
    return Settings.of_tree(jobs.newest_settings(store, _existing_run(store)), overrides, "run.json")


def _branch(old: str, new: str, settings: Settings, takeover: bool) -> Settings:
    """Bring the previews of a run to another one."""
    from flashvideo_ray.graph import checks
    from flashvideo_ray.graph.refine_from import branch
    from flashvideo_ray.ledger.store import Store

    settings = checks.check(settings, ("text", "refine"))
    with console.status("copying previews") as status:
        count = branch(
            Store(old),
            Store(new),
            settings,
            takeover=takeover,
            progress=lambda done, total: status.update(f"copying: {done} of {total} objects"),
        )
    console.print(f"{count:,} previews of {old} brought to {new}.", markup=False, soft_wrap=True)
    return settings


def _existing_run(store: Any) -> dict[str, Any]:
    from flashvideo_ray.ledger import run_file

    run = run_file.read_run(store)
    if run is None:
        raise run_file.NoRunError(f"{store.url}: no run here (no run.json); start one with render or preview")
    return run


def _held(store: Any, takeover: bool) -> Any:
    """The run, to be written while the context lasts; as patient as its own settings say, if they can be read."""
    from flashvideo_ray.ledger import run_file
    from flashvideo_ray.ledger.held_store import hold

    settings = Settings()
    with suppress(InputError):  # damage is for `verify` to mend
        if (run := run_file.read_run(store)) is not None:
            settings = Settings.of_tree(run["settings"], where="run.json")
    return hold(store, settings, takeover)


def _guarded(work: Callable[[], Any]) -> Any:
    """Wrong input and settings end in one message and status 2; a traceback is for what nobody expected."""
    try:
        return work()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except ClaimLostError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
