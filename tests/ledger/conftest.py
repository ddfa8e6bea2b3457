"""A place for a run, once in a local folder and once in a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import S3

from flashvideo_ray.ledger.store import Store


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(str(tmp_path / "run"))
    s3: S3 = request.getfixturevalue("s3")
    return Store(f"s3://{s3.bucket}/{tmp_path.name}-{request.node.name}")
