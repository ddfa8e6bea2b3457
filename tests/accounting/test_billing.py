"""Given a ledger and prices, when it is added up, then this bill."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from flashvideo_ray import Settings
from flashvideo_ray.accounting import billing, estimates
from flashvideo_ray.accounting.summary import summarise
from flashvideo_ray.ledger import tables
from flashvideo_ray.settings import DevicePrice

CANDIDATE = {"id": "p", "prompt": "a calm sea", "seed": 0, "candidate": 0}
CARDS = [
    "pools.preview.num_gpus=1",
    "pools.refine.num_gpus=1",
    "prices.devices={H100: {on_demand: 4.0, spot: 2.0}, L40S: {on_demand: 1.0}}",
]


def run_of_four(**refine: Any) -> tuple[pa.Table, pa.Table]:
    """Best of four with the paper's times: four previews, one of which became a clip."""
    previews = [
        {
            **CANDIDATE,
            "clip_id": str(n),
            "status": "previewed",
            "preview_seconds": 30.1,
            "device": "NVIDIA H100 80GB HBM3",
        }
        for n in range(4)
    ]
    clips = [{**CANDIDATE, "clip_id": str(n), "status": "rejected"} for n in range(1, 4)]
    clips.append(
        {**CANDIDATE, "clip_id": "0", "status": "rendered", "refine_seconds": 72.2, "device": "NVIDIA L40S", **refine}
    )
    return pa.Table.from_pylist(previews, tables.PREVIEWS), pa.Table.from_pylist(clips, tables.CLIPS)


def test_best_of_four_takes_193_seconds_for_409_and_saves_53_percent() -> None:
    bill = billing.bill(*run_of_four(), Settings.load(None, CARDS[:2]))
    assert bill.total.gpu_seconds == pytest.approx(193, abs=0.5)
    assert bill.refine_everything is not None
    assert bill.total.gpu_seconds + bill.refine_everything.cost.gpu_seconds == pytest.approx(409, abs=0.5)
    assert bill.refine_everything.spared == 3
    assert bill.refine_everything.share == pytest.approx(0.53, abs=0.001)
    assert bill.per_clip == bill.total
    assert bill.rejected_cost.gpu_seconds == pytest.approx(3 * 30.1)
    assert bill.total.money is None


def test_money_is_hours_times_the_price_of_each_device() -> None:
    bill = billing.bill(*run_of_four(), Settings.load(None, [*CARDS, "pools.preview.spot=true"]))
    preview, refine = 4 * 30.1 / 3600 * 2.0, 72.2 / 3600 * 1.0
    assert [line.money for line in bill.lines] == pytest.approx([preview, refine])
    assert bill.total.money == pytest.approx(preview + refine)
    saving = bill.refine_everything
    assert saving is not None
    assert saving.money_share == pytest.approx(3 * refine / (preview + 4 * refine))
    assert bill.notes == ()
    json.dumps(billing.as_dict(bill), allow_nan=False)


def test_an_actor_may_hold_a_share_of_a_card_or_many_cores() -> None:
    settings = Settings.load(None, ["pools.preview.num_gpus=0.5", "pools.refine.num_cpus=8"])
    bill = billing.bill(*run_of_four(device="cpu (x86_64)"), settings)
    assert bill.total == billing.Cost(gpu_seconds=0.5 * 4 * 30.1, cpu_seconds=8 * 72.2)


@pytest.mark.parametrize(("asked", "cores"), [("0.1", 1), ("0", 1), ("1", 1), ("2.5", 2)])
def test_a_call_counts_the_cores_that_it_can_use_however_little_its_pool_asks_for(asked: str, cores: int) -> None:
    settings = Settings.load(None, [f"pools.refine.num_cpus={asked}", "pools.preview.num_gpus=1"])
    bill = billing.bill(*run_of_four(device="cpu (x86_64)"), settings)
    assert bill.total.cpu_seconds == pytest.approx(cores * 72.2)


def test_what_the_audit_refines_is_not_saved() -> None:
    previews, clips = run_of_four()
    rows = clips.to_pylist()
    rows[0] |= {"clip": "clips/1.mp4", "audit": True, "refine_seconds": 72.2, "device": "NVIDIA L40S"}
    bill = billing.bill(previews, pa.Table.from_pylist(rows, tables.CLIPS), Settings.load(None, CARDS))
    assert (bill.rejected, bill.audited, bill.audit_cost.gpu_seconds) == (3, 1, 72.2)
    assert bill.refine_everything is not None
    assert bill.refine_everything.spared == 2


def test_a_device_without_a_price_is_named_and_left_out() -> None:
    settings = Settings.load(None, [*CARDS[:2], "prices.devices={L40S: {on_demand: 1.0}}"])
    bill = billing.bill(*run_of_four(), settings)
    assert bill.total.money == pytest.approx(72.2 / 3600)
    assert bill.notes == ("preview on NVIDIA H100 80GB HBM3: no price in prices.devices, so not in the sums of money",)


PREVIEWS = ["pools.text.num_gpus=0.1", "pools.preview.num_gpus=0.5"]
SHARE = [*PREVIEWS, "pools.refine.num_gpus=0.5"]
ON_H100 = ("text", "NVIDIA H100 80GB HBM3")


@pytest.mark.parametrize(
    ("device", "options", "billed"),
    [
        ("NVIDIA H100 80GB HBM3", SHARE, ON_H100),
        ("NVIDIA H100 80GB HBM3", [*SHARE, "pools.text.labels={tier: small}"], ("text", None)),
        ("NVIDIA H100 80GB HBM3", [*SHARE, "pools.text.accelerator_type=L4"], ("text", "L4")),
        ("NVIDIA H100 80GB HBM3", [], ("text", "cpu")),
        ("NVIDIA L40S", SHARE, ("text", None)),  # a cluster of two kinds, and nobody has said which
        ("NVIDIA L40S", [*SHARE, "pools.preview.labels={tier: large}"], ("text", None)),  # it may be on either
        ("cpu (x86_64)", PREVIEWS, ON_H100),
    ],
)
def test_text_on_a_share_of_a_card_is_billed_where_the_other_stages_ran(
    device: str, options: list[str], billed: tuple[str, str | None]
) -> None:
    previews, clips = run_of_four(device=device)
    texts = pa.array([0.5, None, None, None], pa.float64())
    previews = previews.set_column(previews.column_names.index("text_seconds"), "text_seconds", texts)
    line, *_ = billing.bill(previews, clips, Settings.load(None, options)).lines
    assert (line.stage, line.device) == billed


@pytest.mark.parametrize(
    ("device", "key"),
    [
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100 80GB"),
        ("NVIDIA H100 PCIe", "H100"),
        ("cpu (x86_64)", "cpu"),
        ("NVIDIA A10G", None),
    ],
)
def test_a_price_is_found_by_the_words_of_a_name(device: str, key: str | None) -> None:
    prices = {name: DevicePrice(on_demand=1.0) for name in ("L4", "L40S", "A100", "A10", "H100", "H100 80GB", "cpu")}
    assert billing.price_of(device, prices) is (None if key is None else prices[key])


def test_idle_is_what_a_pool_held_and_did_not_use() -> None:
    pools = {
        "preview": {"held_seconds": 200.0, "busy_seconds": 150.0},
        "rate": {"held_seconds": 0.0, "busy_seconds": 0.0},
    }
    bill = billing.bill(*run_of_four(), Settings.load(None, CARDS), pools)
    assert list(bill.pools) == ["preview"]
    assert bill.pools["preview"].idle_share == pytest.approx(0.25)
    assert bill.pools["preview"].held_money == pytest.approx(200 / 3600 * 4.0)


def test_a_single_stage_is_compared_by_operations() -> None:
    """The released networks at the published sizes: 18 times the operations for a clip, by calculation."""
    operations = estimates.operations(Settings.load("flashvideo-1080p"))
    assert operations.released
    assert operations.single / (operations.preview + operations.refine) == pytest.approx(18.6, abs=0.1)
    single = billing.bill(*run_of_four(), Settings.load(None, CARDS), operations=operations).single_stage
    assert single is not None
    assert single.operations == 4 * operations.single
    assert single.two_stages == 4 * operations.preview + operations.refine
    assert single.cost.gpu_seconds == pytest.approx(4 * 30.1 * operations.single / operations.preview)


def test_a_run_without_rows_has_an_empty_bill() -> None:
    bill = billing.bill(tables.PREVIEWS.empty_table(), tables.CLIPS.empty_table(), Settings())
    assert (bill.lines, bill.per_clip, bill.refine_everything, bill.total.seconds) == ((), None, None, 0)


def test_what_failed_is_in_the_bill_and_not_in_the_mean_of_a_refine() -> None:
    """A stage 2 that failed after 36.1 s, and a preview that failed after 10 s and so has no row of previews."""
    previews, clips = run_of_four()
    failures = [
        {**CANDIDATE, "clip_id": "1", "status": "failed", "stage": "refine", "refine_seconds": 36.1,
         "device": "NVIDIA L40S", "preview_seconds": 30.1},
        {**CANDIDATE, "clip_id": "5", "status": "failed", "stage": "preview", "preview_seconds": 10.0,
         "device": "NVIDIA H100 80GB HBM3"},
    ]  # fmt: skip
    rows = [row for row in clips.to_pylist() if row["clip_id"] != "1"] + failures
    clips = pa.Table.from_pylist(rows, tables.CLIPS)
    bill = billing.bill(previews, clips, Settings.load(None, CARDS))
    assert [(line.stage, line.count, line.seconds) for line in bill.lines] == [
        ("preview", 5, pytest.approx(4 * 30.1 + 10)),
        ("refine", 2, pytest.approx(72.2 + 36.1)),
    ]
    assert bill.total.gpu_seconds == pytest.approx(4 * 30.1 + 10 + 72.2 + 36.1)
    assert (bill.failed, bill.failed_cost.gpu_seconds) == (2, pytest.approx(46.1))
    assert bill.refine_everything is not None
    assert bill.refine_everything.cost.gpu_seconds == pytest.approx(2 * 72.2)
    summary = summarise(previews, clips)
    assert summary["stages"]["refine"] == {"count": 1, "seconds": 72.2, "mean_seconds": 72.2}
    assert summary["failed_calls"]["refine"] == {"count": 1, "seconds": 36.1}
    assert summary["gpu_seconds"] == pytest.approx(4 * 30.1 + 10 + 72.2 + 36.1)
