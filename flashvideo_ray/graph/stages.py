"""The classes that Ray actors run: EncodeText, Preview and Refine here, Score and Rate in `scoring`.

Each has an `__init__` that loads and a `__call__` that maps a batch of rows to the same rows, further on. Every row is
computed by itself, so a clip does not depend on what shares its batch. A row that has ended (rejected, failed) passes
through untouched; an exception ends its row as `failed`, with stage, class and message, and no other.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load as unpack
from safetensors.torch import save as pack

from flashvideo_ray import engines
from flashvideo_ray.engines import weights
from flashvideo_ray.engines.engine import Text
from flashvideo_ray.engines.memory_ladder import notes
from flashvideo_ray.engines.weights import ModelStage
from flashvideo_ray.graph import handover
from flashvideo_ray.graph.bundles import unbundled
from flashvideo_ray.graph.events import StageEvents
from flashvideo_ray.graph.publishing import Publisher
from flashvideo_ray.graph.stage_base import DROPPED, StageBase
from flashvideo_ray.ledger.keys import clip_key, poster_key
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.media import video
from flashvideo_ray.settings import Settings, Stage

_PROMPT, _NEGATIVE = "prompt", "negative"  # in the names of embeddings, after the stage that reads them
_TEXTS_KEPT = 32  # embeddings; 2 MB each of the released encoder
_NEGATIVES_KEPT = 64


class _Encoder:
    """Encodes, and remembers: rows of a prompt come one after the other, a negative prompt is that of many others."""

    def __init__(self, encode: Callable[..., Mapping[str, torch.Tensor]]):
        self.prompt, self.negative = lru_cache(_TEXTS_KEPT)(encode), lru_cache(_NEGATIVES_KEPT)(encode)

    @property
    def misses(self) -> int:
        """How many texts were not remembered."""
        return self.prompt.cache_info().misses + self.negative.cache_info().misses


class EncodeText(StageBase):
    """Prompt to embeddings, for the stages that are to come (each has a prefix of its own)."""

    name = "text"

    def __init__(
        self,
        settings: Settings,
        events: StageEvents,
        fingerprints: Mapping[str, str],
        readers: Sequence[ModelStage] = ("preview", "refine"),
    ):
        self.fingerprints = fingerprints
        self.readers = tuple(readers)
        super().__init__(settings, events)

    def load(self) -> None:
        """The text encoders: one, where both stages share it, and none for a stage that reads texts itself."""
        engines.of(self.settings, "preview").verify(self.fingerprints["preview"])
        encoders = engines.text_readers(self.settings)
        if encoders["refine"] == "refine" and "refine" in self.readers:
            weights.check_text(engines.of(self.settings, "refine").text_fingerprint(), self.fingerprints["refine_text"])
        loaded = {
            name: _Encoder(engines.of(self.settings, name).load_text().encode)
            for name in dict.fromkeys(encoders[stage] for stage in self.readers)
            if name is not None
        }
        self._encoders = {
            stage: (loaded[name], engines.of(self.settings, stage).describe())
            for stage in self.readers
            if (name := encoders[stage]) is not None
        }

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Rows that still need a preview or a clip."""
        return row["status"] in ("open", "previewed", "approved") or bool(row["audit"])

    def process(self, row: dict[str, Any]) -> dict[str, Any]:
        """Adds `prompt_embeds` and `text_seconds` (null where another row's call had encoded the same)."""
        started = time.perf_counter()
        encoded = self._misses()
        embeds: dict[str, torch.Tensor] = {}
        with self.device(row):
            for stage, (encoder, told) in self._encoders.items():
                if stage == "preview" and row["status"] != "open":
                    continue
                embeds |= _named(stage, _PROMPT, encoder.prompt(row["prompt"], told.prompt_prefix))
                negative = row["negative_prompt"] or told.default_negative
                if negative is not None:
                    embeds |= _named(stage, _NEGATIVE, encoder.negative(negative))
        # Copies: where no stage has a prefix, both have the same tensor, and safetensors takes none twice.
        packed = pack({name: tensor.clone() for name, tensor in embeds.items()})
        worked = self._misses() > encoded
        return {"prompt_embeds": packed, "text_seconds": time.perf_counter() - started if worked else None}

    def _misses(self) -> int:
        return sum(encoder.misses for encoder, _ in self._encoders.values())


class EncodeTexts(EncodeText):
    """The same for bundles of all rows with a text in common: it is encoded once, however many actors there are."""

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Map bundles to their rows, one by one, so that the first goes on before the last is done."""
        for row in unbundled(batch):
            yield super().__call__(row)


class Preview(StageBase):
    """Prompts and their embeddings to low-resolution frames, and to latents where stage 2 takes those: stage 1.

    What stage 2 takes is stored before anything else is done with it: it is what was paid for. Two calls may run at
    once in one actor: the second has the device while the first stores.
    """

    name = "preview"
    gated = True

    def __init__(self, settings: Settings, events: StageEvents, store: Store, fingerprints: Mapping[str, str]):
        self.store = store
        self.fingerprints = fingerprints
        super().__init__(settings, events, store)

    def load(self) -> None:
        """The preview model."""
        engine = engines.of(self.settings, "preview")
        engine.verify(self.fingerprints["preview"])
        self.handed_over = handover.kind_of(self.settings)
        self.fps = engines.fps_of(self.settings) or 1.0
        self.model = engine.load_preview()
        self.device_name = self.model.device_name

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Rows without a preview."""
        return row["status"] == "open"

    def process(self, row: dict[str, Any]) -> dict[str, Any]:
        """Adds `preview_latents`, `preview_frames` and `preview_seconds` (null where stage 1 had been paid before)."""
        key = handover.key_of(row["clip_id"], self.handed_over)
        kept = self._kept(key)
        with self.device(row):
            started = time.perf_counter()
            drawn, as_sampled = self._sample(row) if kept is None else (kept, None)
            pixels, as_decoded = self.model.decode(drawn) if isinstance(drawn, torch.Tensor) else (drawn, None)
            seconds = time.perf_counter() - started
        packed = handover.packed(drawn if self.handed_over == "latents" else pixels, row, self.fps)
        if kept is None:
            self.store.put(key, packed)
        return {
            "latents": key,
            "preview_latents": packed,
            "preview_frames": pack({"frames": torch.from_numpy(pixels)}),
            "preview_seconds": seconds if kept is None else None,
            "memory_note": notes(as_sampled, as_decoded),
            "device": self.device_name,
            "host": socket.gethostname(),
        }

    def _sample(self, row: Mapping[str, Any]) -> tuple[torch.Tensor | np.ndarray, str | None]:
        return self.model.sample(_text(row, self.name), row["seed"], self.steps(row))

    def _kept(self, key: str) -> torch.Tensor | np.ndarray | None:
        """What was stored by a job that died before the ledger had its row. What is damaged is made anew."""
        if not self.store.exists(key):
            return None
        try:
            return handover.unpacked(self.store.get(key))
        except handover.DamagedError:
            return None


class RemovedError(RuntimeError):
    """What stage 2 takes of a preview is not kept any more."""


class Refine(StageBase):
    """Previews to high-resolution clips, published as MP4s: stage 2.

    Two calls may run at once in one actor: the second has the device while the first encodes and uploads.
    """

    name = "refine"
    gated = True

    def __init__(
        self, settings: Settings, events: StageEvents, store: Store, fps: float, provenance: Mapping[str, str]
    ):
        self.store = store
        self.fps = fps
        self.publisher = Publisher(settings, store, fps, provenance)
        self.fingerprint = json.loads(provenance["model_fingerprints"])["refine"]
        super().__init__(settings, events, store)

    def load(self) -> None:
        """The refine model, the encoder of its clips, and what they are signed with."""
        video.check_encoder(self.settings.video.codec, self.settings.video.encoder_preset)
        self.publisher.load(signed=True)
        engine = engines.of(self.settings, "refine")
        engine.verify(self.fingerprint)
        self.model = engine.load_refine()
        self.device_name = self.model.device_name

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Survivors, and those of the rejected that are audited."""
        wanted = row["status"] in ("previewed", "approved") or bool(row["audit"])
        # Without text where the last candidate of its prompt to be judged had lost it: the next round has it again.
        return wanted and row["prompt_embeds"] is not None

    def process(self, row: dict[str, Any]) -> dict[str, Any]:
        """Publishes the clip; adds where it is and what it holds, `status` and `refine_seconds`."""
        adopted = self._published(row)
        if adopted is not None:
            return adopted
        packed = row["preview_latents"] if row["preview_latents"] is not None else self._stored(row["latents"])
        preview = handover.unpacked(packed)
        with self.device(row):
            started = time.perf_counter()
            frames, note = self.model.refine(preview, _text(row, self.name), row["seed"], self.steps(row))
            refined = time.perf_counter()
        key = clip_key(row["clip_id"])
        mp4 = self.publisher.clip(key, row, frames)
        return {
            **self._rendered(row, mp4, frames.shape),
            "memory_note": note,
            "refine_seconds": refined - started,
            "publish_seconds": time.perf_counter() - refined,
        }

    def _stored(self, key: str | None) -> bytes:
        if key is None:
            raise RemovedError("its latents were removed: `render` makes them anew")
        return self.store.get(key)

    def _rendered(
        self, row: Mapping[str, Any], mp4: bytes, shape: tuple[int, ...], reason: str | None = None
    ) -> dict[str, Any]:
        key = clip_key(row["clip_id"])
        outcome = {} if row["audit"] else {"status": "rendered", "stage": self.name, "reason": reason}
        return {
            **DROPPED,
            **outcome,
            "memory_note": None,
            "clip": key,
            "poster": poster_key(key),
            "frames": shape[0],
            "height": shape[1],
            "width": shape[2],
            "fps": self.fps,
            **video.digests(mp4),
            "device": self.device_name,
            "host": socket.gethostname(),
        }

    def _published(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row of a clip that was stored by a job that died before the ledger had it."""
        found = self.publisher.published(clip_key(row["clip_id"]), row)
        if found is None:
            return None
        mp4, info = found
        shape = (info.frames, info.height, info.width)
        return self._rendered(row, mp4, shape, "found in the store, checked and adopted")


def _named(stage: str, what: str, embeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{stage}.{what}.{name}": tensor for name, tensor in embeds.items()}


def _text(row: Mapping[str, Any], stage: Stage) -> Text:
    """What a stage's model is told of a row."""
    own: dict[str, dict[str, torch.Tensor]] = {_PROMPT: {}, _NEGATIVE: {}}
    for key, tensor in unpack(row["prompt_embeds"]).items():
        reader, what, name = key.split(".", 2)
        if reader == stage:
            own[what][name] = tensor
    return Text(row["prompt"], row["negative_prompt"], own[_PROMPT], own[_NEGATIVE])
