"""Commands that keep a run in order: what is stored agrees, is little, and is not needed twice."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import Annotated

import typer

from flashvideo_ray.cli.options import OutputArgument, TakeoverOption, TrustOption
from flashvideo_ray.cli.outcome import console, guarded
from flashvideo_ray.cli.runs import existing_run, held_run


def verify(
    output: OutputArgument,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended.")] = False,
    decode: Annotated[bool, typer.Option(help="Fetch, hash and decode every object, or compare names only.")] = True,
    trust: TrustOption = None,
    takeover: TakeoverOption = False,
) -> None:
    """Prove that ledger and store agree: exit status 0 if they do, 1 if not."""

    def check() -> int:
        from flashvideo_ray.graph import finish
        from flashvideo_ray.ledger import run_file
        from flashvideo_ray.ledger import verify as verification
        from flashvideo_ray.ledger.store import Store
        from flashvideo_ray.media import credentials

        store = Store(output)
        trusted = credentials.trusted(trust) if trust is not None else None
        with suppress(run_file.DamagedRunError):  # which is among what is found
            own = finish.settings_of(store, existing_run(store)).credentials
            if trusted is None and own is not None:
                trusted = credentials.trust_of(own)
        held = held_run(store, takeover) if repair else nullcontext(store)
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

    raise typer.Exit(guarded(check))


def prune(
    output: OutputArgument,
    keep: Annotated[
        str,
        typer.Option(
            help="What stays of candidates that are rendered or rejected: latents, previews, both or nothing."
        ),
    ] = "previews",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    takeover: TakeoverOption = False,
) -> None:
    """Remove latents or previews of candidates that are rendered or rejected; asks first."""

    def remove() -> None:
        from flashvideo_ray.ledger import prune as pruning
        from flashvideo_ray.ledger.store import Store
        from flashvideo_ray.settings import SettingsError

        kept = [word.strip() for word in keep.split(",") if word.strip() not in ("", "nothing")]
        if not set(kept) <= {"latents", "previews"}:
            raise SettingsError(f"--keep {keep}: write latents, previews, both with a comma, or nothing")
        store = Store(output)
        existing_run(store)
        with held_run(store, takeover) as run:
            planned = pruning.plan(run, kept)
            size = f"{planned.bytes / 1e6:,.1f} MB"
            if not len(planned.keys):
                console.print("Nothing to remove.")
                return
            console.print(f"{len(planned.keys):,} objects of {len(planned.clip_ids):,} candidates, {size}.")
            if "latents" not in kept:
                console.print("Without their latents, other rules or another stage 2 would have to pay stage 1 again.")
            if yes or typer.confirm("Remove them?"):
                pruning.prune(run, planned)
                console.print(f"Removed {size}.")

    guarded(remove)


def compact(output: OutputArgument, takeover: TakeoverOption = False) -> None:
    """Merge the parts of the ledger into few; readers are not disturbed. Each job does it at its end."""

    def merge() -> None:
        from flashvideo_ray.ledger import tables
        from flashvideo_ray.ledger.store import Store

        store = Store(output)
        existing_run(store)
        with held_run(store, takeover) as run:
            for table, done in tables.compact(run).items():
                console.print(f"{table}: {done.rows} rows, {done.parts_before} parts before, {done.parts_after} now")

    guarded(merge)
