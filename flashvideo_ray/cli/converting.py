"""The command that makes a model folder of the official checkpoints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from flashvideo_ray.cli.outcome import console


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
