"""How a clip was made, from its file alone: what it says of itself, whether that holds, and how to make it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import fsspec

from flashvideo_ray.errors import InputError, no_file_system
from flashvideo_ray.media import credentials, video
from flashvideo_ray.settings import SettingsError

_JSON = ("settings", "models", "model_fingerprints", "seed", "candidate")  # keys that are JSON, or numbers
_NO_FOLDERS = ("nano", "existing", "none")  # models that are names
_FOLDER = "/path/to/"  # stands before the name of a folder, of which a file does not say where it is


class InspectError(InputError):
    """There is nothing to inspect. The message says why."""


@dataclass(frozen=True)
class Inspection:
    """What a file is and what it says of itself."""

    file: str
    video: dict[str, Any]
    """What it holds: `frames`, `height`, `width`, `fps`, `codec`, `bytes`, `sha256`, `stream_sha256`."""
    mark: str | None
    """IPTC's digital source type; None where it says nothing."""
    made: dict[str, Any]
    """What it says of how it was made; empty where this package has not made it, or the file has lost it."""
    signature: credentials.Signature | None
    """None where there is none, or it cannot be read here (see `notes`)."""
    command: str | None
    """A shell command that makes the same stream again; None where the file does not say enough."""
    notes: tuple[str, ...]
    """What must be known of it, sentence by sentence."""


def inspect(url: str, trust: str | None = None) -> Inspection:
    """Look at a file.

    Args:
        url: a path or any fsspec URL.
        trust: certificates in PEM that a signer's must lead to.

    Raises InspectError where there is no such file, or it is no video.
    """
    try:
        with fsspec.open(url, "rb") as file:
            data: bytes = file.read()
    except ImportError as error:
        raise InspectError(no_file_system(url, error)) from None
    except Exception as error:  # each file system has its own
        raise InspectError(f"{url}: cannot be read: {type(error).__name__}: {error}") from error
    try:
        info = video.probe(data)
        held = {name: getattr(info, name) for name in ("frames", "height", "width", "fps", "codec")}
        held |= video.digests(data)
    except ValueError as error:
        raise InspectError(f"{url}: {error}") from None
    notes: list[str] = []
    signature = _signature(data, trust, notes)
    made = _made(info.metadata, notes)
    return Inspection(
        file=url,
        video=held,
        mark=info.metadata.get("digital_source_type"),
        made=made,
        signature=signature,
        command=_command(made, notes),
        notes=tuple(notes),
    )


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON in which other scripts stay readable, and all that cannot be printed is escaped: a file is from anybody."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return "".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text)


def _signature(data: bytes, trust: str | None, notes: list[str]) -> credentials.Signature | None:
    try:
        found = credentials.read(data, trust)
    except SettingsError as error:  # c2pa-python is not there
        notes.append(f"Whether it is signed is not known here: {error}.")
        return None
    if found is None:
        notes.append("It is not signed: what it says of itself may have been changed by anybody.")
    elif not found.intact:
        notes.append(f"Its signature does not hold: it is not what was signed ({', '.join(found.faults)}).")
    elif not found.holds:
        notes.append(
            f"It is what {found.signer} has signed, and the signature does not hold: {', '.join(found.faults)}."
        )
    elif found.trusted is None:
        notes.append(f"It is what {found.signer} has signed; --trust says whether that certificate is one you trust.")
    elif not found.trusted:
        notes.append(f"It is what {found.signer} has signed, a certificate that --trust does not lead to.")
    return found


def _made(metadata: Mapping[str, str], notes: list[str]) -> dict[str, Any]:
    if "clip_id" not in metadata:
        notes.append("It does not say how it was made: another program has made it, or the copy has lost it.")
        return {}
    made: dict[str, Any] = {}
    for name, value in metadata.items():
        if name not in ("comment", "digital_source_type"):
            try:
                made[name] = json.loads(value) if name in _JSON else value
            except ValueError:
                made[name] = value
    return made


def _command(made: Mapping[str, Any], notes: list[str]) -> str | None:
    """What to run: prompts of one line, and settings that leave nothing to defaults or to selection."""
    if not made:
        return None
    try:
        return _words(made, notes)
    except (KeyError, TypeError, ValueError, AttributeError):
        notes.append("It does not say enough to be made again: an earlier version, or another program, has made it.")
        return None


def _words(made: Mapping[str, Any], notes: list[str]) -> str:
    if "prompt" in made:
        row = {name: made[name] for name in ("id", "prompt", "negative_prompt", "seed") if name in made}
        line = as_json(row)
    else:
        line = '{"prompt": "PROMPT", "seed": SEED}'
        notes.append(
            "Its prompt and seed are withheld: put them in the command's place of PROMPT and SEED, and add a "
            "negative_prompt if it had one."
        )
    if made["models"]["preview"]["model"] == "existing":
        line = line.removesuffix("}") + ', "preview_url": "PREVIEW_URL"}'
        notes.append("Its preview had existed before: put its address in the command's place of PREVIEW_URL.")
    # These alone: a file may come from anybody, and other settings name code that is imported.
    tree = {name: dict(made["settings"][name]) for name in ("text", "preview", "refine", "video")}
    for stage in ("preview", "refine"):
        own = made["models"][stage]
        tree[stage]["model"] = _located(own["model"])
        if own["adapters"]:
            tree[stage]["adapters"] = [{**each, "path": _FOLDER + each["path"]} for each in own["adapters"]]
        if _FOLDER in json.dumps(tree[stage]):
            print_ = made["model_fingerprints"][stage]
            notes.append(f"{stage}.model: put your own paths in the command; the weights' fingerprint is {print_}.")
    words = ["flashvideo-ray", "render", "again.jsonl", "again"]
    for name, value in tree.items():
        words += ["--set", f"{name}={json.dumps(value)}"]
    return f"printf '%s\\n' {shlex.quote(line)} > again.jsonl && {shlex.join(words)}"


def _located(model: str) -> str:
    return model if model in _NO_FOLDERS or "/" in model else _FOLDER + model
