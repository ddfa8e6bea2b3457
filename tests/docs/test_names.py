"""What the guides name is there: each dotted name of the package, and each path of this repository."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

TEXTS = [*sorted((ROOT / "docs").glob("**/*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
NAME = re.compile(r"\bflashvideo_ray(?:[.:][A-Za-z_]\w*)+")
FOLDERS = ("benchmarks", "deploy", "docs", "flashvideo_ray", "jobs", "tests")
# A path from the root of the repository; what a reader is to fill in (`<name>`, `*`) is none.
PATH = re.compile(rf"(?<![\w./:-])(?:{'|'.join(FOLDERS)})/[\w./-]*(?![\w<*{{…])")
MODULE = re.compile(r"`(\w+/[\w/]+\.py)`")  # from the root, or from the package's


def resolved(name: str) -> Any:
    """What a dotted name leads to. Raises ImportError, AttributeError."""
    found = importlib.import_module("flashvideo_ray")
    for word in re.split("[.:]", name)[1:]:
        if not hasattr(found, word):
            importlib.import_module(f"{found.__name__}.{word}")
        found = getattr(found, word)
    return found


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: str(text.relative_to(ROOT)))
def test_what_a_guide_names_is_there(text: Path) -> None:
    said, wrong = text.read_text(), []
    for name in dict.fromkeys(NAME.findall(said)):
        try:
            resolved(name)
        except (ImportError, AttributeError) as error:
            wrong.append(f"{name}: {error}")
    wrong += [path for path in dict.fromkeys(PATH.findall(said)) if not (ROOT / path.rstrip(".")).exists()]
    modules = dict.fromkeys(MODULE.findall(said))
    wrong += [path for path in modules if not any((ROOT / top / path).exists() for top in ("", "flashvideo_ray"))]
    assert wrong == []
