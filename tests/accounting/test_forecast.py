"""Given how fast work goes, then when it ends and what it costs by then; nothing is guessed before there is a rate."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

import pytest

from flashvideo_ray import Settings
from flashvideo_ray.accounting import forecast
from flashvideo_ray.accounting.billing import Cost
from flashvideo_ray.accounting.forecast import Forecast, Pace
from flashvideo_ray.accounting.terminal import forecast_line

PRICED = Settings.of_tree(
    {
        "pools": {
            "preview": {"size": 2, "num_gpus": 1, "accelerator_type": "H100"},
            "refine": {"size": 4, "num_gpus": 1, "accelerator_type": "L4"},
        },
        "prices": {"devices": {"H100": {"on_demand": 4.0}, "L4": {"on_demand": 1.0}}, "currency": "EUR"},
    }
)
EIGHT = dt.datetime(2026, 11, 26, 20, 0, tzinfo=dt.UTC)


def test_the_slowest_stage_decides_and_all_pools_are_held_until_then() -> None:
    preview = Pace("preview", 60, 100, 1 / 60, actors=2, held_seconds=7200)  # 40 min left
    refine = Pace("refine", 10, 100, 1 / 80, actors=4, held_seconds=3600)  # 2 h left
    found = forecast.of_pools([preview, refine], PRICED)
    assert found.seconds_left == pytest.approx(7200)
    assert found.spent.money == pytest.approx(2 * 4.0 + 1 * 1.0)
    assert found.expected is not None
    assert found.expected.money == pytest.approx(9.0 + 2 * (2 * 4.0 + 4 * 1.0))
    told = forecast.as_dict(found, "EUR")
    assert (
        forecast_line(told, EIGHT)
        == "ends about 22:00 UTC (in 2 h 00 min); 9.00 EUR so far, about 33.00 EUR at the end"
    )
    assert "02:00 UTC on 2026-11-27" in forecast_line({**told, "seconds_left": 6 * 3600.0}, EIGHT)


def test_while_a_stage_has_no_rate_the_end_is_not_known() -> None:
    preview = Pace("preview", 60, 100, 1.0, actors=2, held_seconds=60)
    refine = Pace("refine", 0, 100, 0.0, actors=0, held_seconds=0)
    found = forecast.of_pools([preview, refine], PRICED)
    assert (found.seconds_left, found.expected) == (None, None)
    line = forecast_line(forecast.as_dict(found, "EUR"), EIGHT)
    assert line == "the end is not known yet; 0.0667 EUR so far"
    assert forecast.of_pools([], PRICED).seconds_left is None
    # One that is done needs none.
    done = Pace("refine", 100, 100, 0.0, actors=4, held_seconds=0)
    assert forecast.of_pools([preview, done], PRICED).seconds_left == pytest.approx(40)


def test_without_prices_it_is_said_in_hours_of_cards_or_cores() -> None:
    settings = Settings.of_tree({"pools": {"preview": {"num_gpus": 0.5}}})
    found = forecast.of_pools([Pace("preview", 1, 3, 1 / 3600, actors=2, held_seconds=7200)], settings)
    line = forecast_line(forecast.as_dict(found, "USD"), EIGHT)
    assert line.endswith("; 1 GPU-hours so far, about 3 GPU-hours at the end")
    cores = forecast.of_pools([Pace("preview", 1, 3, 1 / 3600, actors=1, held_seconds=3600)], Settings())
    assert "1 core-hours so far" in forecast_line(forecast.as_dict(cores, "USD"), EIGHT)


@pytest.mark.parametrize(
    ("counts", "ended", "seconds", "money"),
    [
        ({"rendered": 6, "rejected": 4, "open": 9, "approved": 1}, 5, 1200.0, 20.0),  # of ten, five in this job
        ({"rendered": 6, "rejected": 4, "open": 10}, 1, None, None),  # one is no rate
        ({"open": 10}, 0, None, None),
        ({"rendered": 6, "rejected": 4, "open": 0}, 5, 0.0, 10.0),
    ],
)
def test_a_run_ends_at_the_rate_of_its_newest_job(
    counts: Mapping[str, int], ended: int, seconds: float | None, money: float | None
) -> None:
    before = [EIGHT - dt.timedelta(days=1)] * 5  # of another job, which was faster
    ends = [*before, *(EIGHT + dt.timedelta(seconds=120 * (number + 1)) for number in range(ended))]
    found = forecast.of_run(counts, ends, EIGHT, Cost(gpu_seconds=3600, money=10.0))
    assert found.seconds_left == seconds
    assert (found.expected.money if found.expected is not None else None) == money


def test_nothing_is_left_of_a_run_that_has_ended() -> None:
    told = forecast.as_dict(Forecast(0.0, Cost(money=3.0, gpu_seconds=1.0), Cost(money=3.0, gpu_seconds=1.0)), "USD")
    assert forecast_line(told, EIGHT) == "nothing is left; 3.00 USD so far"
