"""Pools of size auto: what a round begins with, when others would pay, and that a change loses nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support import PROMPTS, tiny_overrides, write_prompts

import flashvideo_ray
from flashvideo_ray import Settings
from flashvideo_ray.graph import heartbeat, pipeline
from flashvideo_ray.graph.balancing import Balance
from flashvideo_ray.graph.labels import News
from flashvideo_ray.graph.remaining import Work
from flashvideo_ray.graph.tracker import StageState, Tracker
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.writer import Writer
from flashvideo_ray.settings import LedgerSettings, Stage

STAGES: tuple[Stage, ...] = ("text", "preview", "score", "refine")
AUTO = ["pools.preview.size=auto", "pools.refine.size=auto", "pools.preview.num_gpus=1", "pools.refine.num_gpus=1"]
CARDS = [{"Alive": True, "Resources": {"GPU": 24.0, "CPU": 200.0}, "Labels": {}}]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def work(fresh: int, survivors: int = 0) -> Work:
    status = ["previewed"] * survivors + ["open"] * fresh
    rows = pa.table({"clip_id": [f"c{n}" for n in range(len(status))], "status": status})
    return Work(rows, rows.slice(0, 0), rows.slice(0, 0), "refine", News(None, None), 0)


def sizes(settings: Settings) -> tuple[int, int]:
    return settings.pools.preview.actors, settings.pools.refine.actors


def begun(
    folder: Path, work_: Work, *overrides: str, stages: tuple[Stage, ...] = STAGES, preset: str | None = None
) -> tuple[Balance, Clock, Settings]:
    clock = Clock()
    balance = Balance(Store(str(folder)), nodes=lambda: CARDS, clock=clock)
    return balance, clock, balance.begin(Settings.load(preset, [*AUTO, *overrides]), stages, work_)


def test_where_nothing_is_known_both_stages_have_as_many_cards(tmp_path: Path) -> None:
    assert sizes(begun(tmp_path, work(1200))[2]) == (12, 12)


def test_published_times_and_what_is_kept_of_each_prompt_are_taken_before_there_is_a_ledger(tmp_path: Path) -> None:
    own = ["candidates=4", "select.rank=motion", "select.keep=1", "pools.text.beside=null", "pools.rate.beside=null"]
    labels = ["pools.preview.labels={}", "pools.refine.labels={}", "pools.text.num_gpus=0", "pools.rate.num_gpus=0"]
    assert sizes(begun(tmp_path, work(1000), *own, *labels, preset="flashvideo-1080p")[2]) == (14, 10)


def test_a_round_goes_by_what_the_run_has_measured(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    wanted = {"id": "p", "prompt": "p", "seed": 1, "candidate": 0, "reason": None}
    previews = [
        {**wanted, "clip_id": f"c{n}", "status": "rejected" if n % 4 else "previewed", "preview_seconds": 30.1}
        for n in range(200)
    ]
    # The first call waited for its kernels to be compiled.
    seconds = [900.0, *[72.2] * 19]
    clips = [
        {**wanted, "clip_id": f"c{4 * n}", "status": "rendered", "refine_seconds": took}
        for n, took in enumerate(seconds)
    ]
    for table, rows in (("previews", previews), ("clips", clips)):
        writer = Writer(store, table, tables.SCHEMAS[table], LedgerSettings())  # type: ignore[arg-type, index]
        for each in rows:
            writer.append(each)
        writer.flush()
    assert sizes(begun(tmp_path, work(1000))[2]) == (15, 9)
    # Survivors that are at hand are work, too, and nothing else is where no preview is missing.
    assert sizes(begun(tmp_path, work(1000, survivors=750))[2]) == (7, 17)
    assert (
        sizes(begun(tmp_path, work(0, survivors=100), stages=("text", "refine"))[2])[1] == 20
    )  # five waves, as with 24
    assert sizes(begun(tmp_path, work(1000), stages=("text", "preview", "score"))[2])[0] == 24


def test_a_size_that_is_given_is_left_as_it_is(tmp_path: Path) -> None:
    fixed = Settings.load(None, ["pools.preview.size=3", "pools.refine.size=2"])
    balance = Balance(Store(str(tmp_path)), nodes=list)
    assert balance.begin(fixed, STAGES, work(10)) is fixed
    assert (balance.told, balance.watches, balance.look({})) == (None, False, None)
    assert sizes(begun(tmp_path, work(1200), "pools.preview.size=16")[2]) == (16, 8)


def test_without_a_place_for_both_the_least_is_asked_for(tmp_path: Path) -> None:
    balance = Balance(Store(str(tmp_path)), nodes=lambda: [{**CARDS[0], "Alive": False}])
    assert sizes(balance.begin(Settings.load(None, AUTO), STAGES, work(10))) == (1, 1)


def states(previews: int, kept: int, refined: int, *, open_: tuple[int, int] = (12, 12)) -> Mapping[Stage, StageState]:
    """After so many calls of 30 s and 70 s; 20 s after the round began actors had loaded."""
    return {
        "text": StageState(),
        "score": StageState(done=previews),
        "rate": StageState(),
        "preview": StageState(12, open_[0], previews, busy_seconds=30.0 * previews, first_joined=20.0,
                              judged=previews, kept=kept),
        "refine": StageState(12, open_[1], refined, busy_seconds=70.0 * refined, first_joined=20.0),
    }  # fmt: skip


def test_a_guess_that_was_wrong_ends_the_round_once_that_is_sure(tmp_path: Path) -> None:
    """12 + 12 of a guess, and one preview in ten goes on: stage 2 waits for work most of the time."""
    balance, clock, settings = begun(tmp_path, work(1000))
    assert (sizes(settings), balance.watches) == ((12, 12), True)
    clock.now = 100.0
    assert balance.look(states(20, 1, 1)) is None  # few
    clock.now = 200.0
    why = balance.look(states(80, 8, 7, open_=(12, 1)))
    assert why is not None
    assert "from 12 + 12 to about 17 + 7 of preview and refine" in why
    assert balance.closing == why
    clock.now = 300.0
    assert balance.look(states(90, 9, 8)) is None  # it is said once


@pytest.mark.parametrize(
    ("fresh", "told"),
    [
        (1000, states(80, 35, 30)),  # 43 %: about as guessed
        (110, states(80, 8, 7)),  # the end is near: a change would cost more than it brings
        (1000, states(24, 6, 0, open_=(12, 6))),  # stage 2 has ended nothing yet
        (1000, states(32, 6, 6, open_=(12, 0))),  # one in twenty goes on, or one in three: that is not known yet
        (1000, states(30, 0, 0, open_=(12, 0))),  # none goes on: it may be chance, and stage 2 has no time yet
    ],
)
def test_a_round_goes_on_where_other_sizes_do_not_surely_pay(
    tmp_path: Path, fresh: int, told: Mapping[Stage, StageState]
) -> None:
    balance, clock, _ = begun(tmp_path, work(fresh))
    clock.now = 200.0
    assert balance.look(told) is None


def test_a_job_changes_its_sizes_a_few_times_and_with_a_quota_never(tmp_path: Path) -> None:
    balance, clock, _ = begun(tmp_path, work(1000))
    changes = 0
    for _ in range(10):
        clock.now += 1000.0
        changes += balance.look(states(80, 8, 7, open_=(12, 1))) is not None
        balance.begin(Settings.load(None, AUTO), STAGES, work(1000))  # and the guess is as wrong as before
    assert changes == 3
    bound = Balance(Store(str(tmp_path)), fixed=True, nodes=lambda: CARDS, clock=clock)
    bound.begin(Settings.load(None, AUTO), STAGES, work(1000))
    clock.now += 1000.0
    assert (bound.watches, bound.look(states(80, 8, 7))) == (False, None)


def row(clip_id: str, status: str = "previewed") -> dict[str, Any]:
    return {"clip_id": clip_id, "id": "p", "prompt": "p", "seed": 1, "candidate": 0, "status": status}


def test_a_round_that_is_closed_ends_when_all_that_was_begun_has_ended(tmp_path: Path) -> None:
    tracker = Tracker(Store(str(tmp_path)), tables.PREVIEWS, LedgerSettings())
    assert tracker.admit("preview", "a0", "a") == tracker.admit("refine", "z", "z") == "go"
    for stage, clip_id in (("text", "b0"), ("preview", "a0"), ("refine", "z")):
        tracker.begin(stage, clip_id)  # type: ignore[arg-type]
    assert tracker.closed() is None
    tracker.close()
    # The other candidates of a prompt that was begun are judged with it; nothing else begins.
    asked = [("preview", "a1", "a"), ("preview", "b0", "b"), ("refine", "y", "y")]
    assert [tracker.admit(*each) for each in asked] == ["go", "stop", "stop"]  # type: ignore[arg-type]
    tracker.end("refine", "z", "rendered")
    tracker.end("preview", "a0", "open")
    assert tracker.closed() is None  # on their way to the scores
    tracker.previewed([row("a0"), row("a1", "rejected")])
    assert tracker.closed() == 1
    assert (tracker.tick()["preview"].judged, tracker.tick()["preview"].kept) == (2, 1)


def test_a_preview_that_fails_keeps_no_round_open(tmp_path: Path) -> None:
    tracker = Tracker(Store(str(tmp_path)), tables.PREVIEWS, LedgerSettings())
    tracker.admit("preview", "a0", "a")
    tracker.begin("preview", "a0")
    tracker.close()
    tracker.end("preview", "a0", "failed", ("ValueError", "no"))
    assert tracker.closed() == 1


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize("of_a_prompt", [1, 2])
def test_what_a_round_leaves_for_other_sizes_is_neither_lost_nor_done_twice(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, of_a_prompt: int
) -> None:
    """A round is closed after its first row, with the tracker's own means; the next one does the others."""
    build_graph, rounds, chosen = pipeline.build_graph, list[int](), list[tuple[int, int]]()

    class Closed:
        """A dataset of which one row comes out before the round is closed, and the others after."""

        def __init__(self, dataset: Any, events: Any):
            self._dataset, self._events = dataset, events

        def iter_batches(self, **options: Any) -> Iterator[Any]:
            batches = self._dataset.iter_batches(**options)
            yield next(batches)
            while self._events.admit("refine", "nobody", "nobody") != "stop":
                pass
            yield from batches

    def graph(rows: Any, store: Any, settings: Settings, recipe: Any, events: Any, *others: Any) -> Any:
        rounds.append(rows.num_rows)
        chosen.append(sizes(settings))
        dataset = build_graph(rows, store, settings, recipe, events, *others)
        return Closed(dataset, events) if len(rounds) == 1 else dataset

    def look(self: Balance, states: Mapping[Stage, StageState]) -> str | None:
        if self.closing is None and len(rounds) == 1 and states["refine"].done:
            self.closing = "sizes change"
            return self.closing
        return None

    monkeypatch.setattr(heartbeat, "_BEAT_SECONDS", 0.01)
    monkeypatch.setattr(pipeline, "build_graph", graph)
    monkeypatch.setattr(Balance, "look", look)
    prompts, output = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:3]), str(tmp_path / "run")
    best = [f"candidates={of_a_prompt}", "select.rank=motion", "select.keep=1"] if of_a_prompt > 1 else []
    auto = ["pools.preview.size=auto", "pools.refine.size=auto"]
    settings = Settings.load("nano", [*tiny_overrides(tiny_model), *auto, *best])
    ended = {"rendered": 3} if of_a_prompt == 1 else {"rendered": 3, "rejected": 3}
    assert flashvideo_ray.render(prompts, output, settings).ended == ended
    assert rounds == [3 * of_a_prompt, 2 * of_a_prompt]
    assert all(min(pair) >= 1 for pair in chosen)
    assert len(tables.read(Store(output), "previews")) == len(tables.read(Store(output), "clips")) == 3 * of_a_prompt
