"""What a team would use instead, in `pipeline.py`: the same calls, payloads, encodings and puts."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from pipeline_workload import CLIP, FPS, PREVIEW, Calls, Workload, lot_of
from ray.data import ActorPoolStrategy, DataContext

from flashvideo_ray.ledger.store import Store
from flashvideo_ray.media import video

LARGE, SMALL = {"gpu-tier": "large"}, {"gpu-tier": "small"}


class Stage:
    """A model on a card, and the store."""

    def __init__(self, workload: Workload, folder: str, url: str, *, together: bool = True):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self.calls, self.store = Calls(workload, folder), Store(url)
        self.card = threading.Lock()  # for systems that let two calls into one actor: one computes, one stores
        self.calls.load(together)

    def preview(self, prompt: str) -> tuple[bytes, np.ndarray]:
        """Stage 1: latents into the store, and the preview for people to see."""
        with self.card, self.calls.call("preview", prompt):
            latents = self.calls.latents(prompt).tobytes()
            frames = self.calls.frames(PREVIEW, prompt)
        self.store.put(f"latents/{prompt}", latents)
        self.store.put(f"previews/{prompt}.mp4", video.encode_mp4(frames, FPS, crf=23))
        self.store.put(f"previews/{prompt}.jpg", video.poster_jpeg(frames))
        return latents, frames

    def refine(self, prompt: str, latents: bytes) -> str:
        """Stage 2: the clip into the store."""
        with self.card, self.calls.call("refine", prompt):
            frames = self.calls.frames(CLIP, prompt)
        self.store.put(f"clips/{prompt}.jpg", video.poster_jpeg(frames))
        self.store.put(f"clips/{prompt}.mp4", video.encode_mp4(frames, FPS, crf=18))
        self.calls.write("stored", prompt)
        return f"clips/{prompt}.mp4"


class Previews(Stage):
    """For `map_batches`."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows to rows."""
        rows = [self._row(prompt) for prompt in batch["prompt"].to_pylist()]
        return pa.Table.from_pylist(rows, schema=_PREVIEWED)

    def _row(self, prompt: str) -> dict[str, Any]:
        latents, frames = self.preview(prompt)
        return {"prompt": prompt, "latents": latents, "lot": lot_of(frames)}


_PREVIEWED = pa.schema([("prompt", pa.string()), ("latents", pa.large_binary()), ("lot", pa.float64())])


class Clips(Stage):
    """For `map_batches`."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows to rows."""
        rows = [
            {"prompt": row["prompt"], "clip": self.refine(row["prompt"], row["latents"])} for row in batch.to_pylist()
        ]
        return pa.Table.from_pylist(rows, schema=pa.schema([("prompt", pa.string()), ("clip", pa.string())]))


def ray_data(workload: Workload, folder: Path, url: str) -> None:
    """Ray Data as its guide to batch inference has it: a file of prompts, two classes, `concurrency`, a filter."""
    ray.init(logging_level=logging.WARNING)
    own: dict[str, Any] = {
        "fn_constructor_args": (workload, str(folder / "calls"), url),
        "batch_format": "pyarrow",
        "num_gpus": 1,
    }
    ds = ray.data.read_parquet(prompts_file(workload, folder))
    ds = ds.map_batches(Previews, batch_size=1, concurrency=workload.previews, label_selector=LARGE, **own)
    ds = ds.filter(lambda row: row["lot"] >= workload.limit)
    ds = ds.map_batches(Clips, batch_size=1, concurrency=workload.refiners, label_selector=SMALL, **own)
    ds.write_parquet(f"{url}/rows")


def ray_data_tuned(workload: Workload, folder: Path, url: str) -> None:
    """The same with what its settings can give: one row a block, no order, pools that keep their size, two calls in an
    actor (one has the card, one stores), and all other tasks without a CPU of their own."""
    ray.init(logging_level=logging.WARNING)
    context = DataContext.get_current()
    context.execution_options.preserve_order = False
    context.target_max_block_size = 1
    context.issue_detectors_config.detectors = []

    def pool(size: int) -> dict[str, Any]:
        return {
            "compute": ActorPoolStrategy(
                size=size,
                max_tasks_in_flight_per_actor=2,
                max_concurrent_calls_per_actor=2,
                enable_true_multi_threading=True,
            ),
            "fn_constructor_args": (workload, str(folder / "calls"), url),
            "batch_format": "pyarrow",
            "batch_size": 1,
            "num_gpus": 1,
            "num_cpus": 0.1,
        }

    table = pq.read_table(prompts_file(workload, folder))
    ds: ray.data.Dataset = ray.data.from_arrow([table.slice(number, 1) for number in range(table.num_rows)])
    ds = ds.map_batches(Previews, label_selector=LARGE, **pool(workload.previews))
    ds = ds.filter(expr=f"lot >= {workload.limit}", num_cpus=0.1)
    ds = ds.map_batches(Clips, label_selector=SMALL, **pool(workload.refiners))
    rows = ds.take_all()
    Store(url).put("rows.parquet", _parquet(rows))


def static_split(workload: Workload, folder: Path, url: str) -> None:
    """As the reference's scripts are used on several cards: each card has a share of the prompts and both models, of
    which one at a time has room there."""
    ray.init(logging_level=logging.WARNING)
    cards = workload.previews + workload.refiners
    prompts = workload.prompts()
    shares = [prompts[number::cards] for number in range(cards)]
    one: Any = ray.remote(num_gpus=1, num_cpus=0.1)(_Card)
    actors: list[Any] = [one.remote(workload, str(folder / "calls"), url) for _ in range(cards)]
    rows = ray.get([actor.work.remote(share) for actor, share in zip(actors, shares, strict=True)])
    Store(url).put("rows.parquet", _parquet([row for own in rows for row in own]))


class _Card(Stage):
    """All of a share."""

    def work(self, prompts: Sequence[str]) -> list[dict[str, str]]:
        """Clips of a share of the prompts, one after the other."""
        return list(self._clips(prompts))

    def _clips(self, prompts: Sequence[str]) -> Iterator[dict[str, str]]:
        on_card = "preview"
        for prompt in prompts:
            on_card = self._moved(on_card, "preview")
            latents, frames = self.preview(prompt)
            if lot_of(frames) >= self.calls.workload.limit:
                on_card = self._moved(on_card, "refine")
                yield {"prompt": prompt, "clip": self.refine(prompt, latents)}

    def _moved(self, there: str, wanted: str) -> str:
        if there != wanted:
            self.calls.move()
        return wanted


def prompts_file(workload: Workload, folder: Path) -> str:
    """Where they are."""
    path = folder / "prompts.parquet"
    pq.write_table(pa.table({"prompt": workload.prompts()}), path)
    return str(path)


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()
