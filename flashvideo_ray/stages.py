"""The classes that Ray actors run: EncodeText, Preview, Score, Refine.

Each has an `__init__` that loads and a `__call__` that maps a batch of rows to the same rows, further on. Every row is
computed by itself, so a clip does not depend on what shares its batch. A row that has ended (rejected, failed) passes
through untouched; an exception ends its row as `failed`, with stage, class and message, and no other.
"""

from __future__ import annotations

import hashlib
import json
import platform
import socket
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load as unpack
from safetensors.torch import save as pack

from flashvideo_ray import ledger, models, scorers, video, weights
from flashvideo_ray.selection import Requirement, decide
from flashvideo_ray.settings import Pool, Settings, Stage
from flashvideo_ray.storage import Store
from flashvideo_ray.tracker import StageEvents

_PAYLOAD = [
    pa.field("prompt_embeds", pa.large_binary()),  # safetensors: `preview`, `refine` and, if asked for, `negative`
    pa.field("preview_latents", pa.large_binary()),  # safetensors: `latents`
    pa.field("preview_frames", pa.large_binary()),  # safetensors: `frames`, uint8
    pa.field("scores", pa.map_(pa.string(), pa.float64())),
]
PAYLOAD = tuple(field.name for field in _PAYLOAD)
DROPPED = dict.fromkeys(PAYLOAD)
_NO_TEXT: dict[str, None] = {"text_encoder": None, "tokenizer": None}  # embeddings arrive in the rows


def row_schema(extra: Iterable[pa.Field] = ()) -> pa.Schema:
    """The one schema of all rows of the graph, however they fare: both ledger tables' columns and what travels."""
    names = dict.fromkeys([*ledger.PREVIEWS.names, *ledger.CLIPS.names])
    names.pop("at")
    known = pa.unify_schemas([ledger.PREVIEWS, ledger.CLIPS])
    return pa.schema([*(known.field(name) for name in names), *_PAYLOAD, *extra])


_BYSTANDER_DEATHS = 4


class NonFiniteError(ValueError):
    """A model gave NaN or infinite values."""


class AttemptsError(RuntimeError):
    """A candidate killed the process of a stage too often and is not tried again."""


class StageBase(ABC):
    """What all stages share: which rows are theirs, and that an error is a value in the row."""

    name: ClassVar[Stage]

    def __init__(self, settings: Settings, events: StageEvents):
        self.settings = settings
        self.events = events
        self._device_lock = threading.Lock()
        self._logged: set[type[Exception]] = set()
        events.joined(self.name)

    @abstractmethod
    def takes(self, row: Mapping[str, Any]) -> bool:
        """Whether the row needs this stage."""

    @abstractmethod
    def process(self, row: dict[str, Any]) -> dict[str, Any]:
        """The columns of the row that change. Whatever it raises ends the row."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Map rows to rows, same count, same order, same schema."""
        rows = [self._guarded(row) if self.takes(row) else row for row in batch.to_pylist()]
        return pa.Table.from_pylist(rows, schema=batch.schema)

    @contextmanager
    def device(self, row: dict[str, Any]) -> Iterator[None]:
        """The part of a call that has the device to itself.

        If the process dies in here, it dies of this row, and the row is not tried more than `max_attempts` times. The
        calls beside it are only bystanders.
        """
        with self._device_lock:
            row["attempts"] = self.events.attempt(self.name, row["clip_id"])
            try:
                self._check_attempts(row["attempts"] - 1, self.settings.max_attempts)
                yield
            finally:
                self.events.survived(self.name, row["clip_id"])

    def _check_attempts(self, deaths: int, limit: int) -> None:
        if deaths >= limit:
            raise AttemptsError(f"the process of stage {self.name} died {deaths} times on this candidate")

    def _guarded(self, row: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        begins = self.events.begin(self.name, row["clip_id"])
        outcome = "failed"
        try:
            # A process can also die outside the part that has the device (out of memory while encoding, say).
            self._check_attempts(begins - 1, _BYSTANDER_DEATHS * self.settings.max_attempts)
            result = {**row, **self.process(row)}
            outcome = "ok"
            return result
        except Exception as error:
            self._log_error(error, row["clip_id"])
            return {
                **row,
                **DROPPED,
                "status": "failed",
                "stage": self.name,
                "reason": f"{self.name}: {type(error).__name__}",
                "error_class": type(error).__name__,
                "error": str(error) or repr(error),
                "host": socket.gethostname(),
            }
        finally:
            self.events.end(self.name, row["clip_id"], outcome, time.perf_counter() - started)

    def _log_error(self, error: Exception, clip_id: str) -> None:
        """One line for each failure in the worker's log; where it came from only for the first of its class."""
        print(f"{self.name} failed on {clip_id}: {type(error).__name__}: {error}", file=sys.stderr)
        if type(error) not in self._logged:
            self._logged.add(type(error))
            traceback.print_exception(error)


class EncodeText(StageBase):
    """Prompt to embeddings, for both stages at once (each has a prefix of its own)."""

    name = "text"

    def __init__(self, settings: Settings, events: StageEvents):
        # The preview model's folder holds the one text encoder; nothing else of it is loaded here.
        folder = weights.locate(settings.preview.model, "preview")
        others = {"transformer": None, "vae": None, "scheduler": None}
        self.pipe = _load(models.FlashVideoPreviewPipeline, folder, settings.text.dtype, settings.pools.text, **others)
        self.prefixes = {
            "preview": weights.sampling_defaults(settings.preview.model, "preview").get("prompt_prefix", ""),
            "refine": weights.sampling_defaults(settings.refine.model, "refine").get("prompt_prefix", ""),
        }
        super().__init__(settings, events)

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Rows that still need a preview or a clip."""
        return row["status"] in ("open", "previewed", "approved")

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
        embeds = self.pipe.encode_prompt(text, prefix=prefix)
        _check_finite(embeds, "the text encoder")
        return embeds[0].cpu().contiguous()


class Preview(StageBase):
    """Embeddings to low-resolution latents and the frames they decode to: stage 1."""

    name = "preview"

    def __init__(self, settings: Settings, events: StageEvents):
        own = settings.preview
        folder = weights.locate(own.model, "preview")
        dtypes = {"vae": own.vae_dtype or own.dtype, "default": own.dtype}
        self.pipe = _load(models.FlashVideoPreviewPipeline, folder, dtypes, settings.pools.preview, **_NO_TEXT)
        self.device_name = _device_name(self.pipe)
        super().__init__(settings, events)

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Rows without a preview."""
        return row["status"] == "open"

    def process(self, row: dict[str, Any]) -> dict[str, Any]:
        """Adds `preview_latents`, `preview_frames` and `preview_seconds`."""
        started = time.perf_counter()
        with self.device(row):
            latents, frames = self._preview(row)
        return {
            "preview_latents": pack({"latents": latents}, {"candidate": json.dumps(_provenance(row))}),
            "preview_frames": pack({"frames": torch.from_numpy(frames)}),
            "preview_seconds": time.perf_counter() - started,
            "device": self.device_name,
            "host": socket.gethostname(),
        }

    def _preview(self, row: Mapping[str, Any]) -> tuple[torch.Tensor, np.ndarray]:
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
        ).latents.to(self.pipe.transformer.dtype)
        _check_finite(latents, "stage 1")
        frames = self.pipe.decode_latents(latents)
        _check_finite(frames, "the preview decoder")
        return latents[0].cpu().contiguous(), video.to_uint8(frames[0].float().cpu())


class Score(StageBase):
    """Frames to numbers and a decision; publishes the preview and hands its row to the ledger."""

    name = "score"

    def __init__(
        self, settings: Settings, events: StageEvents, store: Store, fps: float, provenance: Mapping[str, str]
    ):
        self.scorers = [(spec.name, scorers.load(spec.name, spec.options, fps=fps)) for spec in settings.score.scorers]
        self.requirements = [Requirement.parse(text) for text in settings.select.require]
        self.store = store
        self.fps = fps
        self.provenance = dict(provenance)
        super().__init__(settings, events)

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Rows with a new preview."""
        return row["status"] == "open"

    def process(self, row: dict[str, Any]) -> dict[str, Any]:
        """Adds `scores`, `status` (previewed or rejected), `reason` and where the preview is; drops its frames."""
        started = time.perf_counter()
        frames = unpack(row["preview_frames"])["frames"].numpy()
        with self.device(row):
            scores = self._scores(frames, row["prompt"])
        decision = decide(scores, self.requirements)
        keys = {
            "latents": ledger.latents_key(row["clip_id"]),
            "preview": ledger.preview_key(row["clip_id"]),
            "poster": ledger.poster_key(ledger.preview_key(row["clip_id"])),
        }
        mp4 = video.encode_mp4(
            frames,
            self.fps,
            crf=self.settings.video.preview_crf,
            metadata={**_provenance(row), **self.provenance},
        )
        self.store.put(keys["latents"], row["preview_latents"])
        self.store.put(keys["preview"], mp4)
        self.store.put(keys["poster"], video.poster_jpeg(frames))
        result = {
            **keys,
            "scores": list(scores.items()),
            "status": "previewed" if decision.survives else "rejected",
            "reason": decision.reason,
            "score_seconds": time.perf_counter() - started,
            "preview_frames": None,
        }
        if not decision.survives:
            result |= {**DROPPED, "stage": self.name, "scores": result["scores"]}
        columns = {f"score_{name}": value for name, value in scores.items()}
        self.events.previewed({**row, **result, **dict.fromkeys(PAYLOAD), **columns})
        return result

    def _scores(self, frames: np.ndarray, prompt: str) -> dict[str, float | None]:
        scores: dict[str, float | None] = {}
        for name, scorer in self.scorers:
            try:
                scores |= scorer(frames, prompt)
            except Exception as error:  # a scorer that fails loses its numbers, not the preview
                print(f"scorer {name} failed: {type(error).__name__}: {error}")
                scores |= dict.fromkeys(scorer.names)
        return scores


class Refine(StageBase):
    """Preview latents to a high-resolution clip, published as an MP4: stage 2.

    Two calls may run at once in one actor: the second has the device while the first encodes and uploads.
    """

    name = "refine"

    def __init__(
        self, settings: Settings, events: StageEvents, store: Store, fps: float, provenance: Mapping[str, str]
    ):
        own = settings.refine
        video.check_encoder(settings.video.codec, settings.video.encoder_preset)
        folder = weights.locate(own.model, "refine")
        dtypes = {"vae": own.vae_dtype or own.dtype, "default": own.dtype}
        self.pipe = _load(models.FlashVideoRefinePipeline, folder, dtypes, settings.pools.refine, **_NO_TEXT)
        self.device_name = _device_name(self.pipe)
        self.store = store
        self.fps = fps
        self.provenance = dict(provenance)
        super().__init__(settings, events)

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Survivors."""
        return row["status"] in ("previewed", "approved")

    def process(self, row: dict[str, Any]) -> dict[str, Any]:
        """Publishes the clip; adds where it is and what it holds, `status` and `refine_seconds`."""
        packed = row["preview_latents"] if row["preview_latents"] is not None else self.store.get(row["latents"])
        latents = unpack(packed)["latents"]
        with self.device(row):
            started = time.perf_counter()
            frames = self._refine(row, latents)
            refined = time.perf_counter()
        key = ledger.clip_key(row["clip_id"])
        mp4 = video.encode_mp4(
            frames,
            self.fps,
            crf=self.settings.video.clip_crf,
            codec=self.settings.video.codec,
            preset=self.settings.video.encoder_preset,
            metadata={**_provenance(row), **self.provenance},
        )
        self.store.put(ledger.poster_key(key), video.poster_jpeg(frames))
        self.store.put(key, mp4)
        return {
            **DROPPED,
            "status": "rendered",
            "clip": key,
            "poster": ledger.poster_key(key),
            "frames": frames.shape[0],
            "height": frames.shape[1],
            "width": frames.shape[2],
            "fps": self.fps,
            "bytes": len(mp4),
            "sha256": hashlib.sha256(mp4).hexdigest(),
            "refine_seconds": refined - started,
            "publish_seconds": time.perf_counter() - refined,
            "device": self.device_name,
            "host": socket.gethostname(),
        }

    def _refine(self, row: Mapping[str, Any], latents: torch.Tensor) -> np.ndarray:
        own = self.settings.refine
        frames = self.pipe(
            preview_latents=latents[None],
            **_embeds(row["prompt_embeds"], "refine"),
            height=own.height,
            width=own.width,
            num_inference_steps=own.num_inference_steps,
            guidance_scale=own.guidance_scale,
            noise_step=own.noise_step,
            generator=_generator(row["seed"], self.name),
            guidance_batching=own.guidance_batching,
            decode_tiling=own.decode_tiling,
            decode_tiles=own.decode_tiles,
            output_type="pt",
        ).frames
        _check_finite(frames, "stage 2")
        return video.to_uint8(frames[0].float().cpu())


def count_tokens(model: str, prompts: Sequence[str]) -> tuple[list[int], int]:
    """Tokens of each prompt as the model's text encoder counts them, and how many it reads."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights.locate(model, "preview") / "tokenizer")
    lengths = [len(ids) for ids in tokenizer([prompt.strip() for prompt in prompts], verbose=False)["input_ids"]]
    return lengths, weights.sampling_defaults(model, "preview")["max_sequence_length"]


def _load(pipeline: Any, folder: Path, dtype: str | Mapping[str, str], pool: Pool, **components: None) -> Any:
    """Load a pipeline onto the actor's card, or on the CPU where Ray gave it none. `dtype` may differ by component."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    dtypes = getattr(torch, dtype) if isinstance(dtype, str) else {k: getattr(torch, v) for k, v in dtype.items()}
    pipe = pipeline.from_pretrained(folder, dtype=dtypes, **components)
    pipe.set_progress_bar_config(disable=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if pool.offload == "none" or device == "cpu":
        pipe.to(device)
    elif pool.offload == "model":
        pipe.enable_model_cpu_offload()
    else:
        pipe.enable_sequential_cpu_offload()
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


def _provenance(row: Mapping[str, Any]) -> dict[str, str]:
    """Which candidate a file holds, for the file itself."""
    own = {name: row[name] for name in ("clip_id", "id", "prompt", "seed", "candidate")}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in own.items()}
