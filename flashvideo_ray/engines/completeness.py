"""Whether a model folder is whole, without reading its weights: every part that it names, every file in full length."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

_WITHOUT_WEIGHTS = ("scheduler", "tokenizer")  # diffusers' names of such parts
_WEIGHTS = (".safetensors", ".bin", ".pt")


def faults(folder: Path) -> list[str]:
    """One line for each thing that is wrong with one stage's folder (`preview/` or `refine/`); none: it is whole.

    A file in safetensors states its own length, so that one whose copy broke off is found by its header.
    """
    index = _json(folder / "model_index.json")
    if isinstance(index, str):
        return [index]
    found = []
    for part, about in index.items():
        if part.startswith("_") or not isinstance(about, list) or not all(isinstance(word, str) for word in about):
            continue  # a setting, or a part that is left out
        if not (folder / part).is_dir():
            found.append(f"{folder / part} is missing")
        elif not part.startswith(_WITHOUT_WEIGHTS):
            found += _of_network(folder / part)
        elif not any((folder / part).iterdir()):
            found.append(f"{folder / part} is empty")
    return found


def _of_network(folder: Path) -> Iterator[str]:
    config = _json(folder / "config.json")
    if isinstance(config, str):
        yield config
    files = {file for file in folder.iterdir() if file.suffix in _WEIGHTS}
    for index in folder.glob("*.index.json"):
        shards = _json(index)
        if isinstance(shards, str):
            yield shards
            continue
        files |= {folder / str(name) for name in dict(shards.get("weight_map", {})).values()}
    if not files:
        yield f"{folder} holds no weights"
    for file in sorted(files):
        if not file.is_file():
            yield f"{file} is missing"
        elif not file.stat().st_size:
            yield f"{file} is empty"
        elif file.suffix == ".safetensors" and (fault := _cut(file)):
            yield fault


def _cut(file: Path) -> str | None:
    try:
        with safe_open(file, "np"):
            return None
    except (SafetensorError, OSError, ValueError) as error:
        return f"{file} is cut short or damaged ({error})"


def _json(file: Path) -> dict[str, Any] | str:
    """Its content, or what is wrong with it."""
    try:
        return dict(json.loads(file.read_text()))
    except FileNotFoundError:
        return f"{file} is missing"
    except (OSError, ValueError, TypeError) as error:
        return f"{file} cannot be read ({error})"
