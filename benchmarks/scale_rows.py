"""Rows a second of a job whose models do nothing, and what its driver grows by: for `scale.py`."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

import flashvideo_ray
from flashvideo_ray import Settings, engines
from flashvideo_ray.engines.engine import Description, StepTold, Text
from flashvideo_ray.engines.weightless import Weightless
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.store import Store

FRAMES, SIDE, FPS = 2, 16, 8.0


class Nothing(Weightless):
    """See `engine.Engine`: both stages, whose calls end at once."""

    name = "nothing"

    def resolved(self) -> Any:
        """See Engine."""
        return self.settings.preview

    def describe(self) -> Description:
        """See Engine."""
        return Description(SIDE, SIDE, FRAMES, FPS, latent_space=self.name, text_space=self.name)

    def problems(self) -> list[str]:
        """See Engine."""
        return []

    def load_text(self) -> NothingModel:  # type: ignore[override]
        """See Engine."""
        return NothingModel()

    def load_preview(self) -> NothingModel:  # type: ignore[override]
        """See Engine."""
        return NothingModel()

    def load_refine(self) -> NothingModel:
        """See Engine."""
        return NothingModel()


class NothingModel:
    """See `engine.TextModel`, `engine.PreviewModel` and `engine.RefineModel`."""

    device_name = "nothing"

    def encode(self, text: str, prefix: str = "") -> dict[str, torch.Tensor]:
        """See TextModel."""
        return {"embeds": torch.zeros(1, 1, dtype=torch.float16)}

    def sample(self, text: Text, seed: int, told: StepTold) -> tuple[torch.Tensor, None]:
        """See PreviewModel."""
        return torch.zeros(1, 1, 1, 2, 2, dtype=torch.float16), None

    def decode(self, latents: torch.Tensor) -> tuple[np.ndarray, None]:
        """See PreviewModel."""
        return np.zeros((FRAMES, SIDE, SIDE, 3), np.uint8), None

    def refine(self, preview: Any, text: Text, seed: int, told: StepTold) -> tuple[np.ndarray, None]:
        """See RefineModel."""
        return np.zeros((FRAMES, SIDE, SIDE, 3), np.uint8), None


class Zero:
    """A scorer that keeps none."""

    names = ("zero",)

    def __call__(self, frames: np.ndarray, prompt: str) -> dict[str, float]:
        """See Scorer."""
        return {"zero": 0.0}


def install() -> None:
    """In each process: the engine by its name."""
    plain = engines.of

    def of(settings: Settings, stage: Any) -> Any:
        return Nothing(settings) if getattr(settings, stage).model == Nothing.name else plain(settings, stage)

    engines.of = of


class _Memory(threading.Thread):
    """What this process holds for itself, in MB, each second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.found: list[tuple[float, float]] = []

    def run(self) -> None:
        own = psutil.Process()
        while True:
            memory = own.memory_info()
            self.found.append((time.time(), (memory.rss - memory.shared) / 1e6))
            time.sleep(1)


def rows(count: int, first: int = 3000) -> dict[str, float]:
    """Of the first so many rows of a job, and of all; megabytes of its driver, without what it shares."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        logging_level=logging.WARNING,
        runtime_env={"worker_process_setup_hook": "scale_rows.install"},
    )
    install()
    pool = {"num_cpus": 0.1}
    settings = Settings.model_validate(
        {
            "preview": {"model": Nothing.name, "height": SIDE, "width": SIDE, "num_frames": FRAMES},
            "refine": {"model": Nothing.name, "height": SIDE, "width": SIDE},
            "score": {"scorers": ["scale_rows.Zero"]},
            "select": {"require": ["zero > 0"]},
            # Score has the most to do; what it leaves waiting would be counted as the driver's.
            "pools": {**dict.fromkeys(("text", "preview", "refine"), pool), "score": {**pool, "size": 2}},
            "progress_seconds": 60,
        }
    )
    memory = _Memory()
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder, "prompts.parquet")
        pq.write_table(pa.table({"prompt": [f"clip {number}" for number in range(count)]}), prompts)
        memory.start()
        result = flashvideo_ray.render(str(prompts), f"{folder}/out", settings)
        assert result.total == {"rejected": count}, result
        ends = tables.read(Store(f"{folder}/out"), "previews", ["at"])["at"].cast(pa.int64()).to_numpy() / 1000
    ray.shutdown()
    ends.sort()

    def held(at: float) -> float:
        return next(mb for when, mb in reversed(memory.found) if when <= at)

    few = min(first, count)
    return {
        "rows": count,
        f"rows_per_second_of_the_first_{few}": (few - 1) / (ends[few - 1] - ends[0]),
        f"rows_per_second_of_the_last_{few}": (few - 1) / (ends[-1] - ends[-few]),
        "rows_per_second": (count - 1) / (ends[-1] - ends[0]),
        "driver_mb_at_the_first": held(ends[0]),
        f"driver_mb_at_row_{few}": held(ends[few - 1]),
        "driver_mb_at_the_last": held(ends[-1]),
        "driver_mb_at_most": max(mb for _, mb in memory.found),
    }
