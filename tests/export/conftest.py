"""One run for all tests of exports."""

from __future__ import annotations

import shutil
from pathlib import Path

import export_run
import pytest

from flashvideo_ray.ledger.store import Store


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A run of a hundred clips; nobody changes it."""
    store = Store(str(tmp_path_factory.mktemp("exports") / "run"))
    export_run.build(store)
    return store


@pytest.fixture
def run(built: Store, tmp_path: Path) -> Store:
    """A copy of it that may be changed."""
    shutil.copytree(built.path(), tmp_path / "run")
    return Store(str(tmp_path / "run"))
