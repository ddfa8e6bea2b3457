"""Commands that make previews and clips."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from functools import partial
from typing import Annotated, Any, Literal

import typer

from flashvideo_ray.cli.options import (
    AcceptOption,
    BudgetOption,
    ColumnOption,
    ConfigOption,
    DateOption,
    NewOption,
    OnlyOption,
    OutputArgument,
    PromptsArgument,
    RelabelOption,
    RetryOption,
    SetOption,
    ShardOption,
    TakeoverOption,
)
from flashvideo_ray.cli.outcome import console, run_job
from flashvideo_ray.cli.runs import columns_as_overrides, run_settings
from flashvideo_ray.graph.quota import Quota
from flashvideo_ray.ledger.shard import Shard
from flashvideo_ray.settings import Settings


def render(
    prompts: PromptsArgument,
    output: OutputArgument,
    config: ConfigOption = None,
    set_: SetOption = None,
    column: ColumnOption = None,
    only: OnlyOption = None,
    until: Annotated[Literal["preview", "refine"], typer.Option(help="Stop after this stage.")] = "refine",
    retry: RetryOption = None,
    takeover: TakeoverOption = False,
    relabel: RelabelOption = False,
    accept: AcceptOption = None,
    budget: BudgetOption = None,
    date: DateOption = None,
    new: NewOption = False,
    shard: ShardOption = None,
) -> None:
    """Render prompts to clips: preview, score, select, refine. Start it again and it carries on."""
    from flashvideo_ray.graph import ending, nightly, pipeline

    def job() -> Any:
        settings = Settings.load(config, [*(set_ or []), *columns_as_overrides(column)])
        share = Shard.parse(shard) if shard is not None else None
        render = partial(
            pipeline.render,
            settings=settings,
            until=until,
            retry=retry,
            takeover=takeover,
            quota=Quota.parse(accept, budget),
            relabel=relabel,
            only=only,
            shard=share,
        )
        if nightly.DATE not in output:
            if date is not None or new:
                raise nightly.NightError(f"--date, --new: OUTPUT has no {nightly.DATE}: {output}")
            return render(prompts, output)
        night = nightly.Night.of(output, date)
        with ExitStack() as holding:
            with ending.refusals_told(night.output, settings, share):
                holding.enter_context(nightly.held(night, settings, takeover, share))
                earlier = night.earlier() if new else []
            console.print(f"The night of {night.date}: {night.output}", markup=False, soft_wrap=True)
            return render(prompts.replace(nightly.DATE, night.date), night.output, not_in=earlier)

    raise typer.Exit(run_job(job))


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
        settings = Settings.load(config, [*(set_ or []), *columns_as_overrides(column)])
        return pipeline.preview(prompts, output, settings, retry=retry, takeover=takeover, relabel=relabel, only=only)

    raise typer.Exit(run_job(job))


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
        settings = run_settings(output if from_ is None else from_, config, set_ or [])
        if from_ is not None:
            settings = _branch(from_, output, settings, takeover)
        return pipeline.refine(output, settings, retry=retry, takeover=takeover, quota=quota)

    raise typer.Exit(run_job(job))


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
