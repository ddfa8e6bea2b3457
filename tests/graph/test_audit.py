"""Given rejected candidates that were refined all the same, when both ends are scored, then how well they agree."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats
from typer.testing import CliRunner

from flashvideo_ray import Settings, scorers
from flashvideo_ray.cli import app
from flashvideo_ray.graph import audit
from flashvideo_ray.ledger import run_file, tables
from flashvideo_ray.ledger.keys import clip_key, preview_key
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.writer import Writer
from flashvideo_ray.media import video
from flashvideo_ray.selection import agreement

RULES = ["score.scorers=[motion]", "select.require=motion >= 9", "select.audit=0.5"]


class Brightness:
    """A scorer that the run did not have."""

    names = ("brightness",)

    def __call__(self, frames: np.ndarray, prompt: str) -> dict[str, float]:
        return {"brightness": float(frames.mean())}


def moving(speed: int, scale: int = 1) -> np.ndarray:
    """A checkered square that moves so many pixels a frame over a grey ground."""
    frames = np.full((9, 48 * scale, 96 * scale, 3), 90, np.uint8)
    board = np.kron(np.indices((4, 4)).sum(0) % 2, np.ones((4 * scale, 4 * scale)))[..., None] * 160 + 40
    for number, frame in enumerate(frames):
        left = (4 + number * speed) * scale
        frame[16 * scale : 32 * scale, left : left + 16 * scale] = board
    return frames


def make_run(folder: Path, speeds: dict[str, tuple[int, int]], *overrides: str) -> tuple[Store, Settings]:
    """A run whose candidates move so fast in their preview and in their clip; slow previews were rejected."""
    store, settings = Store(str(folder)), Settings.load("nano", [*RULES, *overrides])
    run_file.open_run(store, {"seed": 0}, {"settings": settings.model_dump(mode="json"), "candidates": len(speeds)})
    schema = tables.extended(tables.PREVIEWS, [pa.field("score_motion", pa.float64())])
    previews = Writer(store, "previews", schema, settings.ledger)
    clips = Writer(store, "clips", tables.CLIPS, settings.ledger)
    motion = scorers.load("motion", fps=8)
    for number, (clip_id, (before, after)) in enumerate(speeds.items()):
        row: dict[str, Any] = {"clip_id": clip_id, "id": clip_id, "prompt": "a", "seed": 0, "candidate": 0}
        small, large = moving(before), moving(after, scale=2)
        value = motion(small, "a")["motion"]
        status = "rendered" if value >= 9 else "rejected"
        store.put(preview_key(clip_id), video.encode_mp4(small, 8))
        store.put(clip_key(clip_id), video.encode_mp4(large, 8))
        previews.append({**row, "status": "previewed" if status == "rendered" else status, "score_motion": value})
        clips.append(
            {
                **row,
                "status": status,
                "clip": clip_key(clip_id),
                "sha256": str(number),
                "stream_sha256": f"stream {number}",
                "audit": status == "rejected",
            }
        )
    clips.append({**row, "clip_id": "unseen", "status": "rejected", "audit": False})
    previews.append({**row, "clip_id": "unseen", "status": "rejected", "score_motion": 0.0})
    previews.flush()
    clips.flush()
    return store, settings


SPEEDS = {"a": (0, 0), "b": (1, 1), "c": (2, 4), "d": (3, 3), "e": (4, 4), "f": (5, 1), "g": (4, 5)}


def test_clips_that_would_have_been_decided_otherwise_are_counted(tmp_path: Path) -> None:
    store, settings = make_run(tmp_path / "run", SPEEDS)
    told: list[tuple[int, int]] = []
    found = audit.audit(store, settings, progress=lambda done, total: told.append((done, total)))

    out = [row["clip_id"] for row in tables.read(store, "clips").to_pylist() if row["status"] == "rejected"]
    assert out == ["a", "b", "c", "unseen"]
    assert (found.rendered, found.audited, found.rejected) == (4, 3, 4)
    [rule] = found.rules
    assert rule.rule == "motion >= 9"
    assert (rule.false_rejects.hits, rule.false_rejects.of) == (1, 3)  # c came out fast
    assert (rule.false_accepts.hits, rule.false_accepts.of) == (1, 4)  # f came out slow
    [motion, area] = found.scores
    assert (motion.name, motion.held_out, motion.count) == ("motion", False, 7)
    assert motion.correlation is not None
    assert 0 < motion.correlation < 1
    assert area.name == "motion_area"
    assert area.correlation is None  # the ledger of this run has none
    assert told[-1] == (7, 7)
    assert "each of them counts 1.33 times" in found.notes[0]
    assert audit.read(store) == json.loads(json.dumps(asdict(found)))


def test_a_held_out_scorer_measures_both_ends_and_nothing_is_decoded_twice(tmp_path: Path) -> None:
    store, settings = make_run(tmp_path / "run", SPEEDS)
    first = audit.audit(store, settings, [f"{__name__}.Brightness"])
    assert [(score.name, score.held_out, score.count) for score in first.scores][-1] == ("brightness", True, 7)
    for folder in ("previews", "clips"):
        shutil.rmtree(tmp_path / "run" / folder)
    assert audit.audit(store, settings, [f"{__name__}.Brightness"]) == first
    # Signed anew, a clip is another file, and the same clip.
    rows = tables.read(store, "clips")
    tables.supersede(store, "clips", tables.with_column(rows, "sha256", pa.array(["other"] * len(rows))))
    assert audit.audit(store, settings, [f"{__name__}.Brightness"]) == first


def test_the_audit_stands_in_the_report(tmp_path: Path) -> None:
    store, _ = make_run(tmp_path / "run", SPEEDS)
    result = CliRunner().invoke(app, ["audit", store.url])
    assert result.exit_code == 0, result.output
    assert "1 of 3: 33 %" in result.output
    page = (tmp_path / "run" / "report.html").read_text()
    assert "4 rendered, 3 of 4 rejected candidates with a clip" in page
    assert "Rank correlation" in page


@pytest.mark.parametrize(
    ("speeds", "words", "message"),
    [
        ({"d": (4, 4)}, [], "no rejected candidate has a clip to compare; set select.audit"),
        (SPEEDS, ["--with", "moton"], "unknown scorer 'moton': did you mean motion?"),
        (SPEEDS, ["--with", "motion"], "--with motion: motion, motion_area is measured without it"),
    ],
)
def test_what_cannot_be_audited_is_said(
    tmp_path: Path, speeds: dict[str, tuple[int, int]], words: list[str], message: str
) -> None:
    store, _ = make_run(tmp_path / "run", speeds)
    result = CliRunner().invoke(app, ["audit", store.url, *words])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not store.exists("audit.json")


def test_percentiles_have_a_limit_of_each_end_and_ranks_are_scores_too() -> None:
    """Stage 2 may shift a score: what is below the median of previews is asked to be below the median of clips."""
    pairs = [agreement.Pair(n < 5, {"motion": float(n)}, {"motion": 100.0 + n}) for n in range(10)]
    settings = Settings.load(None, ["select.percentiles={motion: 50}", "select.rank=0 - motion", "select.keep=1"])
    found = agreement.compare(pairs, {"motion": False}, settings, rejected=5)
    assert [score.correlation for score in found.scores] == pytest.approx([1, 1])
    assert found.scores[0].separation == 1
    assert found.scores[1].separation == 0
    [rule] = found.rules
    assert (rule.false_rejects.value, rule.false_accepts.value) == (0, 0)
    assert "keep and duplicates compare candidates" in found.notes[0]


def test_spearman_averages_ties_and_counts_weights_as_copies() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 6, 50).astype(float), generator.integers(0, 6, 50).astype(float)
    assert agreement.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    copies = generator.integers(1, 4, 50)
    repeated = agreement.spearman(np.repeat(x, copies), np.repeat(y, copies))
    assert agreement.spearman(x, y, copies.astype(float)) == pytest.approx(repeated)


def test_wilson_interval() -> None:
    share = agreement.wilson(1, 10)
    assert (share.value, share.low, share.high) == pytest.approx((0.1, 0.0179, 0.4042), abs=1e-4)
    assert agreement.wilson(0, 20).low == 0
    assert agreement.wilson(0, 0).value is None
