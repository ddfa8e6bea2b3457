"""One service for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_run import Served, serving


@pytest.fixture(scope="package")  # the folder is a package, so this ends with it: another Ray may come next
def served(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("served"), tiny_model) as found:
        yield found
