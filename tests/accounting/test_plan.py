"""Given prompts, settings and seconds a call, when a run is planned, then clips, hours, money and balance."""

from __future__ import annotations

import heapq
import json
import random
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support import ROOT, write_prompts
from typer.testing import CliRunner

from flashvideo_ray import Settings
from flashvideo_ray.accounting import plan
from flashvideo_ray.accounting.card import Card, CardError, costs_options
from flashvideo_ray.cli import app
from flashvideo_ray.ledger.store import Store

PAPER = plan.declared("preview=30.1,refine=72.2")
CARDS = ["pools.preview.num_gpus=1", "pools.refine.num_gpus=1"]


def simulated(candidates: int, keep_rate: float, sizes: tuple[int, int], seconds: tuple[float, float]) -> float:
    """Makespan of two pools, row by row: each takes the next row when an actor is free."""
    draw = random.Random(0)
    free = [[0.0] * size for size in sizes]
    done = 0.0
    for _ in range(candidates):
        previewed = heapq.heappop(free[0]) + seconds[0]
        heapq.heappush(free[0], previewed)
        done = max(done, previewed)
        if draw.random() < keep_rate:
            refined = max(previewed, heapq.heappop(free[1])) + seconds[1]
            heapq.heappush(free[1], refined)
            done = max(done, refined)
    return done


def test_refining_one_preview_in_four_saves_53_percent() -> None:
    found = plan.plan(1000, Settings.load(None, CARDS), PAPER, keep_rate=0.25)
    assert (found.candidates, found.clips) == (1000, 250)
    assert found.refine_everything is not None
    assert found.refine_everything.share == pytest.approx(0.53, abs=0.001)


def test_of_a_model_that_is_not_known_no_number_of_flashvideo_is_told(pipelines: Callable[[str], Path]) -> None:
    """At the very sizes and on the cards for which FlashVideo's numbers are known."""
    wan = [f"preview.model={pipelines('wan')}", "pools.preview.accelerator_type=H100"]
    settings = Settings.load("flashvideo-1080p", [*wan, "preview.height=256"])
    with pytest.raises(plan.PlanError, match="Name a run to take it from"):
        plan.published(settings)
    found = plan.plan(10, settings, PAPER)
    assert found.operations is None
    assert [fit.stage for fit in found.fits if "preview" in fit.stage] == []
    assert found.text_places == ()
    [note] = [note for note in found.notes if "not known" in note]
    assert note.startswith("preview.model: what ")
    assert plan.plan(10, Settings.load("flashvideo-1080p"), PAPER).operations is not None


def test_best_of_four_costs_193_seconds_a_clip_instead_of_409() -> None:
    found = plan.plan(10, Settings.load(None, [*CARDS, "candidates=4", "select.rank=motion", "select.keep=1"]), PAPER)
    assert (found.candidates, found.clips, found.keep_source) == (40, 10, "the best 1 of 4 (select.keep)")
    assert found.per_clip is not None
    assert found.per_clip.gpu_seconds == pytest.approx(193, abs=0.5)
    assert found.refine_everything is not None
    everything = found.cost + found.refine_everything.cost
    assert everything.gpu_seconds / found.clips == pytest.approx(409, abs=0.5)


@pytest.mark.parametrize("sizes", [(1, 1), (2, 4), (8, 2), (3, 2), (1, 8)])
@pytest.mark.parametrize("keep_rate", [0.25, 0.6, 1.0])
def test_hours_are_those_of_a_simulation(sizes: tuple[int, int], keep_rate: float) -> None:
    settings = Settings.load(None, [f"pools.preview.size={sizes[0]}", f"pools.refine.size={sizes[1]}"])
    found = plan.plan(1000, settings, PAPER, keep_rate=keep_rate)
    assert found.wall_seconds == pytest.approx(simulated(1000, keep_rate, sizes, (30.1, 72.2)), rel=0.05)


def test_pools_are_balanced_where_neither_waits() -> None:
    """Cards of preview to cards of refine as t1 to keep x t2."""
    sizes = ["pools.preview.size=10", "pools.refine.size=12"]
    found = plan.plan(5000, Settings.load(None, [*CARDS, *sizes]), PAPER, keep_rate=0.5)
    assert found.balance == pytest.approx((1.0, 0.5 * 72.2 / 30.1))
    assert found.balanced_size == 12
    assert [pool.idle_share for pool in found.pools if pool.stage in ("preview", "refine")] == pytest.approx(
        [0, 0], abs=0.02
    )

    lopsided = plan.plan(
        5000, Settings.load(None, [*CARDS, "pools.preview.size=10", "pools.refine.size=24"]), PAPER, 0.5
    )
    assert lopsided.slowest == "preview"
    assert lopsided.pools[-1].idle_share == pytest.approx(0.5, abs=0.01)


def test_of_all_splits_of_the_cards_the_best_is_said() -> None:
    sizes = ["pools.preview.size=16", "pools.refine.size=8"]
    found = plan.plan(1000, Settings.load(None, [*CARDS, *sizes]), PAPER, keep_rate=0.25)
    assert found.split is not None
    assert (found.split.cards, found.split.preview, found.split.refine) == (24, 15, 9)
    walls = {
        first: plan.plan(
            1000,
            Settings.load(None, [*CARDS, f"pools.preview.size={first}", f"pools.refine.size={24 - first}"]),
            PAPER,
            keep_rate=0.25,
        ).wall_seconds
        for first in range(1, 24)
    }
    assert min(walls, key=walls.__getitem__) == 15
    assert found.split.seconds == walls[15] < found.wall_seconds == walls[16]


def test_a_size_of_auto_is_planned_for_so_many_cards() -> None:
    auto = Settings.load(None, [*CARDS, "pools.preview.size=auto", "pools.refine.size=auto"])
    found = plan.plan(1000, auto, PAPER, keep_rate=0.25, cards=24)
    assert {pool.stage: pool.size for pool in found.pools if pool.stage in ("preview", "refine")} == {
        "preview": 15, "refine": 9,
    }  # fmt: skip
    assert found.split is not None
    assert found.wall_seconds == found.split.seconds
    with pytest.raises(plan.PlanError, match="say how many"):
        plan.plan(1000, auto, PAPER, keep_rate=0.25)
    with pytest.raises(plan.PlanError, match="no place"):
        plan.plan(1000, auto, PAPER, keep_rate=0.25, cards=1)


def test_the_audit_and_idle_pools_are_paid_too() -> None:
    prices = ["prices.devices={H100: {on_demand: 36.0}}", "pools.preview.accelerator_type=H100"]
    settings = Settings.load(None, [*CARDS, *prices, "pools.preview.size=2", "select.audit=0.1"])
    found = plan.plan(1000, settings, PAPER, keep_rate=0.5)
    assert (found.clips, found.audited) == (500, 50)
    assert found.cost.gpu_seconds == pytest.approx(1000 * 30.1 + 550 * 72.2)
    assert found.cost.money == pytest.approx(1000 * 30.1 / 100)
    assert found.held_money == pytest.approx(2 * found.wall_seconds / 100)
    assert any(note.startswith("no price for refine") for note in found.notes)


def test_a_setting_that_cannot_fit_a_card_is_named_with_what_helps() -> None:
    whole = ["refine.guidance_batching=together", "refine.encode_tiles=null", "refine.decode_tiles=null"]
    settings = Settings.load("flashvideo-1080p", [*whole, "pools.refine.offload=none"])
    found = plan.plan(10, settings, PAPER, card_memory={"preview": 79, "refine": 44})
    preview, refine = found.fits
    assert preview.fits
    assert not refine.fits
    assert refine.needed_gib == pytest.approx(76.9, abs=0.1)
    assert refine.remedy is not None
    assert refine.remedy["refine.guidance_batching"] == "apart"
    assert refine.remedy_gib is not None
    assert refine.remedy_gib < 44


def test_text_is_counted_by_prompts_and_holds_no_card_of_its_own() -> None:
    """10 000 prompts, best of four: the encoder works 10 000 times and not 40 000, in a share of a preview's card."""
    measures = plan.declared("text=0.1,preview=30.1,score=0.5,refine=72.2")
    best = ["candidates=4", "select.keep=1", "prices.devices={H100: {on_demand: 4.0}}"]
    card = ["pools.preview.accelerator_type=H100"]
    text, preview, *_ = plan.plan(10_000, Settings.load("flashvideo-1080p", [*best, *card]), measures).pools
    assert (text.calls, preview.calls) == (10_000, 40_000)
    assert text.idle_share is not None
    assert text.idle_share > 0.99  # as a card of its own would be, all night
    assert preview.money is not None
    # A quarter of one card; of two cards all but that, and the quarter of the large scorers.
    assert text.money == pytest.approx(preview.money * 0.25 / 1.5)


def test_the_place_of_the_text_encoder_is_weighed_in_money() -> None:
    """For 10 000 prompts: a card of its own, as it would idle all night; a share of stage 1's; cores that keep up."""
    prices = ["prices.devices={H100: {on_demand: 4.0}, cpu: {on_demand: 0.05}}"]
    settings = Settings.load("flashvideo-1080p", [*prices, "pools.preview.accelerator_type=H100"])
    found = plan.plan(10_000, settings, PAPER)
    own, share, cores = found.text_places
    hours = found.wall_seconds / 3600
    assert own.money == pytest.approx(4.0 * hours)
    assert share.money == pytest.approx(own.money / 4)
    # Two texts of a prompt, 10.7 s each on a core: as many cores as do 10 000 of them in that time.
    assert (cores.where, cores.money) == ("2 cores, as many as keep up", pytest.approx(2 * 0.05 * hours))
    assert [place.source for place in found.text_places] == [
        "estimated",
        "estimated",
        "measured by a layer on one core",
    ]
    quick = plan.plan(10_000, settings, plan.declared("preview=2,refine=1"))
    assert quick.text_places[2].where == "22 cores, as many as keep up"  # 214,000 s of a core in 10,000 s
    assert plan.plan(10, Settings.load("nano"), PAPER).text_places == ()


def test_an_actor_of_each_stage_of_the_preset_for_one_class_of_cards_fit_a_card_together() -> None:
    settings = Settings.load("flashvideo-1080p-80gb", ["pools.preview.accelerator_type=H100"])
    [both] = plan.plan(10, settings, PAPER).fits
    assert (both.stage, both.source) == ("preview + refine", "estimated")
    assert both.needed_gib < 80e9 / 2**30


def test_measured_numbers_are_taken_where_there_are_any_and_said(tmp_path: Path) -> None:
    """Sections as benchmarks/gpu.py writes them; what was tried on a CPU counts for nothing."""

    def section(*results: tuple[float, dict[str, object]], driver: str = "570", tiny: bool = False) -> object:
        machine = {"card": "NVIDIA H100", "driver": driver}
        named = [{"name": "a", "value": value, "unit": "", "about": about} for value, about in results]
        return {"machine": machine, "tiny": tiny, "broken": None, "results": named}

    def about(stage: str, what: str) -> dict[str, object]:
        return {"stage": stage, "what": what}

    apart = {"guidance_batching": "apart", "encode_tiles": (1, 2), "decode_tiles": (2, 2)}
    peak = {**about("refine", "peak"), "options": costs_options("refine", apart)}
    times = (20.0, about("preview", "whole")), (0.25, about("preview", "step"))
    file = tmp_path / "gpu.json"
    file.write_text(
        json.dumps(
            {
                "preview": section(*times),
                "refine": section((50.0, about("refine", "whole")), (8.0, about("refine", "step"))),
                "memory": section((41.0, peak)),
                "text": section((0.02, {"what": "text", "where": "card"})),
            }
        )
    )
    card = Card.read(file)
    settings = Settings.load("flashvideo-1080p-80gb", ["preview.num_inference_steps=31"])
    measures = plan.published(settings, card)
    assert measures.seconds == {"preview": 20 - 20 * 0.25, "refine": 50.0}
    assert measures.source == "measured on NVIDIA H100 by benchmarks/gpu.py"
    found = plan.plan(10, settings, measures, card_memory={"preview": 80}, card=card)
    [both] = found.fits
    assert both.needed_gib == pytest.approx(19.4 + 41, abs=0.1)
    assert both.source == "estimated, measured on NVIDIA H100"
    assert [(place.seconds, place.source) for place in found.text_places[:1]] == [(0.04, "measured on NVIDIA H100")]

    for name in ("L40S", "H10"):  # it says nothing of another card, and half a name is another one
        other = Settings.load("flashvideo-1080p", [f"pools.refine.accelerator_type={name}"])
        assert plan.published(other, card).source.startswith("from the paper")

    file.write_text(json.dumps({"preview": section(*times, driver="none", tiny=True)}))
    assert plan.published(settings, Card.read(file)).source.startswith("from the paper")
    file.write_text("[1]")
    with pytest.raises(CardError, match=r"gpu\.json: not what benchmarks/gpu\.py writes"):
        Card.read(file)


def test_a_plan_from_the_command_line(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet")

    def planned(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["plan", prompts, *words])
        return result.exit_code, " ".join(result.output.split())

    status, text = planned("-c", "flashvideo-1080p", "--set", "candidates=4", "--set", "select.keep=1")
    assert status == 0
    assert "6 prompts, 24 candidates, 6 clips" in text
    assert "measured on NVIDIA H100 80GB HBM3 by benchmarks/gpu.py" in text
    assert "a card of its own: " in text
    assert "s a prompt, measured on NVIDIA H100 80GB HBM3)" in text
    status, text = planned("--seconds", "preview=3,refine=7", "--card-memory", "preview=24,refine=1")
    assert status == 2
    assert "Memory: preview needs about 1.0 of 24 GiB (estimated)" in text
    assert "DOES NOT FIT: refine needs about 1.2 GiB of 1 (estimated)" in text
    for words, message in {
        ("-c", "nano"): "how long does a call take?",
        ("--seconds", "preview=30.1"): "say refine=… too",
        ("--seconds", "preview=30.1,refine=x"): "write it like preview=30.1,refine=72.2",
        (
            "--seconds",
            "preview=1,refine=2",
            "--card-memory",
            "score=2",
        ): "--card-memory: score is none of preview, refine",
        ("--from", str(tmp_path / "none")): "no run here",
    }.items():
        status, text = planned(*words)
        assert (status, message in text) == (2, True), text


def test_the_figures_of_the_docs_are_those_of_the_command_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = (ROOT / "docs" / "cost.md").read_text()
    [(made, asked)] = re.findall(r"```\n(seq .*)\n(flashvideo-ray plan .*)\n```", docs)
    subprocess.run(made, shell=True, check=True, cwd=tmp_path)
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(app, shlex.split(asked)[1:])
    places = " ".join(said.output.partition("Text encoder")[2].split())
    found = re.findall(r": (\d+) h (\d+) min, ([\d.]+) USD(?:, saves ([\d.]+) USD)? \(", places)
    stated = re.findall(r"^\| .+ \| (\d+) USD \| (?:(\d+) USD )?\|$", docs, re.MULTILINE)
    assert [tuple(str(round(float(usd))) if usd else "" for usd in own) for _, _, *own in found] == stated
    assert len(stated) == 3
    assert {f"{round(int(hours) + int(minutes) / 60)} h" for hours, minutes, *_ in found} == {"68 h"}
    assert "at 0.05 USD; 68 h)" in docs


def test_measures_come_from_the_summary_of_a_run(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(plan.PlanError, match=r"no summary\.json; `flashvideo-ray report"):
        plan.measured(store)
    times = {"preview": {"mean_seconds": 3.0}, "refine": {"mean_seconds": 7.0}, "rate": {"mean_seconds": None}}
    bill = {"lines": [{"stage": "preview", "device": "NVIDIA H100"}]}
    store.put("summary.json", json.dumps({"stages": times, "acceptance_rate": 0.4, "bill": bill}).encode())
    found = plan.measured(store)
    assert (found.seconds, found.devices) == ({"preview": 3.0, "refine": 7.0}, {"preview": "NVIDIA H100"})
    assert plan.plan(10, Settings(), found).keep_rate == 0.4
    # A pilot that kept more than these settings can.
    assert plan.plan(10, Settings.load(None, ["candidates=4", "select.keep=1"]), found).keep_rate == 0.25
    store.put("summary.json", json.dumps({"stages": {"preview": {"mean_seconds": 3.0}}}).encode())
    with pytest.raises(plan.PlanError, match="it has timed no refine"):
        plan.measured(store)


def test_prompts_that_a_job_would_refuse_are_not_planned(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet", ["a"], refine_seconds=[1.0])
    result = CliRunner().invoke(app, ["plan", prompts, "--seconds", "preview=3,refine=7"])
    assert result.exit_code == 2
    assert "column refine_seconds has a name that the ledger uses" in " ".join(result.output.split())
