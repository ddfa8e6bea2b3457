"""flashvideo_ray in `pipeline.py`: its own job, graph, ledger and store, with a model that occupies a card."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from pipeline_workload import CLIP, FPS, PREVIEW, TEXT, Calls, Workload, loaded, lot_of

import flashvideo_ray
from flashvideo_ray import Settings, engines
from flashvideo_ray.engines.engine import Description, StepTold, Text
from flashvideo_ray.engines.weightless import Weightless
from flashvideo_ray.graph.publishing import Publisher

WHERE = "PIPELINE_BENCHMARK"  # folder of the workload and of the log of calls


def _calls() -> Calls:
    folder = os.environ[WHERE]
    return Calls(loaded(f"{folder}/workload.json"), f"{folder}/calls")


class Timed(Weightless):
    """See `engine.Engine`: both stages, whose calls take the workload's time."""

    name = "timed"

    def __init__(self, settings: Settings, stage: str):
        super().__init__(settings)
        self.stage = stage

    def resolved(self) -> Any:
        """See Engine."""
        return getattr(self.settings, self.stage)

    def describe(self) -> Description:
        """See Engine."""
        frames, height, width, _ = PREVIEW if self.stage == "preview" else CLIP
        return Description(height, width, frames, FPS, latent_space="timed", text_space="timed")

    def problems(self) -> list[str]:
        """See Engine."""
        return []

    def load_text(self) -> TimedText:  # type: ignore[override]
        """See Engine."""
        return TimedText()

    def load_preview(self) -> TimedModel:  # type: ignore[override]
        """See Engine."""
        return TimedModel(self.settings)

    def load_refine(self) -> TimedModel:
        """See Engine."""
        return TimedModel(self.settings)


class TimedText:
    """See `engine.TextModel`."""

    def encode(self, text: str, prefix: str = "") -> dict[str, torch.Tensor]:
        """See TextModel."""
        return {"embeds": torch.zeros(TEXT, dtype=torch.float16)}


class TimedModel:
    """See `engine.PreviewModel` and `engine.RefineModel`."""

    device_name = "timed"

    def __init__(self, settings: Settings) -> None:
        self.calls = _calls()
        self.calls.load(sizes=(settings.pools.preview.actors, settings.pools.refine.actors))

    def sample(self, text: Text, seed: int, told: StepTold) -> tuple[torch.Tensor, None]:
        """See PreviewModel."""
        with self.calls.call("preview", text.prompt, self.calls.seed_of(seed)):
            latents = torch.from_numpy(self.calls.latents(text.prompt, self.calls.seed_of(seed)).copy())
            self.drawn = (text.prompt, self.calls.seed_of(seed))
        return latents, None

    def decode(self, latents: torch.Tensor) -> tuple[np.ndarray, None]:
        """See PreviewModel."""
        return self.calls.frames(PREVIEW, *self.drawn), None  # the device is still this call's

    def refine(self, preview: Any, text: Text, seed: int, told: StepTold) -> tuple[np.ndarray, None]:
        """See RefineModel."""
        with self.calls.call("refine", text.prompt, self.calls.seed_of(seed)):
            frames = self.calls.frames(CLIP, text.prompt, self.calls.seed_of(seed))
        return frames, None


class Lot:
    """A scorer: what the preview's first pixel holds."""

    names = ("lot",)

    def __call__(self, frames: np.ndarray, prompt: str) -> dict[str, float]:
        """See Scorer."""
        return {"lot": lot_of(frames)}


def install() -> None:
    """In each process: the engine by its name, and a line in the log when a clip is stored."""
    plain, publish = engines.of, Publisher.clip

    def of(settings: Settings, stage: Any) -> Any:
        return Timed(settings, stage) if getattr(settings, stage).model == Timed.name else plain(settings, stage)

    def clip(self: Publisher, key: str, row: Any, frames: np.ndarray) -> bytes:
        mp4 = publish(self, key, row, frames)
        calls = _calls()
        calls.write("stored", row["prompt"], calls.seed_of(row["seed"]))
        return mp4

    engines.of, Publisher.clip = of, clip  # type: ignore[method-assign]


def run(workload: Workload, folder: Path, url: str) -> None:
    """The whole of it: `flashvideo_ray.render`."""
    ray.init(runtime_env={"worker_process_setup_hook": "pipeline_ours.install"}, logging_level=logging.WARNING)
    install()
    select: dict[str, Any] = {"require": [f"lot >= {workload.limit}"]}
    if workload.of_a_prompt > 1:
        select = {"rank": "lot", "keep": 1}
    size: dict[str, Any] = {"preview": workload.previews, "refine": workload.refiners}
    tier = {"preview": "large", "refine": "small"}
    if workload.shared:
        size, tier = dict.fromkeys(size, "auto"), dict.fromkeys(tier, "any")
    card = {"num_gpus": 1, "num_cpus": 0.1}
    pools = {stage: {**card, "size": size[stage], "labels": {"gpu-tier": tier[stage]}} for stage in size}
    settings = Settings.model_validate(
        {
            "preview": {"model": Timed.name},
            "refine": {"model": Timed.name},
            "score": {"scorers": ["pipeline_ours.Lot"]},
            "candidates": workload.of_a_prompt,
            "select": select,
            "pools": {**pools, "text": {"num_cpus": 0.1}, "score": {"size": 2, "num_cpus": 0.1}},
            "progress_seconds": 10,
        }
    )
    if workload.pilot:
        _render(workload.pilots(), folder / "pilot.parquet", url, settings)
        for file in (folder / "calls").iterdir():
            file.unlink()
    result = _render(workload.prompts(), folder / "prompts.parquet", url, settings)
    assert sum(result.total.values()) == len(workload.prompts()) * workload.of_a_prompt + workload.pilot, result


def _render(prompts: list[str], file: Path, url: str, settings: Settings) -> flashvideo_ray.RunResult:
    pq.write_table(pa.table({"prompt": prompts}), file)
    return flashvideo_ray.render(str(file), url, settings)
