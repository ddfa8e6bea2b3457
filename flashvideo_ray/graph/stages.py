"""The classes that Ray actors run: EncodeText, Preview and Refine here, Score and Rate in `scoring`.

Each has an `__init__` that loads and a `__call__` that maps a batch of rows to the same rows, further on. Every row is
computed by itself, so a clip does not depend on what shares its batch. A row that has ended (rejected, failed) passes
through untouched; an exception ends its row as `failed`, with stage, class and message, and no other.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as unpack
from safetensors.torch import save as pack

from flashvideo_ray import models, video
from flashvideo_ray.engines import weights
from flashvideo_ray.graph.stage import DROPPED, NonFiniteError, StageBase, origin
from flashvideo_ray.graph.tracker import StageEvents
from flashvideo_ray.ledger.keys import clip_key, latents_key, poster_key
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.models.text import TextEncoder
from flashvideo_ray.settings import Pool, Settings, Stage

_NO_TEXT: dict[str, None] = {"text_encoder": None, "tokenizer": None}  # embeddings arrive in the rows


class EncodeText(StageBase):
    """Prompt to embeddings, for both stages at once (each has a prefix of its own)."""

    name = "text"

    def __init__(self, settings: Settings, events: StageEvents):
        # The driver has said which prompts are cut.
        logging.getLogger("flashvideo_ray.models.text").setLevel(logging.ERROR)
        # The preview model's folder holds the one text encoder; nothing else of it is loaded here.
        folder = weights.locate(settings.preview.model, "preview")
        defaults = weights.sampling_defaults(settings.preview.model, "preview")
        length = defaults["max_sequence_length"]
        self.encoder = _load_text_encoder(folder, settings.text.dtype, length, settings.pools.text)
        self.prefixes = {
            "preview": defaults.get("prompt_prefix", ""),
            "refine": weights.sampling_defaults(settings.refine.model, "refine").get("prompt_prefix", ""),
        }
        super().__init__(settings, events)

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Rows that still need a preview or a clip."""
        return row["status"] in ("open", "previewed", "approved") or bool(row["audit"])

    def process(self, row: dict[str, Any]) -> dict[str, Any]:
        """Adds `prompt_embeds` and `text_seconds`."""
        started = time.perf_counter()
        stages = ["refine"] if row["status"] != "open" else ["preview", "refine"]
        with self.device(row):
            embeds = {stage: self._encode(row["prompt"], self.prefixes[stage]) for stage in stages}
            if row["negative_prompt"]:
                embeds["negative"] = self._encode(row["negative_prompt"], "")
        return {"prompt_embeds": pack(embeds), "text_seconds": time.perf_counter() - started}

    def _encode(self, text: str, prefix: str) -> torch.Tensor:
        embeds = self.encoder(text, prefix)
        _check_finite(embeds, "the text encoder")
        return embeds[0].cpu().contiguous()


class Preview(StageBase):
    """Embeddings to low-resolution latents and the frames they decode to: stage 1.

    The latents are stored before anything else is done with them: they are what was paid for. Two calls may run at once
    in one actor: the second has the device while the first stores.
    """

    name = "preview"
    gated = True

    def __init__(self, settings: Settings, events: StageEvents, store: Store):
        own = settings.preview
        folder = weights.locate(own.model, "preview")
        dtypes = {"vae": own.vae_dtype or own.dtype, "default": own.dtype}
        self.pipe = _load(models.FlashVideoPreviewPipeline, folder, dtypes, settings.pools.preview, **_NO_TEXT)
        self.device_name = _device_name(self.pipe)
        self.store = store
        super().__init__(settings, events)

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Rows without a preview."""
        return row["status"] == "open"

    def process(self, row: dict[str, Any]) -> dict[str, Any]:
        """Adds `preview_latents`, `preview_frames` and `preview_seconds` (null where stage 1 had been paid before)."""
        kept = self._kept(row["clip_id"])
        with self.device(row):
            started = time.perf_counter()
            latents = self._sample(row) if kept is None else kept
            frames = self.pipe.decode_latents(latents[None])
            _check_finite(frames, "the preview decoder")
            seconds = time.perf_counter() - started
        pixels = video.to_uint8(frames[0].float().cpu())
        packed = pack({"latents": latents}, {"candidate": json.dumps(origin(row))})
        if kept is None:
            self.store.put(latents_key(row["clip_id"]), packed)
        return {
            "preview_latents": packed,
            "preview_frames": pack({"frames": torch.from_numpy(pixels)}),
            "preview_seconds": seconds if kept is None else None,
            "device": self.device_name,
            "host": socket.gethostname(),
        }

    def _sample(self, row: Mapping[str, Any]) -> torch.Tensor:
        own = self.settings.preview
        latents = self.pipe(
            **_embeds(row["prompt_embeds"], "preview"),
            height=own.height,
            width=own.width,
            num_frames=own.num_frames,
            num_inference_steps=own.num_inference_steps,
            guidance_scale=own.guidance_scale,
            generator=_generator(row["seed"], self.name),
            output_type="latent",
            guidance_batching=own.guidance_batching,
            callback_on_step_end=self.steps(row),
        ).latents.to(self.pipe.transformer.dtype)
        _check_finite(latents, "stage 1")
        return latents[0].cpu().contiguous()

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
        own = settings.refine
        video.check_encoder(settings.video.codec, settings.video.encoder_preset)
        folder = weights.locate(own.model, "refine")
        dtypes = {"vae": own.vae_dtype or own.dtype, "default": own.dtype}
        asked = {"encode_chunk_frames": own.encode_chunk_frames, "encode_tiles": own.encode_tiles}
        encoding = {name: value for name, value in asked.items() if value is not None}
        self.pipe = _load(
            models.FlashVideoRefinePipeline, folder, dtypes, settings.pools.refine, **_NO_TEXT, **encoding
        )
        self.device_name = _device_name(self.pipe)
        self.store = store
        self.fps = fps
        self.provenance = dict(provenance)
        super().__init__(settings, events)

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
        mp4 = video.encode_mp4(
            frames,
            self.fps,
            crf=self.settings.video.clip_crf,
            codec=self.settings.video.codec,
            preset=self.settings.video.encoder_preset,
            metadata={**origin(row), **self.provenance},
        )
        self.store.put(poster_key(key), video.poster_jpeg(frames))
        self.store.put(key, mp4)
        return {
            **self._rendered(row, mp4, frames.shape, note),
            "refine_seconds": refined - started,
            "publish_seconds": time.perf_counter() - refined,
        }

    def _rendered(self, row: Mapping[str, Any], mp4: bytes, shape: tuple[int, ...], note: str | None) -> dict[str, Any]:
        key = clip_key(row["clip_id"])
        outcome = {} if row["audit"] else {"status": "rendered", "stage": self.name, "reason": note}
        return {
            **DROPPED,
            **outcome,
            "clip": key,
            "poster": poster_key(key),
            "frames": shape[0],
            "height": shape[1],
            "width": shape[2],
            "fps": self.fps,
            "bytes": len(mp4),
            "sha256": hashlib.sha256(mp4).hexdigest(),
            "device": self.device_name,
            "host": socket.gethostname(),
        }

    def _published(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row of a clip that was stored by a job that died before the ledger had it.

        It is adopted if it decodes and its metadata name this candidate, these settings and these weights.
        """
        key = clip_key(row["clip_id"])
        if not self.store.exists(key):
            return None
        mp4 = self.store.get(key)
        try:
            info = video.probe(mp4, count=True)
        except ValueError:
            return None
        expected = {"clip_id": row["clip_id"], **self.provenance}
        if any(info.metadata.get(name) != value for name, value in expected.items()):
            return None
        if not self.store.exists(poster_key(key)):
            self.store.put(poster_key(key), video.poster_jpeg(video.decode_mp4(mp4)[0]))
        shape = (info.frames, info.height, info.width)
        return self._rendered(row, mp4, shape, "found in the store, checked and adopted")

    def _refine(self, row: Mapping[str, Any], preview_latents: torch.Tensor) -> tuple[np.ndarray, str | None]:
        """RGB uint8 `[frames, height, width, 3]`, and a note if they had to be decoded otherwise than asked."""
        own = self.settings.refine
        latents = self.pipe(
            preview_latents=preview_latents[None],
            **_embeds(row["prompt_embeds"], "refine"),
            height=own.height,
            width=own.width,
            num_inference_steps=own.num_inference_steps,
            guidance_scale=own.guidance_scale,
            noise_step=own.noise_step,
            generator=_generator(row["seed"], self.name),
            guidance_batching=own.guidance_batching,
            output_type="latent",
            callback_on_step_end=self.steps(row),
        ).latents
        _check_finite(latents, "stage 2")
        note = None
        try:
            frames = self.pipe.decode_latents(latents, tiling=own.decode_tiling, tiles=own.decode_tiles)
        except (torch.OutOfMemoryError, MemoryError):
            # Four times as many tiles fit a quarter of the memory; what was paid for is kept.
            torch.cuda.empty_cache()
            rows, columns = own.decode_tiles or (1, 1)
            tiles = (2 * rows, 2 * columns)
            tiling = "reference" if own.decode_tiling in (None, "none") else own.decode_tiling
            frames = self.pipe.decode_latents(latents, tiling=tiling, tiles=tiles)
            note = f"decoded in {tiles[0]}x{tiles[1]} tiles after running out of memory"
        _check_finite(frames, "the decoder")
        return video.to_uint8(frames[0].float().cpu()), note


def _load_text_encoder(folder: Path, dtype: str, length: int, pool: Pool) -> TextEncoder:
    """The text encoder on the actor's card or on the CPU. It is one model: to move it whole would leave it nowhere."""
    import transformers.utils.logging

    transformers.utils.logging.disable_progress_bar()
    encoder = TextEncoder.from_pretrained(folder, getattr(torch, dtype), length)
    if not torch.cuda.is_available():
        return encoder
    if pool.offload == "group":
        from diffusers.hooks import apply_group_offloading

        device = torch.device("cuda")
        apply_group_offloading(encoder.text_encoder, onload_device=device, offload_type="leaf_level", use_stream=True)
    else:
        encoder.text_encoder.to("cuda")
    return encoder


def _load(pipeline: Any, folder: Path, dtype: str | Mapping[str, str], pool: Pool, **parts: Any) -> Any:
    """Load a pipeline onto the actor's card, or on the CPU where Ray gave it none. `dtype` may differ by component.

    `parts` are components, or settings of the pipeline, that are not to be as its folder has them.
    """
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    dtypes = getattr(torch, dtype) if isinstance(dtype, str) else {k: getattr(torch, v) for k, v in dtype.items()}
    pipe = pipeline.from_pretrained(folder, dtype=dtypes, **parts)
    pipe.set_progress_bar_config(disable=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if pool.offload == "none" or device == "cpu":
        pipe.to(device)
    elif pool.offload == "model":
        pipe.enable_model_cpu_offload()
    else:
        pipe.enable_group_offload(onload_device=torch.device(device), offload_type="leaf_level", use_stream=True)
    return pipe


def _device_name(pipe: Any) -> str:
    device = pipe._execution_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


def _generator(seed: int, stage: Stage) -> torch.Generator:
    """The candidate's own noise for one stage, drawn on the CPU: the same whatever runs it, and when."""
    own = int.from_bytes(hashlib.sha256(f"{seed}/{stage}".encode()).digest()[:8], "big") >> 1
    return torch.Generator("cpu").manual_seed(own)


def _embeds(packed: bytes, stage: Stage) -> dict[str, torch.Tensor]:
    tensors = unpack(packed)
    embeds = {"prompt_embeds": tensors[stage][None]}
    if "negative" in tensors:
        embeds["negative_prompt_embeds"] = tensors["negative"][None]
    return embeds


def _check_finite(values: torch.Tensor, source: str) -> None:
    if not torch.isfinite(values).all():
        bad = (~torch.isfinite(values)).float().mean().item()
        raise NonFiniteError(f"{source} gave NaN or infinite values ({bad:.1%} of them)")
