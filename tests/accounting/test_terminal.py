"""Numbers as a terminal shows them."""

from __future__ import annotations

import pytest

from flashvideo_ray.accounting import terminal


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0, ("0.0 s", "0.0")), (0.44, ("0.4 s", "0.4")), (9.97, ("10 s", "10")), (1234.4, ("20 min 34 s", "1234"))],
)
def test_a_few_seconds_of_a_stage_are_shown_with_their_tenths(seconds: float, shown: tuple[str, str]) -> None:
    numbers = {"count": 8, "seconds": seconds, "mean_seconds": seconds / 8, "gpu_seconds": seconds}
    other = {"count": 8, "seconds": 100.0, "mean_seconds": 12.5, "gpu_seconds": 100.0}
    table = terminal.stages_table({"stages": {"text": numbers, "refine": other}, "failed_calls": {}})
    cells = {str(column.header): next(iter(column.cells)) for column in table.columns}
    assert (cells["sum"], cells["GPU-seconds"]) == shown
