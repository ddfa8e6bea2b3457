"""Candidates that ended: each counts once, and those that are out when they are judged wait for nobody."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from safetensors.numpy import save as pack

from flashvideo_ray import Settings
from flashvideo_ray.graph.arrivals import Arrivals
from flashvideo_ray.graph.scoring import Score
from flashvideo_ray.graph.stage_base import row_schema
from flashvideo_ray.graph.tracker_actor import answer, start_tracker
from flashvideo_ray.graph.tracker_client import TrackerClient
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.claim import clock
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.writer import Writer
from flashvideo_ray.scorers.panel import names_of

OWN = ["score.scorers=[motion]", "select.require=motion > 1", "ledger.flush_seconds=0.001"]


class Round:
    """A round's tracker, its Score, and what arrives of its work."""

    def __init__(self, folder: Path, work: pa.Table, *overrides: str):
        settings = Settings.load("nano", [*OWN, *overrides])
        self.store = Store(str(folder))
        previews = tables.previews_schema(names_of(settings.score.scorers), [])
        self.tracker = start_tracker(self.store, previews, settings.ledger)
        self.tracker.permit.remote(clock() + 600)
        self.score = Score(settings, TrackerClient(self.tracker, answer, gated=False), self.store, 8.0, {})
        clips = Writer(self.store, "clips", tables.CLIPS, settings.ledger)
        self.arrivals = Arrivals(work, clips, self.tracker, Counter(), set(), set())

    def ledger(self, table: tables.Table) -> dict[str, str]:
        rows = tables.read(self.store, table)
        return dict(zip(rows["clip_id"].to_pylist(), rows["status"].to_pylist(), strict=True))


@pytest.fixture
def rounds(local_ray: None) -> Iterator[list[Round]]:
    """Those that a test makes: their trackers end with it."""
    made: list[Round] = []
    yield made
    for each in made:
        ray.kill(each.tracker)


def candidates(group: int, **moving: bool) -> pa.Table:
    """Rows with a preview in which something moves, or nothing; candidates of one prompt, or of one each."""
    noise = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), np.uint8)
    rows: list[dict[str, Any]] = [
        {
            "clip_id": clip_id,
            "id": "p" if group > 1 else clip_id,
            "prompt": "p",
            "seed": 1,
            "candidate": number,
            "status": "open",
            "group": group,
            "prompt_embeds": b"text",
            "preview_latents": b"latents",
            "preview_frames": pack({"frames": noise if moves else noise[:1].repeat(8, 0)}),
        }
        for number, (clip_id, moves) in enumerate(moving.items())
    ]
    return pa.Table.from_pylist(rows, schema=row_schema())


def test_what_is_out_when_it_is_judged_goes_no_further_and_is_in_the_ledger(
    tmp_path: Path, rounds: list[Round]
) -> None:
    """It would wait behind survivors, for a pool that does nothing with it."""
    work = candidates(1, still=False, moves=True)
    round_ = Round(tmp_path, work)
    rounds.append(round_)
    assert round_.score(work)["clip_id"].to_pylist() == ["moves"]
    [told] = ray.get(round_.tracker.out.remote(0))
    assert told["clip_id"] == "still"
    arrivals = round_.arrivals
    arrivals.take()  # that answer may have been lost on its way
    assert (arrivals.came, arrivals.ended, arrivals.in_calls) == ({"still"}, {"rejected": 1}, 0)
    arrivals.take()
    assert round_.score(work)["clip_id"].to_pylist() == ["moves"]  # Ray repeats the call
    arrivals.take()
    assert arrivals.ended == {"rejected": 1}
    arrivals.write_if_due()
    assert round_.ledger("previews") == {"still": "rejected", "moves": "previewed"}
    assert round_.ledger("clips") == {"still": "rejected"}


def test_what_is_out_and_audited_goes_on(tmp_path: Path, rounds: list[Round]) -> None:
    work = candidates(1, still=False)
    rounds.append(Round(tmp_path, work, "select.audit=1.0"))
    assert rounds[0].score(work)["clip_id"].to_pylist() == ["still"]
    rounds[0].arrivals.take()
    assert rounds[0].arrivals.came == set()


class Unable:
    """A scorer that cannot."""

    names = ("unable",)

    def __call__(self, frames: np.ndarray, prompt: str) -> dict[str, float]:
        """See Scorer."""
        raise ValueError("no")


def test_a_score_that_is_missing_ends_a_candidate_in_no_call(tmp_path: Path, rounds: list[Round]) -> None:
    work = candidates(1, still=False)
    own = [f"score.scorers=[{__name__}.Unable]", "select.require=unable > 1", "select.missing=fail"]
    rounds.append(Round(tmp_path, work, *own))
    assert rounds[0].score(work).num_rows == 0
    arrivals = rounds[0].arrivals
    arrivals.take()
    assert (arrivals.came, arrivals.failed, arrivals.in_calls) == ({"still"}, {"still"}, 0)


def test_candidates_that_are_compared_are_forgotten_when_the_last_of_them_has_come(
    tmp_path: Path, rounds: list[Round]
) -> None:
    """Until then Ray may repeat the call that judged them, for a row that is on its way."""
    work = candidates(2, still=False, moves=True)
    round_ = Round(tmp_path, work, "candidates=2", "select.keep=1", "select.rank=motion")
    rounds.append(round_)

    def kept() -> int:
        there: int = ray.get(round_.tracker.__ray_call__.remote(lambda tracker: len(tracker._groups._groups)))
        return there

    judged = round_.score(work)
    assert judged["clip_id"].to_pylist() == ["moves"]
    round_.arrivals.take()
    assert kept() == 1
    assert round_.score(work)["clip_id"].to_pylist() == ["moves"]
    rendered = tables.with_column(judged, "status", "rendered")
    round_.arrivals.add(tables.with_column(rendered, "clip", "clips/mo/moves.mp4"))
    assert kept() == 0
    assert (round_.arrivals.ended, round_.arrivals.in_calls) == ({"rejected": 1, "rendered": 1}, 1)


def test_what_is_audited_and_fails_has_ended(tmp_path: Path, rounds: list[Round]) -> None:
    """It was tried again by every job, and no row said that it had failed."""
    work = candidates(1, still=False, waits=False)
    rounds.append(Round(tmp_path, work))
    arrivals = rounds[0].arrivals
    rows = tables.with_column(work.drop_columns(["preview_frames"]), "audit", pa.array([True, True]))
    arrivals.add(tables.with_column(rows, "status", pa.array(["failed", "rejected"])))  # the other had no text
    arrivals.write_clips()
    assert rounds[0].ledger("clips") == {"still": "failed"}
