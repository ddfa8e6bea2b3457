"""Pairs for preference tuning: people first, then the rank; counted by hand from the ledger."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import export_run
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flashvideo_ray import export
from flashvideo_ray.export import preference
from flashvideo_ray.expressions.rules import RuleError
from flashvideo_ray.ledger import decisions, tables
from flashvideo_ray.ledger.decisions import Decision
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.media import video
from flashvideo_ray.settings import SelectSettings

SPLITS = {"train": 0.8, "val": 0.2}
PAIRS = export.Options(format="preference", media_of="previews", splits=SPLITS)


def pairs(dest: Path) -> list[dict[str, Any]]:
    gone = pq.read_table(dest / "withdrawn.parquet")["pair_id"].to_pylist()
    rows = [row for path in sorted(dest.glob("data/*")) for row in pq.read_table(path).to_pylist()]
    return [row for row in rows if row["pair_id"] not in gone]


def by_hand(run: Store, a_prompt: int, least_margin: float = 0.0) -> dict[tuple[str, str], str]:
    """Who is preferred to whom, and by whom, straight from the ledger."""
    word = {row["clip_id"]: row["status"] for row in decisions.read(run).to_pylist()}
    failed = {row["clip_id"] for row in tables.read(run, "clips").to_pylist() if row["status"] == "failed"}
    prompts: dict[str, list[dict[str, Any]]] = {}
    for row in tables.read(run, "previews").to_pylist():
        if row["score_alignment"] is not None and row["clip_id"] not in failed:
            prompts.setdefault(row["id"], []).append(row)
    found = {}
    for siblings in prompts.values():
        good = []
        for one, other in itertools.permutations(siblings, 2):
            margin = one["score_alignment"] - other["score_alignment"]
            words = (word.get(one["clip_id"]), word.get(other["clip_id"]))
            if words == ("approved", "rejected"):
                good.append((0, -margin, one, other))
            elif (
                margin > 0
                and margin >= least_margin
                and words[0] != "rejected"
                and words[1] != "approved"
                and one["score_black"] < 0.5
            ):
                good.append((1, -margin, one, other))
        for by_rank, _, one, other in sorted(good, key=lambda pair: pair[:2])[:a_prompt]:
            found[one["clip_id"], other["clip_id"]] = "rank" if by_rank else "people"
    return found


@pytest.mark.parametrize(("a_prompt", "least_margin"), [(1, 0.0), (3, 0.0), (12, 0.25)])
def test_pairs_are_those_that_one_counts_by_hand(built: Store, tmp_path: Path, a_prompt: int, least_margin: float):
    options = PAIRS.model_copy(update={"pairs_a_prompt": a_prompt, "least_margin": least_margin})
    done = export.export(built.url, str(tmp_path / "pairs"), options)

    rows = pairs(tmp_path / "pairs")
    expected = by_hand(built, a_prompt, least_margin)
    assert {(row["chosen_clip_id"], row["rejected_clip_id"]): row["decided"] for row in rows} == expected
    assert done.gaps == {"no score": 1, "failed": 1}
    assert sum(row["decided"] == "people" for row in rows) == export_run.DECIDED
    assert {row["decided_by"] for row in rows} == {None, "bob, ann"}
    if a_prompt == 1:
        assert len(rows) == export_run.CLIPS + 1  # of the prompt whose best one failed, the second is chosen


def test_a_pair_has_both_videos_scores_and_margin_and_no_prompt_is_in_two_splits(built: Store, tmp_path: Path):
    export.export(built.url, str(tmp_path / "pairs"), PAIRS.model_copy(update={"pairs_a_prompt": 3}))

    ledger = {row["clip_id"]: row for row in tables.read(built, "previews").to_pylist()}
    rows = pairs(tmp_path / "pairs")
    for row in rows:
        for side in preference.SIDES:
            own = ledger[row[f"{side}_clip_id"]]
            assert (own["id"], own["prompt"]) == (row["id"], row["prompt"])
            assert row[side]["bytes"] == built.get(own["preview"])
            assert row[f"{side}_score_motion"] == own["score_motion"]
        assert row["margin"] == pytest.approx(row["chosen_rank"] - row["rejected_rank"])
    assert len({(row["prompt"], row["split"]) for row in rows}) == len({row["prompt"] for row in rows})
    assert {row["split"] for row in rows} == set(SPLITS)


def test_a_word_that_comes_later_withdraws_a_pair_and_adds_its_opposite(run: Store, tmp_path: Path):
    dest = tmp_path / "pairs"
    export.export(run.url, str(dest), PAIRS)
    old = next(row for row in pairs(dest) if row["decided"] == "rank")

    decisions.write(
        run,
        [Decision(old["rejected_clip_id"], "approved", "cat"), Decision(old["chosen_clip_id"], "rejected", "cat")],
    )
    done = export.export(run.url, str(dest), PAIRS)

    assert (done.added, done.withdrawn) == (1, 1)
    [new] = [row for row in pairs(dest) if row["id"] == old["id"]]
    assert (new["chosen_clip_id"], new["rejected_clip_id"]) == (old["rejected_clip_id"], old["chosen_clip_id"])
    assert (new["decided"], new["decided_by"]) == ("people", "cat")
    [gone] = pq.read_table(dest / "withdrawn.parquet").to_pylist()
    assert gone["why"] == f"{old['chosen_clip_id']} was rejected by cat"


def test_another_rank_decides_where_it_is_asked_for(built: Store, tmp_path: Path):
    options = PAIRS.model_copy(update={"rank": "-motion", "where": "decision is null"})
    export.export(built.url, str(tmp_path / "pairs"), options)

    rows = pairs(tmp_path / "pairs")
    assert all(row["chosen_score_motion"] < row["rejected_score_motion"] for row in rows)
    with pytest.raises(RuleError, match="sharpness"):
        export.export(built.url, str(tmp_path / "other"), PAIRS.model_copy(update={"rank": "sharpness"}))


def test_pairs_of_clips_are_of_candidates_that_both_have_one():
    def candidate(number: int, **more: Any) -> dict[str, Any]:
        own = {"clip_id": f"c{number}", "id": "p", "prompt": "a star", "negative_prompt": None, "seed": number}
        own |= {"candidate": number, "status": "rejected", "reason": None, "decision": None, "decided_by": None}
        return {**own, "score_x": float(number), "clip": f"clips/c{number}.mp4", "sha256": None, **more}

    rows = [candidate(0), candidate(1, clip=None), candidate(2, status="failed"), candidate(3, status="rendered")]
    schema = pa.Table.from_pylist(
        [candidate(0, clip="", decision="", decided_by="", sha256="", negative_prompt="")]
    ).schema
    options = PAIRS.model_copy(update={"media_of": "clips", "pairs_a_prompt": 9})
    sizes = {row["clip"]: 1 for row in rows if row["clip"]}

    found = preference.pairs(pa.Table.from_pylist(rows, schema=schema), options, SelectSettings(rank="x"), sizes)

    pair_ids = zip(found.rows["chosen_clip_id"].to_pylist(), found.rows["rejected_clip_id"].to_pylist(), strict=True)
    assert [*pair_ids] == [("c3", "c0")]
    assert found.gaps == {"no clip": 1, "failed": 1}


def test_the_docs_example_gives_batches_of_pairs(run: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    export.export(run.url, str(tmp_path / "pairs"), PAIRS)
    old = next(row for row in pairs(tmp_path / "pairs") if (row["decided"], row["split"]) == ("rank", "train"))
    decisions.write(run, [Decision(old["chosen_clip_id"], "rejected", "cat")])
    assert export.export(run.url, str(tmp_path / "pairs"), PAIRS).withdrawn == 1

    loader = export_run.docs_module("torch-preference", tmp_path / "pairs").loader("train", batch_size=4, workers=2)
    pickle.dumps((loader.dataset, loader.collate_fn))  # as workers get them where they are not forked

    found = []
    for batch in loader:
        for caption, *sides in zip(batch["captions"], batch["chosen"], batch["rejected"], strict=True):
            found.append((caption, sides))
    expected = [row for row in pairs(tmp_path / "pairs") if row["split"] == "train"]
    assert sorted(caption for caption, _ in found) == sorted(row["caption"] for row in expected)
    for row in expected:
        for side, frames in zip(preference.SIDES, dict(found)[row["caption"]], strict=True):
            assert (frames.numpy() == video.decode_mp4(row[side]["bytes"])[0]).all()
