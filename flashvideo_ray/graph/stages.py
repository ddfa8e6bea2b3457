"""The classes that Ray actors run: EncodeText, Preview and Refine here, Score and Rate in `scoring`.

Each has an `__init__` that loads and a `__call__` that maps a batch of rows to the same rows, further on. Every row is
computed by itself, so a clip does not depend on what shares its batch. A row that has ended (rejected, failed) passes
through untouched; an exception ends its row as `failed`, with stage, class and message, and no other.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import load as unpack
from safetensors.torch import save as pack

from flashvideo_ray import engines
from flashvideo_ray.engines.memory_ladder import notes
from flashvideo_ray.engines.weights import ModelStage
from flashvideo_ray.graph.bundles import unbundled
from flashvideo_ray.graph.events import StageEvents
from flashvideo_ray.graph.publishing import Publisher
from flashvideo_ray.graph.stage_base import DROPPED, StageBase
from flashvideo_ray.ledger.keys import clip_key, latents_key, poster_key
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.media import video
from flashvideo_ray.media.provenance import of_candidate
from flashvideo_ray.settings import Settings, Stage

_TEXTS_KEPT = 32  # embeddings; 2 MB each of the released encoder
_NEGATIVES_KEPT = 64


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
        """The text encoder."""
        preview, refine = engines.of(self.settings, "preview"), engines.of(self.settings, "refine")
        preview.verify(self.fingerprints["preview"])
        # Rows of a prompt come one after the other, and their text is the same. A negative prompt is that of many others.
        encode = preview.load_text().encode
        self._encode, self._encode_negative = lru_cache(_TEXTS_KEPT)(encode), lru_cache(_NEGATIVES_KEPT)(encode)
        self.prefixes = {"preview": preview.describe().prompt_prefix, "refine": refine.describe().prompt_prefix}

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Rows that still need a preview or a clip."""
        return row["status"] in ("open", "previewed", "approved") or bool(row["audit"])

    def process(self, row: dict[str, Any]) -> dict[str, Any]:
        """Adds `prompt_embeds` and `text_seconds` (null where another row's call had encoded the same)."""
        started, encoded = time.perf_counter(), self._encoded
        stages = [stage for stage in self.readers if stage != "preview" or row["status"] == "open"]
        with self.device(row):
            embeds: dict[str, torch.Tensor] = {
                stage: self._encode(row["prompt"], self.prefixes[stage]) for stage in stages
            }
            if row["negative_prompt"]:
                embeds["negative"] = self._encode_negative(row["negative_prompt"])
        # Copies: where no stage has a prefix, both have the same tensor, and safetensors takes none twice.
        packed = pack({name: tensor.clone() for name, tensor in embeds.items()})
        worked = self._encoded > encoded
        return {"prompt_embeds": packed, "text_seconds": time.perf_counter() - started if worked else None}

    @property
    def _encoded(self) -> int:
        return self._encode.cache_info().misses + self._encode_negative.cache_info().misses


class EncodeTexts(EncodeText):
    """The same for bundles of all rows with a text in common: it is encoded once, however many actors there are."""

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Map bundles to their rows, one by one, so that the first goes on before the last is done."""
        for row in unbundled(batch):
            yield super().__call__(row)


class Preview(StageBase):
    """Embeddings to low-resolution latents and the frames they decode to: stage 1.

    The latents are stored before anything else is done with them: they are what was paid for. Two calls may run at once
    in one actor: the second has the device while the first stores.
    """

    name = "preview"
    gated = True

    def __init__(self, settings: Settings, events: StageEvents, store: Store, fingerprints: Mapping[str, str]):
        self.fingerprints = fingerprints
        self.store = store
        super().__init__(settings, events)

    def load(self) -> None:
        """The preview model."""
        engine = engines.of(self.settings, "preview")
        engine.verify(self.fingerprints["preview"])
        self.model = engine.load_preview()
        self.device_name = self.model.device_name

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Rows without a preview."""
        return row["status"] == "open"

    def process(self, row: dict[str, Any]) -> dict[str, Any]:
        """Adds `preview_latents`, `preview_frames` and `preview_seconds` (null where stage 1 had been paid before)."""
        kept = self._kept(row["clip_id"])
        with self.device(row):
            started = time.perf_counter()
            latents, as_sampled = self._sample(row) if kept is None else (kept, None)
            pixels, as_decoded = self.model.decode(latents)
            seconds = time.perf_counter() - started
        packed = pack({"latents": latents}, {"candidate": json.dumps(of_candidate(row))})
        if kept is None:
            self.store.put(latents_key(row["clip_id"]), packed)
        return {
            "preview_latents": packed,
            "preview_frames": pack({"frames": torch.from_numpy(pixels)}),
            "preview_seconds": seconds if kept is None else None,
            "memory_note": notes(as_sampled, as_decoded),
            "device": self.device_name,
            "host": socket.gethostname(),
        }

    def _sample(self, row: Mapping[str, Any]) -> tuple[torch.Tensor, str | None]:
        return self.model.sample(*_embeds(row["prompt_embeds"], self.name), row["seed"], self.steps(row))

    def _kept(self, clip_id: str) -> torch.Tensor | None:
        """Latents that were stored by a job that died before the ledger had their row. Damaged ones are made anew."""
        key = latents_key(clip_id)
        if not self.store.exists(key):
            return None
        try:
            return unpack(self.store.get(key))["latents"]
        except (SafetensorError, KeyError):
            return None


class Refine(StageBase):
    """Preview latents to a high-resolution clip, published as an MP4: stage 2.

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
        super().__init__(settings, events)

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
        packed = row["preview_latents"] if row["preview_latents"] is not None else self.store.get(row["latents"])
        latents = unpack(packed)["latents"]
        with self.device(row):
            started = time.perf_counter()
            frames, note = self._refine(row, latents)
            refined = time.perf_counter()
        key = clip_key(row["clip_id"])
        mp4 = self.publisher.clip(key, row, frames)
        return {
            **self._rendered(row, mp4, frames.shape),
            "memory_note": note,
            "refine_seconds": refined - started,
            "publish_seconds": time.perf_counter() - refined,
        }

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

    def _refine(self, row: Mapping[str, Any], preview_latents: torch.Tensor) -> tuple[np.ndarray, str | None]:
        embeds = _embeds(row["prompt_embeds"], self.name)
        return self.model.refine(preview_latents, *embeds, row["seed"], self.steps(row))


def _embeds(packed: bytes, stage: Stage) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A stage's embeddings of the prompt and, if there is one, of the negative prompt."""
    tensors = unpack(packed)
    return tensors[stage], tensors.get("negative")
