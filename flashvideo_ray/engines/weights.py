"""Where a model's weights are, what it says of itself, and a fingerprint of its content.

A model is a folder with `preview/` and `refine/`, each an ordinary diffusers pipeline folder. `nano` names the one that
ships with the package, `org/name[@revision]` one on the Hugging Face hub.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import platformdirs

from flashvideo_ray.errors import InputError
from flashvideo_ray.settings import Settings, SettingsError

ModelStage = Literal["preview", "refine"]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_CHUNK = 16 * 2**20


class ModelNotFoundError(InputError):
    """No such model. The message says what was looked for and what to do."""


def locate(model: str, stage: ModelStage) -> Path:
    """The folder of one stage on this machine; a hub id is downloaded (that stage only) on first use.

    Raises ModelNotFoundError.
    """
    folder = _local(model)
    if folder is None:
        folder = _download(model, allow_patterns=[f"{stage}/*"])
    if not (folder / stage / "model_index.json").is_file():
        raise ModelNotFoundError(
            f"{model}: no {stage}/model_index.json in {folder}; "
            "a model folder holds preview/ and refine/, as `flashvideo-ray convert` writes them"
        )
    return folder / stage


def sampling_defaults(model: str, stage: ModelStage) -> dict[str, Any]:
    """Sizes, steps, guidance and the like that the model's own `model_index.json` states."""
    index = _json(model, stage, "model_index.json")
    return {key: value for key, value in index.items() if not key.startswith("_") and not _is_component(value)}


def config(model: str, stage: ModelStage, part: Literal["transformer", "vae"]) -> dict[str, Any]:
    """The configuration of one of a stage's networks; of a hub model only that file is downloaded.

    Raises ModelNotFoundError.
    """
    return _json(model, stage, f"{part}/config.json")


def with_model_defaults(settings: Settings) -> Settings:
    """The settings with every null in `preview` and `refine` replaced by what the models themselves state.

    So that a recipe holds what was really used. Raises ModelNotFoundError.
    """
    resolved: dict[str, Any] = {}
    stage: ModelStage
    for stage in ("preview", "refine"):
        own = getattr(settings, stage)
        defaults = {"vae_dtype": own.dtype, **sampling_defaults(own.model, stage)}
        nulls = [name for name in type(own).model_fields if getattr(own, name) is None]
        known = {name: defaults[name] for name in nulls if name in defaults}
        resolved[str(stage)] = type(own).model_validate({**own.model_dump(), **known})
    return settings.model_copy(update=resolved)


def check_sizes(settings: Settings) -> None:
    """Raise SettingsError for a size or a length that the models cannot make."""
    stage: ModelStage
    for stage in ("preview", "refine"):
        own = getattr(settings, stage)
        vae, transformer = config(own.model, stage, "vae"), config(own.model, stage, "transformer")
        smallest = 2 ** (len(vae["block_out_channels"]) - 1) * transformer["patch_size"]
        for name in ("height", "width"):
            if getattr(own, name) < smallest:
                raise SettingsError(
                    f"{stage}.{name}: {getattr(own, name)} pixels; this model makes at least {smallest}"
                )
        if stage == "preview":
            ratio = int(vae["temporal_compression_ratio"])
            latent_frames, rest = divmod(own.num_frames - 1, ratio)
            if rest or (ratio > 1 and latent_frames % 2):
                raise SettingsError(
                    f"preview.num_frames: {own.num_frames}; this model makes {2 * ratio}k + 1, such as {12 * ratio + 1}"
                )


def fingerprint(model: str, stage: ModelStage) -> str:
    """A hex digest of one stage's weights and configs, or the commit of a hub model; equal content, equal digest.

    The digest of a file is remembered by path, size and time of change, so that gigabytes are read once.
    """
    if _local(model) is None:
        from huggingface_hub import HfApi

        name, _, revision = model.partition("@")
        commit = HfApi().model_info(name, revision=revision or None).sha
        return hashlib.sha256(f"{name}@{commit}/{stage}".encode()).hexdigest()[:16]
    folder = locate(model, stage)
    cache = _DigestCache()
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    listing = [f"{path.relative_to(folder).as_posix()} {cache.digest(path)}" for path in files]
    cache.save()
    return hashlib.sha256("\n".join(listing).encode()).hexdigest()[:16]


def _local(model: str) -> Path | None:
    """The model's folder if it is a local one, None for a hub id."""
    if model == "nano":
        from flashvideo_ray import nano

        return nano.path()
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if _HUB_ID.fullmatch(model):
        return None
    raise ModelNotFoundError(f"{model}: no such folder, and not a hub id (org/name)")


def _json(model: str, stage: ModelStage, file: str) -> dict[str, Any]:
    """One JSON file of a stage's folder; of a hub model only that file is downloaded."""
    folder = locate(model, stage) if _local(model) is not None else _download(model, [f"{stage}/{file}"]) / stage
    return json.loads((folder / file).read_text())


def _is_component(value: Any) -> bool:
    """Components stand in model_index.json as [library, class], both null where one is left out."""
    return isinstance(value, list) and all(part is None or isinstance(part, str) for part in value)


def _download(model: str, allow_patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = model.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=allow_patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelNotFoundError(
            f"{model}: no such folder here, and the hub did not give it ({type(error).__name__}: {error})"
        ) from error


class _DigestCache:
    """SHA-256 of files, kept in the user's cache folder."""

    def __init__(self) -> None:
        self.file = Path(platformdirs.user_cache_dir("flashvideo_ray")) / "digests.json"
        try:
            self.known: dict[str, str] = json.loads(self.file.read_text())
        except (OSError, ValueError):
            self.known = {}
        self.changed = False

    def digest(self, path: Path) -> str:
        status = path.stat()
        key = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"
        if key not in self.known:
            sha = hashlib.sha256()
            with open(path, "rb") as file:
                while chunk := file.read(_CHUNK):
                    sha.update(chunk)
            self.known[key] = sha.hexdigest()
            self.changed = True
        return self.known[key]

    def save(self) -> None:
        if not self.changed:
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            partial = self.file.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps(self.known))
            os.replace(partial, self.file)
        except OSError:
            pass  # a home folder that cannot be written costs time, nothing else


def count_tokens(model: str, texts: Sequence[str]) -> list[int]:
    """Tokens of each text as the model's text encoder counts them, the end among them, uncut."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(locate(model, "preview") / "tokenizer")
    return [len(ids) for ids in tokenizer([text.strip() for text in texts], verbose=False)["input_ids"]]
