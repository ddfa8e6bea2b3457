"""What is left to do where prompts have changed since: texts edited under their ids, other labels, several files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from flashvideo_ray import Settings, prompts
from flashvideo_ray.cli import app
from flashvideo_ray.graph import labels, reselect
from flashvideo_ray.graph.audit import AuditError, audit
from flashvideo_ray.graph.remaining import Work, next_work
from flashvideo_ray.graph.stage_base import row_schema
from flashvideo_ray.graph.standing import Standing
from flashvideo_ray.identity import candidates
from flashvideo_ray.ledger import run_file, tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.writer import Writer
from flashvideo_ray.prompts import PromptError
from flashvideo_ray.settings import LedgerSettings

BEST_OF_TWO = Settings.load("nano", ["candidates=2", "select.rank=motion", "select.keep=1"])
MOTION = pa.field("score_motion", pa.float64())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A run without rows."""
    store = Store(str(tmp_path / "run"))
    about = {"settings": BEST_OF_TWO.model_dump(mode="json"), "candidates": 4}
    run_file.open_run(store, BEST_OF_TWO.recipe(), about)
    return store


def asked(*rows: dict[str, Any], draw: int = 0, **columns: list[Any]) -> pa.Table:
    """The candidates of a job about these prompts, with carried columns."""
    table = prompts.checked([{"seed": 1, **row} for row in rows])
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    return candidates(table, 2 + draw, {}, "")


def work(store: Store, table: pa.Table | None, relabel: bool = False) -> Work:
    extra = [field for field in (table.schema if table is not None else ()) if field.name not in row_schema().names]
    return next_work(store, table, row_schema(extra), BEST_OF_TWO, relabel=relabel)


def made(store: Store, table: pa.Table, *motions: float, status: str = "previewed") -> None:
    """Previews of the first candidates, of so much motion."""
    extra = [field for field in table.schema if field.name not in tables.PREVIEWS.names]
    writer = Writer(store, "previews", tables.extended(tables.PREVIEWS, [*extra, MOTION]), LedgerSettings())
    for row, motion in zip(table.to_pylist(), motions, strict=False):
        media = {"latents": f"latents/{row['clip_id']}", "preview": f"previews/{row['clip_id']}.mp4"}
        writer.append({**row, **media, "status": status, "score_motion": motion})
    writer.flush()


def ended(store: Store, table: pa.Table, *statuses: str) -> None:
    extra = [field for field in table.schema if field.name not in tables.CLIPS.names]
    writer = Writer(store, "clips", tables.extended(tables.CLIPS, extra), LedgerSettings())
    for row, status in zip(table.to_pylist(), statuses, strict=False):
        writer.append(
            {**row, "status": status, "clip": f"clips/{row['clip_id']}.mp4" if status == "rendered" else None}
        )
    writer.flush()


def survivors(found: Work) -> list[tuple[str, int]]:
    rows = found.rows.to_pylist()
    return sorted((row["prompt"], row["candidate"]) for row in rows if row["status"] in ("previewed", "approved"))


RED, BLUE, STAR = (
    {"id": "x", "prompt": "a red circle"},
    {"id": "x", "prompt": "a blue circle"},
    {"id": "y", "prompt": "a star"},
)


def test_candidates_compete_with_those_of_the_same_text_alone(store: Store) -> None:
    old, new = asked(RED, STAR), asked(BLUE, STAR)
    work(store, old).news.write(store)
    made(store, old, 9.0, 8.0, 5.0, 6.0)
    ended(store, old, "rendered", "rejected")
    work(store, new).news.write(store)
    made(store, new, 1.0, 2.0)

    # Whoever asks: a job with the prompts, or `refine`, `select` and `status` without them.
    for table in (new, None):
        found = work(store, table)
        assert survivors(found) == [("a blue circle", 1), ("a star", 1)]
        assert found.rendered == 0
    selection = reselect.reselect(store, BEST_OF_TWO)
    assert (selection.previews, selection.survivors, selection.admitted, selection.spared) == (4, 2, 2, 0)
    assert Standing.read(store, BEST_OF_TWO).counts(4) == {
        "previewed": 2,
        "rejected": 2,
        "open": 0,
        "earlier text": 2,
    }
    assert "earlier text │ 2" in CliRunner().invoke(app, ["status", store.url]).output

    with pytest.raises(AuditError):  # the one that was rendered is not compared with those of another text
        audit(store, BEST_OF_TWO)
    # What is there of the earlier text keeps its rows.
    kept = {row["prompt"] for row in tables.read(store, "clips").to_pylist() if row["status"] == "rendered"}
    assert kept == {"a red circle"}


def test_candidates_wait_for_one_another_only_where_something_compares_them(store: Store) -> None:
    table = asked(RED, STAR)
    made(store, table, 9.0)  # one of the first prompt's two
    for rules, sizes, wait in (
        (["select.keep=1"], [2, 2, 2], True),
        (["score.scorers=[motion, phash]", "select.duplicates=3"], [2, 2, 2], True),
        (["select.require=motion > 1"], [1, 1, 1], False),
        (["select.rank=motion"], [1, 1, 1], False),
    ):
        found = next_work(store, table, row_schema(), Settings.load("nano", ["candidates=2", *rules]))
        open_ = [row["group"] for row in found.rows.to_pylist() if row["status"] == "open"]
        assert (open_, bool(found.context.num_rows), bool(survivors(found))) == (sizes, wait, not wait), rules


def test_another_negative_prompt_is_another_prompt(store: Store) -> None:
    old, new = asked(RED), asked({**RED, "negative_prompt": "fast"})
    made(store, old, 9.0, 8.0)
    work(store, new).news.write(store)
    made(store, new, 1.0, 2.0)
    assert survivors(work(store, None)) == [("a red circle", 1)]
    assert survivors(work(store, asked({**RED, "negative_prompt": ""}))) == [("a red circle", 0)]  # the first one
    assert Standing.read(store, BEST_OF_TWO).counts(2)["earlier text"] == 2


def test_a_job_that_was_stopped_at_once_has_changed_which_text_counts(store: Store) -> None:
    old, new = asked(RED), asked(BLUE, STAR)
    work(store, old).news.write(store)
    made(store, old, 9.0, 8.0)
    work(store, new).news.write(store)
    assert survivors(work(store, None)) == []
    assert Standing.read(store, BEST_OF_TWO).counts(4) == {"open": 4, "earlier text": 2}
    made(store, new, 1.0)
    assert Standing.read(store, BEST_OF_TWO).counts(4) == {"previewed": 1, "open": 3, "earlier text": 2}


def test_an_earlier_text_that_comes_back_counts_again(store: Store) -> None:
    first, second = asked(RED), asked(BLUE)
    for table, motions in ((first, (9.0, 8.0)), (second, (1.0, 2.0))):
        work(store, table).news.write(store)
        made(store, table, *motions)
    found = work(store, first)
    assert survivors(found) == [("a red circle", 0)]
    found.news.write(store)
    assert survivors(work(store, None)) == [("a red circle", 0)]
    assert not work(store, first).news  # told once


def test_several_files_may_fill_one_run(store: Store) -> None:
    first, second = asked(RED), asked(STAR)
    for table in (first, second):
        work(store, table).news.write(store)
    made(store, first, 9.0, 8.0)
    made(store, second, 5.0)
    assert survivors(work(store, None)) == [("a red circle", 0), ("a star", 0)]
    assert Standing.read(store, BEST_OF_TWO).counts(2) == {"previewed": 3, "open": 1}


def test_in_a_run_of_an_earlier_version_the_newest_row_tells_the_text(store: Store) -> None:
    made(store, asked(RED), 9.0, 8.0)
    made(store, asked(BLUE), 1.0, 2.0)
    assert survivors(work(store, None)) == [("a blue circle", 1)]
    assert Standing.read(store, BEST_OF_TWO).counts(4) == {"previewed": 2, "open": 2, "earlier text": 2}


def test_seeds_that_are_not_asked_for_any_more_are_not_open(store: Store) -> None:
    for seed in (1, 7):
        work(store, asked({**RED, "seed": seed})).news.write(store)
    assert Standing.read(store, BEST_OF_TWO).counts(2) == {"open": 2}


def test_a_clock_that_is_behind_does_not_bring_the_earlier_text_back(store: Store) -> None:
    made(store, asked(RED), 9.0)
    rows = tables.read(store, "previews")
    ahead = pa.array([at + 3_600_000 for at in rows["at"].cast(pa.int64()).to_pylist()], rows.schema.field("at").type)
    tables.supersede(store, "previews", rows.set_column(rows.schema.get_field_index("at"), "at", ahead))
    work(store, asked(BLUE)).news.write(store)
    assert Standing.read(store, BEST_OF_TWO).counts(2) == {"open": 2, "earlier text": 1}


@pytest.mark.parametrize("first", ["values", "nothing"])
def test_a_column_that_is_all_null_in_one_file_has_the_type_of_the_others(store: Store, first: str) -> None:
    values = asked(RED, mood=["calm"], difficulty=[0.5])
    nothing = asked(STAR, mood=[None], difficulty=[None])
    for table in (values, nothing) if first == "values" else (nothing, values):
        mine = labels.agreed(store, table)
        work(store, mine).news.write(store)
        made(store, mine, 9.0, 8.0)
    held = tables.read(store, "previews")
    assert (held.schema.field("mood").type, held.schema.field("difficulty").type) == (pa.string(), pa.float64())
    assert {(row["id"], row["mood"], row["difficulty"]) for row in held.to_pylist()} == {
        ("x", "calm", 0.5), ("y", None, None),
    }  # fmt: skip
    with pytest.raises(PromptError, match="column 'mood' holds int64, and held string"):
        labels.agreed(store, asked({**STAR, "seed": 5}, mood=[7]))


def test_other_labels_for_what_the_run_has_are_refused_with_the_difference(store: Store) -> None:
    made(store, asked(RED, STAR, mood=["calm", None], difficulty=[math.nan, 0.5]), 9.0, 8.0, 5.0, 6.0)
    same = asked(RED, STAR, mood=["calm", None], difficulty=[math.nan, 0.5])
    assert work(store, same).rows.num_rows == 2
    with pytest.raises(PromptError, match=r"(?s)id: 'x' there, 'x2' now.*--relabel"):
        work(store, asked({**RED, "id": "x2"}, STAR, mood=["calm", None], difficulty=[math.nan, 0.5]))
    with pytest.raises(PromptError, match="mood: None there, 'wild' now"):
        work(store, asked(RED, STAR, mood=["calm", "wild"], difficulty=[math.nan, 0.5]))
    with pytest.raises(PromptError, match="place: None there, 'sea' now"):
        work(store, asked(RED, STAR, mood=["calm", None], difficulty=[math.nan, 0.5], place=["sea", None]))
    with pytest.raises(PromptError, match="mood: 'calm' there, None now"):
        work(store, asked(RED, STAR, difficulty=[math.nan, 0.5]))


def test_relabel_writes_the_new_labels_and_no_prompt_wins_twice(store: Store) -> None:
    old, new = asked(RED, mood=["calm"]), asked({**RED, "id": "new"}, mood=["wild"], place=["sea"])
    drawn = asked(RED, draw=1, mood=["calm"]).slice(2)
    made(store, old, 9.0)  # the preview of the other one was lost
    made(store, drawn, 1.0)
    ended(store, old, "rendered")
    work(store, new, relabel=True).news.write(store)

    for which in ("previews", "clips"):
        rows = tables.read(store, which).to_pylist()
        assert {(row["id"], row["mood"], row["place"]) for row in rows} == {("new", "wild", "sea")}
    made(store, new.slice(1), 8.0)
    found = work(store, new)  # nothing to be refused any more
    assert survivors(found) == []
    assert {row["candidate"] for row in found.decided.to_pylist()} == {1}
    assert Standing.read(store, BEST_OF_TWO).counts(2)["rendered"] == 1


def test_a_label_may_be_taken_away_though_an_older_run_calls_its_column_required(store: Store) -> None:
    old = asked(RED, mood=["calm"])
    made(store, old.cast(pa.schema([field.with_nullable(field.name != "mood") for field in old.schema])), 9.0, 8.0)
    work(store, asked(RED), relabel=True).news.write(store)
    assert tables.read(store, "previews")["mood"].to_pylist() == [None, None]


def test_ids_may_change_places(store: Store) -> None:
    old = asked({**RED, "id": "x"}, {**STAR, "id": "y"})
    new = asked({**RED, "id": "y"}, {**STAR, "id": "x"})
    made(store, old, 9.0, 8.0, 5.0, 6.0)
    work(store, new, relabel=True).news.write(store)
    assert {(row["id"], row["prompt"]) for row in tables.read(store, "previews").to_pylist()} == {
        ("y", "a red circle"), ("x", "a star"),
    }  # fmt: skip
    assert Standing.read(store, BEST_OF_TWO).counts(4) == {"previewed": 4, "open": 0}
