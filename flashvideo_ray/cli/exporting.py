"""The command that makes a dataset of a run."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from flashvideo_ray.cli.options import OutputArgument
from flashvideo_ray.cli.outcome import console, guarded
from flashvideo_ray.errors import JobError
from flashvideo_ray.export.options import Format, Media
from flashvideo_ray.graph.console import without_false_alarms
from flashvideo_ray.ledger.claim import ClaimLostError


def export(
    output: OutputArgument,
    dest: Annotated[str, typer.Argument(help="Where the dataset goes: a folder or any fsspec URL.")],
    format_: Annotated[Format, typer.Option("--format", help="preference: pairs, one chosen and one rejected.")],
    where: Annotated[
        str | None, typer.Option(metavar="EXPR", help="Such as \"motion > 0.5 and decision == 'approved'\".")
    ] = None,
    caption: Annotated[str, typer.Option(metavar="COLUMN", help="The column with the texts to train with.")] = "prompt",
    split: Annotated[str, typer.Option(help="Shares by prompt, such as train=0.9,val=0.1.")] = "train=1",
    shard_size: Annotated[str, typer.Option(help="What a shard takes at most.")] = "256MB",
    media: Annotated[bool, typer.Option("--media", help="parquet, jsonl: copy the videos into DEST.")] = False,
    media_of: Annotated[
        Media | None, typer.Option(help="Clips, or previews that selection let through. Of preference: previews.")
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

        default: Media = "previews" if format_ == "preference" else "clips"
        options = exporting.Options(
            format=format_,
            media_of=media_of or default,
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
        with without_false_alarms():
            raise typer.Exit(guarded(write))
    except (JobError, ClaimLostError) as error:
        print(f"error: {error}\nThe same command carries on.", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("Stopped. The same command carries on.", file=sys.stderr)
        raise typer.Exit(1) from None
