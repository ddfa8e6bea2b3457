"""Daft in `pipeline.py`: run by the Python (`--python daft=PATH`); it needs another Ray."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import daft
from daft import DataType, Series
from pipeline_others import LARGE, SMALL, Stage, prompts_file
from pipeline_workload import Workload, lot_of

_PREVIEWED = DataType.struct({"latents": DataType.binary(), "lot": DataType.float64()})


class Previews(Stage):
    """Stage 1."""

    @daft.method.batch(return_dtype=_PREVIEWED, batch_size=1)
    def run(self, prompts: Series) -> list[dict[str, Any]]:
        """Prompts to latents and lots."""
        made = [self.preview(prompt) for prompt in prompts.to_pylist()]
        return [{"latents": latents, "lot": lot_of(frames)} for latents, frames in made]


class Clips(Stage):
    """Stage 2."""

    @daft.method.batch(return_dtype=DataType.string(), batch_size=1)
    def run(self, prompts: Series, latents: Series) -> list[str]:
        """Survivors to clips."""
        return [self.refine(*row) for row in zip(prompts.to_pylist(), latents.to_pylist(), strict=True)]


def run(workload: Workload, folder: Path, url: str) -> None:
    """Its runner on Ray: two classes with cards, rows handed on one by one."""
    daft.set_runner_ray(os.environ["RAY_ADDRESS"])
    daft.set_execution_config(default_morsel_size=1)

    def pool(stage: type[Stage], size: int, labels: dict[str, str]) -> Any:
        own = daft.cls(stage, gpus=1, max_concurrency=size, ray_options={"label_selector": labels})
        return own(workload, str(folder / "calls"), url, together=False)  # it starts one pool after the other

    previews, clips = pool(Previews, workload.previews, LARGE), pool(Clips, workload.refiners, SMALL)
    df = daft.read_parquet(prompts_file(workload, folder)).into_batches(1)
    df = df.with_column("made", previews.run(df["prompt"]))
    df = df.with_columns({"latents": df["made"]["latents"], "lot": df["made"]["lot"]}).exclude("made")
    df = df.where(df["lot"] >= workload.limit)
    df = df.with_column("clip", clips.run(df["prompt"], df["latents"])).exclude("latents")
    df.write_parquet(str(folder / "rows"))
