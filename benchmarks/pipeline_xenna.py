"""cosmos-xenna in `pipeline.py`: run by the Python of an environment of its own (`--xenna PYTHON`).

Its autoscaler sees real GPUs alone, so that the cards of this workload are CPUs to it: 24 of them, any of which either
stage may have. Its intervals are scaled as the calls are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cosmos_xenna.pipelines.v1 as xenna
from pipeline_others import Stage
from pipeline_workload import Workload, lot_of

MINUTES = 3  # of its autoscaler, before they are scaled


class Previews(xenna.Stage):
    """Stage 1, and the filter: what is not kept goes no further."""

    def __init__(self, workload: Workload, folder: str, url: str):
        self.args = (workload, folder, url)

    @property
    def required_resources(self) -> xenna.Resources:
        """A card."""
        return xenna.Resources(cpus=1)

    def setup(self, worker_metadata: Any) -> None:
        """A model's start."""
        self.model = Stage(*self.args, together=False)  # it adds actors as it goes

    def process_data(self, in_data: list[str]) -> list[tuple[str, bytes]]:
        """Prompts to survivors."""
        made = [(prompt, *self.model.preview(prompt)) for prompt in in_data]
        return [(prompt, latents) for prompt, latents, frames in made if lot_of(frames) >= self.args[0].limit]


class Clips(Previews):
    """Stage 2."""

    def process_data(self, in_data: list[tuple[str, bytes]]) -> list[str]:  # type: ignore[override]
        """Survivors to clips."""
        return [self.model.refine(prompt, latents) for prompt, latents in in_data]


def run(workload: Workload, folder: Path, url: str) -> None:
    """Its streaming mode."""
    args = (workload, str(folder / "calls"), url)
    seconds = 60 * MINUTES * workload.scale
    own = xenna.StreamingSpecificSpec(
        autoscale_interval_s=seconds, autoscale_speed_estimation_window_duration_s=seconds
    )
    config = xenna.PipelineConfig(mode_specific=own, return_last_stage_outputs=True, cpu_allocation_percentage=1.0)
    stages = [xenna.StageSpec(Previews(*args)), xenna.StageSpec(Clips(*args))]
    xenna.run_pipeline(xenna.PipelineSpec(input_data=workload.prompts(), stages=stages, config=config))
