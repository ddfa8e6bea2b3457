"""Where a model's weights are, what it says of itself, and a fingerprint of its content.

A model of this package is a folder with `preview/` and `refine/`, each an ordinary diffusers pipeline folder; any other
is such a pipeline folder itself (its `Part` is then the empty text). `nano` names the one that ships with the package,
`org/name[@revision]` one on the Hugging Face hub.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import random
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import platformdirs

from flashvideo_ray.errors import InputError
from flashvideo_ray.settings import AdapterSettings

ModelStage = Literal["preview", "refine"]
Part = Literal["preview", "refine", ""]
"""The folder below a model's that holds a pipeline; empty: the model's own."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_COMMIT = re.compile(r"@[0-9a-f]{40}$")
_INDEX = "model_index.json"
_CHUNK = 16 * 2**20
_LARGE = 2**30  # bytes; reading fewer is not worth a word
_TELL_SECONDS = 10.0
_HUB_PAUSES = (5.0, 20.0, 60.0)  # seconds before the hub is asked again
_TOO_OFTEN = 429

log = logging.getLogger("flashvideo_ray")


class ModelNotFoundError(InputError):
    """No such model. The message says what was looked for and what to do."""


class WeightsError(RuntimeError):
    """The weights on a node are not those of the run. The message says which and where."""


def is_pipeline(model: str) -> bool:
    """Whether a model is a diffusers pipeline folder itself. One that is not there is none."""
    try:
        folder = _local(model)
        return _hub_index(model) if folder is None else (folder / _INDEX).is_file()
    except ModelNotFoundError:
        return False


@lru_cache(maxsize=16)
def _hub_index(model: str) -> bool:
    return (_download(model, [_INDEX, f"*/{_INDEX}"]) / _INDEX).is_file()


def locate(model: str, part: Part, only: Sequence[str] = ()) -> Path:
    """The folder of a pipeline on this machine; a hub id is downloaded (that part only) on first use.

    With `only`, of a hub model no more than these of its components; never what else lies there. Raises
    ModelNotFoundError.
    """
    folder = _local(model)
    if folder is None:
        below = f"{part}/" if part else ""
        names = only or [name for name, entry in index(model, part).items() if _is_component(entry) and all(entry)]
        folder = _download(model, [f"{below}{_INDEX}", *(f"{below}{name}/*" for name in names)])
    if not (folder / part / _INDEX).is_file():
        raise ModelNotFoundError(
            f"{model}: no {_INDEX} and no {part}/{_INDEX} in {folder}; "
            "a model folder is a diffusers pipeline's, or holds preview/ and refine/, as `flashvideo-ray convert` "
            "writes them"
        )
    return folder / part


def index(model: str, part: Part) -> dict[str, Any]:
    """A pipeline's `model_index.json`. Raises ModelNotFoundError."""
    return _json(model, part, _INDEX)


def sampling_defaults(model: str, stage: ModelStage) -> dict[str, Any]:
    """Sizes, steps, guidance and the like that the model's own `model_index.json` states."""
    stated = index(model, stage)
    return {key: value for key, value in stated.items() if not key.startswith("_") and not _is_component(value)}


def config(model: str, part: Part, component: str) -> dict[str, Any]:
    """The configuration of one of a pipeline's components; of a hub model only that file is downloaded.

    Raises ModelNotFoundError.
    """
    return _json(model, part, f"{component}/{'scheduler_config' if component == 'scheduler' else 'config'}.json")


def pinned(model: str) -> str:
    """A hub model with its commit, `org/name@commit`, so that all that is said and loaded of it is of that one.

    Others are returned as they are. Without a network the commit is the one that was downloaded last. Raises
    ModelNotFoundError.
    """
    if _local(model) is not None or _COMMIT.search(model):
        return model
    folder = _download(model, [_INDEX, f"*/{_INDEX}"])  # a snapshot's folder has its commit for a name
    return f"{model.partition('@')[0]}@{folder.name}"


def fingerprint(
    model: str, part: Part, adapters: Sequence[AdapterSettings] = (), only: Sequence[str] = (), cls: str = ""
) -> str:
    """A hex digest of a pipeline's weights and configs, or the commit of a hub model; equal content, equal digest.

    With adapters, also of their content and weights; with `only`, of no more than these of its components; with `cls`,
    also of the pipeline's class. The digest of a file is remembered by path, size and time of change, so that gigabytes
    are read once on a node. Raises ModelNotFoundError.
    """
    if _local(model) is None:
        name, _, commit = pinned(model).partition("@")
        own = _short("/".join([f"{name}@{commit}", part, *only]))
    else:
        folder = locate(model, part, only)
        roots = [folder / name for name in only] or [folder]
        found = (path for root in roots for path in root.rglob("*"))
        files = sorted(path for path in found if path.is_file() and not path.name.startswith("."))
        digests = _digests(files)
        own = _short("\n".join(f"{path.relative_to(folder).as_posix()} {digests[path]}" for path in files))
    if cls:
        own = _short(f"{own} {cls}")
    if not adapters:
        return own
    paths = [Path(adapter.path).expanduser() for adapter in adapters]
    if absent := [str(path) for path in paths if not path.is_file()]:
        raise ModelNotFoundError(f"adapters: no such file: {', '.join(absent)}")
    digests = _digests(paths)
    merged = [f"{digests[path]} {adapter.weight!r}" for path, adapter in zip(paths, adapters, strict=True)]
    return _short("\n".join([own, *merged]))


@dataclass(frozen=True)
class Source:
    """Where an engine's weights are from: what `fingerprint` takes."""

    model: str
    part: Part
    adapters: tuple[AdapterSettings, ...] = ()
    cls: str = ""


def fingerprint_at_hand(source: Source) -> str | None:
    """`fingerprint`, or None where gigabytes would have to be read for it, because nothing has read them here yet."""
    if _local(source.model) is not None:
        folder = locate(source.model, source.part)
        files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
        known = _remembered(_digest_cache())
        if sum(path.stat().st_size for path in files if _identity(path) not in known) > _LARGE:
            return None
    return fingerprint(source.model, source.part, source.adapters, cls=source.cls)


def folder_here(source: Source) -> Path | None:
    """The folder of a pipeline; None for a hub model of which this machine has nothing yet. Nothing is downloaded.

    Raises ModelNotFoundError.
    """
    model, part = source.model, source.part
    if _local(model) is not None:
        return locate(model, part)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    name, _, revision = model.partition("@")
    try:
        folder = Path(snapshot_download(name, revision=revision or None, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder / part if (folder / part / _INDEX).is_file() else None


def check_text(found: str, fingerprint: str) -> None:
    """Raise WeightsError unless this node's text encoder of stage 2 is that of the run."""
    if found != fingerprint:
        raise WeightsError(
            f"this node's text encoder for stage 2 is not that of the run (fingerprint {found}, the run has "
            f"{fingerprint}); bring the folder of refine.model up to date on {socket.gethostname()}"
        )


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


def _json(model: str, part: Part, file: str) -> dict[str, Any]:
    """One JSON file of a pipeline's folder; of a hub model only that file is downloaded."""
    if _local(model) is not None:
        folder = locate(model, part)
    else:
        folder = _download(model, [f"{part}/{file}" if part else file]) / part
    try:
        return dict(json.loads((folder / file).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ModelNotFoundError(
            f"{model}: {folder / file} cannot be read ({error}); copy or convert it anew"
        ) from None


def _is_component(value: Any) -> bool:
    """Components stand in model_index.json as [library, class], both null where one is left out."""
    return isinstance(value, list) and all(part is None or isinstance(part, str) for part in value)


def _download(model: str, allow_patterns: Sequence[str]) -> Path:
    """Files of a hub model, as a folder. Raises ModelNotFoundError.

    What a commit holds does not change: one process of a node asks the hub for it, and the others wait and take what is
    there then. What a branch or tag stands for only the hub knows.
    """
    if not _COMMIT.search(model):
        return _asked(model, allow_patterns)
    from huggingface_hub import constants

    name = _short(json.dumps([constants.HF_HUB_CACHE, model, *allow_patterns]))
    brought = Path(platformdirs.user_cache_dir("flashvideo_ray")) / "hub" / f"{name}.json"
    with _locked(brought.with_suffix(".lock")):
        folder = _brought(brought)
        if folder is None:
            folder = _asked(model, allow_patterns)
            held = (path for path in folder.rglob("*") if path.is_file())
            names = [path.relative_to(folder).as_posix() for path in held]
            of_these = [name for name in names if any(fnmatchcase(name, pattern) for pattern in allow_patterns)]
            _save(brought, {"folder": str(folder), "files": json.dumps(of_these)})
        return folder


def _brought(note: Path) -> Path | None:
    """The folder that a download left on this node, if all of its files are still there."""
    try:
        told = json.loads(note.read_text())
        folder = Path(told["folder"])
        return folder if all((folder / name).is_file() for name in json.loads(told["files"])) else None
    except (OSError, ValueError, KeyError):
        return None


def _asked(model: str, allow_patterns: Sequence[str]) -> Path:
    """Ask the hub, with pauses where it says that it is asked too often."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = model.partition("@")
    for pause in (*_HUB_PAUSES, None):
        try:
            return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(allow_patterns)))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            if pause is None or not _is_too_often(error):
                raise ModelNotFoundError(
                    f"{model}: no such folder here, and the hub did not give it ({type(error).__name__}: {error})"
                ) from error
            log.warning("the hub is asked too often for %s; asking again in %g s", model, pause)
            time.sleep(pause * random.uniform(1.0, 1.5))  # so that not all nodes come back at once
    raise AssertionError


def _is_too_often(error: BaseException | None) -> bool:
    """Whether status 429 is at the bottom of an error."""
    while error is not None:
        if getattr(getattr(error, "response", None), "status_code", None) == _TOO_OFTEN:
            return True
        error = error.__cause__ or error.__context__
    return False


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


def count_tokens(model: str, part: Part, texts: Sequence[str]) -> list[int]:
    """Tokens of each text as the model's text encoder counts them, the end among them, uncut."""
    tokenizer = _tokenizer(locate(model, part, ["tokenizer"]) / "tokenizer")
    return [len(ids) for ids in tokenizer([text.strip() for text in texts], verbose=False)["input_ids"]]


@lru_cache(maxsize=1)
def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
