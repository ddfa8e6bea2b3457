"""Where a model's weights are, what it says of itself, and a fingerprint of its content.

A model is a folder with `preview/` and `refine/`, each an ordinary diffusers pipeline folder. `nano` names the one that
ships with the package, `org/name[@revision]` one on the Hugging Face hub.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import platformdirs

from flashvideo_ray.errors import InputError
from flashvideo_ray.settings import AdapterSettings, Settings

ModelStage = Literal["preview", "refine"]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_COMMIT = re.compile(r"@[0-9a-f]{40}$")
_CHUNK = 16 * 2**20
_LARGE = 2**30  # bytes; reading fewer is not worth a word
_TELL_SECONDS = 10.0

log = logging.getLogger("flashvideo_ray")


class ModelNotFoundError(InputError):
    """No such model. The message says what was looked for and what to do."""


class WeightsError(RuntimeError):
    """The weights on a node are not those of the run. The message says which and where."""


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


def config(model: str, stage: ModelStage, part: Literal["transformer", "vae", "scheduler"]) -> dict[str, Any]:
    """The configuration of one of a stage's parts; of a hub model only that file is downloaded.

    Raises ModelNotFoundError.
    """
    return _json(model, stage, f"{part}/{'scheduler_config' if part == 'scheduler' else 'config'}.json")


def pinned(model: str) -> str:
    """A hub model with its commit, `org/name@commit`, so that all that is said and loaded of it is of that one.

    Others are returned as they are. Without a network the commit is the one that was downloaded last. Raises
    ModelNotFoundError.
    """
    if _local(model) is not None or _COMMIT.search(model):
        return model
    folder = _download(model, ["*/model_index.json"])  # a snapshot's folder has its commit for a name
    return f"{model.partition('@')[0]}@{folder.name}"


def with_model_defaults(settings: Settings) -> Settings:
    """The settings with every null in `preview` and `refine` replaced by what the models themselves state.

    Hub models are pinned to their commit. So that a recipe holds what was really used. Raises ModelNotFoundError.
    """
    resolved: dict[str, Any] = {}
    stage: ModelStage
    for stage in ("preview", "refine"):
        own = getattr(settings, stage)
        own = own.model_copy(update={"model": pinned(own.model)})
        defaults = {"vae_dtype": own.dtype, **sampling_defaults(own.model, stage)}
        nulls = [name for name in type(own).model_fields if getattr(own, name) is None]
        known = {name: defaults[name] for name in nulls if name in defaults}
        try:
            resolved[str(stage)] = type(own).model_validate({**own.model_dump(), **known})
        except ValueError as error:
            raise ModelNotFoundError(
                f"{own.model}: its {stage}/model_index.json states what no model can: {error}"
            ) from None
    return settings.model_copy(update=resolved)


def fingerprint(model: str, stage: ModelStage, adapters: Sequence[AdapterSettings] = ()) -> str:
    """A hex digest of one stage's weights and configs, or the commit of a hub model; equal content, equal digest.

    With adapters, also of their content and weights. The digest of a file is remembered by path, size and time of
    change, so that gigabytes are read once on a node. Raises ModelNotFoundError.
    """
    if _local(model) is None:
        name, _, commit = pinned(model).partition("@")
        own = _short(f"{name}@{commit}/{stage}")
    else:
        folder = locate(model, stage)
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        digests = _digests(files)
        own = _short("\n".join(f"{path.relative_to(folder).as_posix()} {digests[path]}" for path in files))
    if not adapters:
        return own
    paths = [Path(adapter.path).expanduser() for adapter in adapters]
    if absent := [str(path) for path in paths if not path.is_file()]:
        raise ModelNotFoundError(f"{stage}.adapters: no such file: {', '.join(absent)}")
    digests = _digests(paths)
    merged = [f"{digests[path]} {adapter.weight!r}" for path, adapter in zip(paths, adapters, strict=True)]
    return _short("\n".join([own, *merged]))


def fingerprint_at_hand(model: str, stage: ModelStage, adapters: Sequence[AdapterSettings] = ()) -> str | None:
    """`fingerprint`, or None where gigabytes would have to be read for it, because nothing has read them here yet."""
    if _local(model) is not None:
        files = [path for path in locate(model, stage).rglob("*") if path.is_file() and not path.name.startswith(".")]
        known = _remembered(_digest_cache())
        if sum(path.stat().st_size for path in files if _identity(path) not in known) > _LARGE:
            return None
    return fingerprint(model, stage, adapters)


def folder_here(model: str, stage: ModelStage) -> Path | None:
    """The folder of one stage; None for a hub model of which this machine has nothing yet. Nothing is downloaded.

    Raises ModelNotFoundError.
    """
    if _local(model) is not None:
        return locate(model, stage)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    name, _, revision = model.partition("@")
    try:
        folder = Path(snapshot_download(name, revision=revision or None, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder / stage if (folder / stage / "model_index.json").is_file() else None


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
    try:
        return dict(json.loads((folder / file).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ModelNotFoundError(
            f"{model}: {folder / file} cannot be read ({error}); copy or convert it anew"
        ) from None


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


def _digests(files: Sequence[Path]) -> dict[Path, str]:
    """SHA-256 of files, from the user's cache folder where they were read before.

    One process of a node reads, the others wait for what it finds.
    """
    cache = _digest_cache()
    keys = {path: _identity(path) for path in files}
    with _locked(cache.with_suffix(".lock")):
        known = _remembered(cache)
        fresh = [path for path in files if keys[path] not in known]
        reading = _Reading(fresh)
        for path in fresh:
            known[keys[path]] = reading.digest(path)
        if fresh:
            _save(cache, known)
    return {path: known[keys[path]] for path in files}


def _digest_cache() -> Path:
    return Path(platformdirs.user_cache_dir("flashvideo_ray")) / "digests.json"


def _remembered(cache: Path) -> dict[str, str]:
    try:
        return dict(json.loads(cache.read_text()))
    except (OSError, ValueError):
        return {}


def _identity(path: Path) -> str:
    status = path.stat()
    return f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"


class _Reading:
    """Files that are read for their digests; what takes long is told."""

    def __init__(self, files: Sequence[Path]):
        self._total, self._done = sum(path.stat().st_size for path in files), 0
        self._told = time.monotonic()

    def digest(self, path: Path) -> str:
        sha = hashlib.sha256()
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                sha.update(chunk)
                self._done += len(chunk)
                if self._total > _LARGE and time.monotonic() - self._told > _TELL_SECONDS:
                    self._told = time.monotonic()
                    log.warning(
                        "reading weights once for their fingerprint: %.1f of %.1f GiB", self._done / 2**30,
                        self._total / 2**30,
                    )  # fmt: skip
        return sha.hexdigest()


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Alone on this node. A home folder that cannot be written costs time, nothing else."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = open(file, "w")  # noqa: SIM115  closed below, which also gives up the lock
    except OSError:
        yield
        return
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _save(cache: Path, known: dict[str, str]) -> None:
    try:
        partial = cache.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(known))
        os.replace(partial, cache)
    except OSError:
        pass


def count_tokens(model: str, texts: Sequence[str]) -> list[int]:
    """Tokens of each text as the model's text encoder counts them, the end among them, uncut."""
    tokenizer = _tokenizer(locate(model, "preview") / "tokenizer")
    return [len(ids) for ids in tokenizer([text.strip() for text in texts], verbose=False)["input_ids"]]


@lru_cache(maxsize=1)
def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
