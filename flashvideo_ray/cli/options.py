"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

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
ShardOption = Annotated[
    str | None,
    typer.Option(metavar="K/N", help="A share of the prompts, beside jobs on the others in the same OUTPUT: 3/8."),
]
DateOption = Annotated[
    str | None,
    typer.Option(metavar="YYYY-MM-DD", help="Of the night, for {date} in OUTPUT and PROMPTS. By default today (UTC)."),
]
NewOption = Annotated[
    bool, typer.Option("--new", help="Leave out prompts that earlier nights of OUTPUT's pattern have done.")
]
PromptsArgument = Annotated[
    str,
    typer.Argument(
        help="Parquet, .jsonl, .csv, .tsv, .json or .txt, also .gz or .zst: a file, folder or glob, any fsspec URL."
    ),
]
OutputArgument = Annotated[str, typer.Argument(help="The run: a folder or any fsspec URL, such as s3://bucket/run1.")]
