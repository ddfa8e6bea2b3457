"""The table of jobs: what a run cost beside its candidates, and the way back when its own file is lost."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from support import Days

from flashvideo_ray import Settings
from flashvideo_ray.ledger import jobs, run_file
from flashvideo_ray.ledger.claim import ClaimLostError
from flashvideo_ray.ledger.patience import PatientStore
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.verify import verify
from flashvideo_ray.media import video

TOLD = Settings().model_dump(mode="json")


@pytest.fixture
def store(tmp_path: Any) -> Store:
    store = Store(str(tmp_path / "run"))
    run_file.open_run(store, {"seed": 0}, {"settings": TOLD, "candidates": 2})
    return store


def the_run(store: Store) -> dict[str, Any]:
    run = run_file.read_run(store)
    assert run is not None
    return run


def test_a_job_is_in_the_table_from_its_beginning_and_says_how_it_ended(store: Store) -> None:
    with jobs.Record(store, the_run(store), time.monotonic()) as record:
        assert [row["status"] for row in jobs.read(store)] == ["running"]
        record.used({"refine": (10.0, 4.0)})
        record.round_over()
        record.used({"refine": (5.0, 4.0), "text": (1.0, 0.5)})
    [row] = jobs.read(store)
    assert (row["status"], row["refine_held_seconds"], row["refine_busy_seconds"]) == ("ended", 15.0, 8.0)
    assert row["seconds"] > 0
    assert json.loads(row["run"]) == the_run(store)

    for error, status in ((KeyboardInterrupt(), "stopped"), (RuntimeError("no card"), "failed")):
        with pytest.raises(type(error)), jobs.Record(store, the_run(store), time.monotonic()):
            raise error
        assert jobs.read(store)[-1]["status"] == status
    assert jobs.read(store)[-1]["error"] == "RuntimeError: no card"
    with pytest.raises(ClaimLostError), jobs.Record(store, the_run(store), time.monotonic()):
        raise ClaimLostError("another job has it")  # which nothing may be written beside
    assert jobs.read(store)[-1]["status"] == "running"

    wall, pools = jobs.usage(jobs.read(store))
    assert wall == pytest.approx(sum(row["seconds"] for row in jobs.read(store)), abs=0.01)
    assert pools["refine"] == {"held_seconds": 15.0, "busy_seconds": 8.0}
    before = jobs.read(store)
    jobs.merge(store)
    assert len(store.keys("ledger")) == 1
    assert jobs.read(store) == before


def test_who_stops_a_job_waits_a_minute_for_a_store_that_is_away_and_no_longer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = Days()
    monkeypatch.setattr("flashvideo_ray.ledger.patience.time", days)

    def away(*_: Any) -> None:
        raise OSError("503")

    def stopped_while_it_is_away() -> None:
        with jobs.Record(PatientStore(store.url, 600.0), the_run(store), time.monotonic()):
            monkeypatch.setattr(Store, "put", away)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_while_it_is_away()
    assert 30 <= days.now <= 60


def test_jobs_of_a_run_that_has_only_a_summary_are_taken_up_once(store: Store) -> None:
    pools = {"refine": {"held_seconds": 20.0, "busy_seconds": 5.0}}
    store.put("summary.json", json.dumps({"wall_seconds": 100.0, "pools": pools}).encode())
    for _ in range(2):
        jobs.take_up(store, the_run(store))
    with jobs.Record(store, the_run(store), time.monotonic()):
        pass
    wall, used = jobs.usage(jobs.read(store))
    assert 100.0 < wall < 110.0
    assert used == pools
    assert len(jobs.read(store)) == 2


@pytest.mark.parametrize("content", [None, b'{"recipe": ', b"[1,2]"])
def test_a_lost_or_damaged_run_file_is_written_anew_from_the_table(store: Store, content: bytes | None) -> None:
    with jobs.Record(store, the_run(store), time.monotonic()):
        pass
    before = store.get("run.json")
    store.delete("run.json") if content is None else store.put("run.json", content)
    with pytest.raises(run_file.DamagedRunError, match=r"verify .* --repair"):
        run_file.check_recipe(store, {"seed": 1})  # and no other recipe begins a run over it
    [finding] = verify(store).findings
    assert (finding.kind, finding.key, finding.repaired) == ("run", "run.json", False)
    assert verify(store, repair=True).problems == []
    assert store.get("run.json") == before
    assert verify(store).findings == ()


def test_damage_among_jobs_decisions_and_papers_is_found_and_mended(store: Store) -> None:
    with jobs.Record(store, the_run(store), time.monotonic()):
        pass
    for key in ("ledger/jobs-9.parquet", "decisions/decisions-9.parquet", "requests/requests-9.parquet"):
        store.put(key, b"PAR1")
    store.put("summary.json", b"[1,2]")
    store.put("audit.json", b"\xff")
    assert [finding.kind for finding in verify(store).problems] == ["paper", "paper", "part", "part", "part"]
    assert verify(store, repair=True).problems == []
    assert verify(store).findings == ()
    assert len(store.keys("damaged")) == 3


def test_a_run_older_than_the_table_that_lost_its_file_is_begun_again_by_its_own_recipe_alone(tmp_path: Any) -> None:
    store = Store(str(tmp_path / "run"))
    recipe = {"preview": {"height": 32}, "refine": {"noise_step": 650}, "fingerprints": {"preview": "a", "refine": "b"}}
    made = {
        "settings": {name: recipe[name] for name in ("preview", "refine")},
        "model_fingerprints": recipe["fingerprints"],
    }
    metadata = {name: json.dumps(value) for name, value in made.items()}
    store.put("clips/00/00.mp4", video.encode_mp4(np.zeros((2, 32, 48, 3), np.uint8), 8, metadata=metadata))
    store.put("ledger/clips-1.parquet", b"")
    assert run_file.check_recipe(store, recipe) is None
    with pytest.raises(run_file.RecipeError, match=r"refine\.noise_step: 650 there, 30 now"):
        run_file.check_recipe(store, {**recipe, "refine": {"noise_step": 30}})
