"""Commands that score previews and decide on them again."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated

import typer
from rich.table import Table

from flashvideo_ray.accounting.terminal import duration
from flashvideo_ray.cli.options import OutputArgument, SetOption, TakeoverOption
from flashvideo_ray.cli.outcome import console, guarded
from flashvideo_ray.cli.runs import existing_run, held_run
from flashvideo_ray.graph.console import without_false_alarms
from flashvideo_ray.settings import Settings


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
        tree = existing_run(store)["settings"]
        rules = {"require": require, "rank": rank, "keep": keep}
        tree["select"] |= {name: value for name, value in rules.items() if value is not None}
        settings = Settings.of_tree(tree, set_ or [], "run.json")
        checks.check(settings, ())
        with nullcontext(store) if dry_run else held_run(store, takeover) as run:
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

    guarded(decide)


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

        tree = existing_run(Store(output))["settings"]
        settings = Settings.of_tree(tree, set_ or [], "run.json")
        specs = []
        for text in with_:
            name, _, model = text.partition("=")
            specs.append(ScorerSettings(name=name, options={"model": model} if model else {}))
        count = rescore.rescore(output, specs, settings, takeover=takeover)
        console.print(f"{count:,} previews got {', '.join(spec.name for spec in specs)}.")

    with without_false_alarms():
        guarded(measure)


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
        settings = finish.settings_of(store, existing_run(store))
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

    guarded(measure)
