"""What all stages share, without Ray: an error is a value in the row, and what it cost stands in the row, too."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest

from flashvideo_ray import Settings
from flashvideo_ray.graph.stage import StageBase, row_schema
from flashvideo_ray.graph.tracker import Tracker, TrackerClient
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.settings import LedgerSettings


class Renders(StageBase):
    """A stage 2 that takes its time and then fails on prompts that say so, on its card or after it."""

    name = "refine"
    device_name = "NVIDIA L40S"

    def takes(self, row: Mapping[str, Any]) -> bool:
        return True

    def process(self, row: dict[str, Any]) -> dict[str, Any]:
        with self.device(row):
            time.sleep(0.02)
            if row["prompt"] == "fails":
                raise ValueError("NaN")
        if row["prompt"] == "cannot be stored":
            raise OSError("no space")
        return {"status": "rendered", "refine_seconds": 1.0}


@pytest.fixture
def stage(tmp_path: Any) -> Renders:
    tracker = Tracker(Store(str(tmp_path)), tables.PREVIEWS, LedgerSettings())
    names = ("joined", "begin", "attempt", "survived", "end")
    handle = SimpleNamespace(**{name: SimpleNamespace(remote=getattr(tracker, name)) for name in names})
    return Renders(Settings(), cast(Any, TrackerClient(handle, lambda answer: answer)))


def test_a_call_that_fails_says_what_it_cost_and_on_what(stage: Renders) -> None:
    """The row came with the device that made its preview; it was another one that failed."""
    row = {**dict.fromkeys(row_schema().names), "clip_id": "a", "status": "previewed", "device": "NVIDIA H100"}
    prompts = ("fails", "cannot be stored", "goes well")
    batch = pa.Table.from_pylist([{**row, "prompt": prompt} for prompt in prompts], schema=row_schema())
    failed, stored, well = stage(batch).to_pylist()
    for each in (failed, stored):
        assert (each["status"], each["stage"], each["device"]) == ("failed", "refine", "NVIDIA L40S")
        assert 0.02 <= each["refine_seconds"] < 1.0
    assert (well["status"], well["refine_seconds"]) == ("rendered", 1.0)
