"""Damage is made for real in a small run's directory; it is found, and after repair the run is sound."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save
from support import S3

from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.keys import clip_key, latents_key, poster_key, preview_key
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.verify import Report, verify
from flashvideo_ray.ledger.writer import Writer
from flashvideo_ray.media import video
from flashvideo_ray.settings import LedgerSettings

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), np.uint8)
RENDERED, OTHER, REJECTED, FAILED, OPEN = (f"{number:064x}" for number in range(1, 6))
STATUS = {RENDERED: "rendered", OTHER: "rendered", REJECTED: "rejected", FAILED: "failed"}


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return make_run(Store(str(tmp_path / "run")))
    s3: S3 = request.getfixturevalue("s3")
    return make_run(Store(f"s3://{s3.bucket}/{tmp_path.name}-verify"))


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return make_run(Store(str(tmp_path / "run")))


def make_run(store: Store) -> Store:
    """Two rendered candidates, a rejected, a failed and an open one, as the stages leave them."""
    previews = Writer(store, "previews", tables.PREVIEWS, LedgerSettings())
    clips = Writer(store, "clips", tables.CLIPS, LedgerSettings())
    for clip_id in (RENDERED, OTHER, REJECTED, FAILED, OPEN):
        put_preview(store, clip_id)
        names = {"latents": latents_key(clip_id), "preview": preview_key(clip_id)}
        status = "rejected" if clip_id == REJECTED else "previewed"
        previews.append(candidate(clip_id, status, **names, poster=poster_key(names["preview"]), preview_seconds=1.0))
        if clip_id in STATUS:
            made = put_clip(store, clip_id) if STATUS[clip_id] == "rendered" else {}
            clips.append(candidate(clip_id, STATUS[clip_id], **made))
    previews.flush()
    clips.flush()
    return store


def candidate(clip_id: str, status: str, **columns: Any) -> dict[str, Any]:
    common = {"clip_id": clip_id, "id": clip_id[-1], "prompt": "a", "seed": 1, "candidate": 0}
    return {**common, "status": status, **columns}


def put_preview(store: Store, clip_id: str) -> None:
    store.put(latents_key(clip_id), save({"latents": np.zeros((2, 3), np.float32)}))
    store.put(preview_key(clip_id), video.encode_mp4(FRAMES, 8, metadata={"clip_id": clip_id}))
    store.put(poster_key(preview_key(clip_id)), video.poster_jpeg(FRAMES))


def put_clip(store: Store, clip_id: str) -> dict[str, Any]:
    """Store a clip and its poster; what its row says of it."""
    key, mp4 = clip_key(clip_id), video.encode_mp4(FRAMES, 8, metadata={"clip_id": clip_id})
    store.put(poster_key(key), video.poster_jpeg(FRAMES))
    store.put(key, mp4)
    digest = hashlib.sha256(mp4).hexdigest()
    size = {"frames": 4, "height": 32, "width": 48, "fps": 8.0, "bytes": len(mp4), "sha256": digest}
    return {"clip": key, "poster": poster_key(key), **size}


def end(store: Store, *rows: dict[str, Any]) -> None:
    writer = Writer(store, "clips", tables.CLIPS, LedgerSettings())
    for row in rows:
        writer.append(row)
    writer.flush()


def truncate(store: Store, key: str) -> None:
    data = store.get(key)
    store.put(key, data[: len(data) // 2])


def flip(store: Store, key: str) -> None:
    data = bytearray(store.get(key))
    data[len(data) // 2] ^= 0xFF
    store.put(key, bytes(data))


def kinds(report: Report) -> set[tuple[str, str]]:
    return {(finding.kind, finding.key or finding.clip_id or "") for finding in report.findings}


def statuses(store: Store, table: tables.Table = "clips") -> dict[str, str]:
    rows = tables.read(store, table, ["status"])
    return dict(zip(rows["clip_id"].to_pylist(), rows["status"].to_pylist(), strict=True))


def without(statuses: dict[str, str], *clip_ids: str) -> dict[str, str]:
    return {clip_id: status for clip_id, status in statuses.items() if clip_id not in clip_ids}


def test_a_sound_run_has_no_findings(store: Store) -> None:
    seen: list[tuple[int, int]] = []
    before = store.keys()
    report = verify(store, repair=True, progress=lambda done, total: seen.append((done, total)))
    assert report == Report(rows=9, objects=19, findings=())
    assert seen == [(done, 9) for done in range(1, 10)]
    assert store.keys() == before


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lambda store, key: store.delete(key), "missing"),
        (truncate, "damaged"),
        (flip, "damaged"),
        (lambda store, key: store.put(key, b""), "damaged"),
        (lambda store, key: store.put(key, store.get(clip_key(OTHER))), "damaged"),
    ],
    ids=["deleted", "truncated", "flipped", "emptied", "exchanged"],
)
def test_a_clip_that_is_not_what_its_row_says_is_rendered_again(
    store: Store, damage: Callable[[Store, str], None], kind: str
) -> None:
    damage(store, clip_key(RENDERED))
    assert kinds(verify(store)) == {(kind, clip_key(RENDERED))}
    assert statuses(store) == STATUS
    [finding] = verify(store, repair=True).findings
    assert (finding.clip_id, finding.repaired) == (RENDERED, True)
    assert statuses(store) == without(STATUS, RENDERED)
    assert not store.exists(clip_key(RENDERED))
    after = verify(store)
    assert after.problems == []
    assert kinds(after) == {("adoptable", poster_key(clip_key(RENDERED)))}


def test_rows_from_before_streams_were_hashed_are_taken_as_they_are(local: Store) -> None:
    earlier = pa.schema([field for field in tables.CLIPS if field.name != "stream_sha256"])
    writer = Writer(local, "clips", earlier, LedgerSettings())
    writer.append(candidate(OPEN, "rendered", **put_clip(local, OPEN)))
    writer.flush()
    assert verify(local).findings == ()
    known = {row["clip_id"]: row["stream_sha256"] for row in tables.read(local, "clips").to_pylist()}
    assert known[OPEN] is None


def test_what_a_clip_declares_must_be_what_it_holds(local: Store) -> None:
    made = put_clip(local, OPEN)
    end(local, candidate(OPEN, "rendered", **{**made, "frames": 5}))
    [finding] = verify(local).findings
    assert (finding.kind, finding.message) == ("damaged", "frames is 4, not 5")
    assert verify(local, decode=False).findings == ()


def test_sizes_are_compared_without_fetching(local: Store) -> None:
    truncate(local, clip_key(RENDERED))
    local.delete(latents_key(OTHER))
    assert kinds(verify(local, decode=False)) == {("damaged", clip_key(RENDERED)), ("missing", latents_key(OTHER))}


def test_what_is_missing_is_found_by_names_alone_too(local: Store) -> None:
    end(local, candidate("a" * 64, "rejected"), candidate("b" * 64, "rendered"), candidate("c" * 64, "going well"))
    previews = Writer(local, "previews", tables.PREVIEWS, LedgerSettings())
    for clip_id, status in (("a" * 64, "previewed"), ("c" * 64, "previewed"), ("d" * 64, "rejected")):
        previews.append(candidate(clip_id, status))  # without latents
    previews.flush()
    keys = [poster_key(clip_key(OTHER)), poster_key(preview_key(FAILED)), preview_key(REJECTED), latents_key(OPEN)]
    for key in (clip_key(RENDERED), *keys):
        local.delete(key)
    local.put("clips/ab/copy of a clip.mp4", local.get(clip_key(OTHER)))
    seen: list[tuple[int, int]] = []
    by_names = verify(local, decode=False, progress=lambda done, total: seen.append((done, total)))
    assert by_names == verify(local)
    assert len(by_names.findings) == 9
    assert seen[-1] == (15, 15)


@pytest.mark.parametrize("damage", [lambda store, key: store.delete(key), truncate], ids=["deleted", "truncated"])
@pytest.mark.parametrize("name", [latents_key, preview_key], ids=["latents", "preview"])
def test_a_preview_is_made_again_where_it_is_needed(
    local: Store, damage: Callable[[Store, str], None], name: Callable[[str], str]
) -> None:
    before = statuses(local, "previews")
    for clip_id in (OPEN, REJECTED):
        damage(local, name(clip_id))
    report = verify(local, repair=True)
    assert {finding.key for finding in report.findings} == {name(OPEN), name(REJECTED)}
    assert report.problems == []
    # The open candidate needs it again; the other has ended, and keeps its scores.
    assert statuses(local, "previews") == without(before, OPEN)
    rows = {row["clip_id"]: row for row in tables.read(local, "previews").to_pylist()}
    assert [rows[REJECTED]["latents"], rows[REJECTED]["preview"]].count(None) == 1
    assert rows[REJECTED]["preview_seconds"] == 1.0
    after = verify(local)
    assert {finding.clip_id for finding in after.findings} == {OPEN}
    assert after.problems == []


def test_a_clip_that_is_rendered_again_needs_its_latents(local: Store) -> None:
    local.delete(clip_key(RENDERED))
    local.delete(latents_key(RENDERED))
    verify(local, repair=True)
    assert RENDERED not in statuses(local)
    assert RENDERED not in statuses(local, "previews")
    assert verify(local).problems == []


def test_a_poster_is_made_again_from_its_video(store: Store) -> None:
    posters = poster_key(clip_key(RENDERED)), poster_key(preview_key(REJECTED))
    store.delete(posters[0])
    truncate(store, posters[1])
    assert kinds(verify(store, repair=True)) == {("missing", posters[0]), ("damaged", posters[1])}
    assert verify(store).findings == ()
    assert statuses(store) == STATUS


def test_what_the_next_job_takes_up_is_no_problem(store: Store) -> None:
    put_preview(store, "f" * 64)
    put_clip(store, OPEN)
    put_clip(store, FAILED)
    report = verify(store, repair=True)
    assert {finding.kind for finding in report.findings} == {"adoptable"}
    assert {finding.clip_id for finding in report.findings} == {"f" * 64, OPEN, FAILED}
    assert report.problems == []
    assert store.exists(clip_key(OPEN))
    truncate(store, clip_key(OPEN))
    assert ("damaged", clip_key(OPEN)) in kinds(verify(store, repair=True))
    assert not store.exists(clip_key(OPEN))


def test_objects_that_nobody_needs_are_deleted(store: Store) -> None:
    put_clip(store, REJECTED)
    store.put("clips/ab/copy of a clip.mp4", store.get(clip_key(RENDERED)))
    store.put("previews/notes.txt", b"mine")
    expected = {clip_key(REJECTED), poster_key(clip_key(REJECTED)), "clips/ab/copy of a clip.mp4", "previews/notes.txt"}
    report = verify(store, repair=True)
    assert kinds(report) == {("orphan", key) for key in expected}
    assert [finding.key for finding in report.problems] == ["previews/notes.txt"]
    assert expected & set(store.keys()) == {"previews/notes.txt"}
    assert kinds(verify(store)) == {("orphan", "previews/notes.txt")}


def test_lost_and_damaged_parts(store: Store) -> None:
    key = next(key for key in store.keys("ledger") if "previews" in key)
    damaged = store.get(key)[:-30]
    store.put(key, damaged)
    report = verify(store, repair=True)
    assert ("part", key) in kinds(report)
    assert report.problems == []
    assert store.get(key.replace("ledger/", "damaged/")) == damaged
    # Rows of candidates that ended are written anew, the open one is left to the next job.
    expected = {RENDERED: "previewed", OTHER: "previewed", REJECTED: "rejected", FAILED: "previewed"}
    assert without(statuses(store, "previews"), FAILED) == without(expected, FAILED)
    after = verify(store)
    assert {finding.kind for finding in after.findings} == {"adoptable"}
    assert statuses(store) == STATUS


def test_a_candidate_ends_once(local: Store) -> None:
    rows = tables.read(local, "clips")
    for _ in range(2):  # as --relabel does: newer versions of rows end nothing
        tables.supersede(local, "clips", tables.read(local, "clips"))
    assert verify(local).findings == ()
    end(local, *rows.to_pylist())
    report = verify(local, repair=True)
    assert kinds(report) == {("twice", RENDERED), ("twice", OTHER)}
    assert verify(local).findings == ()
    tables.reopen(local, "clips", tables.read(local, "clips"))
    end(local, *rows.to_pylist())
    assert verify(local).findings == ()
    end(local, candidate(OPEN, "going well"))
    assert kinds(verify(local, repair=True)) == {("status", OPEN)}
    assert verify(local).findings == ()


def test_files_that_were_being_written_are_deleted(local: Store) -> None:
    root = Path(local.path())
    stray = [root / "clips" / "ab" / ".0123.partial", root / "ledger" / ".4567.partial"]
    for path in stray:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    assert kinds(verify(local)) == {("leftover", str(path.relative_to(root))) for path in stray}
    assert verify(local, repair=True).problems == []
    assert not any(path.exists() for path in stray)
    assert verify(local).findings == ()


def test_uploads_that_were_not_completed_are_aborted(s3: S3, tmp_path: Path) -> None:
    store = make_run(Store(f"s3://{s3.bucket}/{tmp_path.name}"))
    prefix = store.path().partition("/")[2]
    for key in (f"{prefix}/{clip_key(OPEN)}", f"{prefix}-of-another-run/clip.mp4"):
        begun = store.fs.call_s3("create_multipart_upload", Bucket=s3.bucket, Key=key)
        about = {"Bucket": s3.bucket, "Key": key, "UploadId": begun["UploadId"]}
        store.fs.call_s3("upload_part", **about, PartNumber=1, Body=b"half")
    assert kinds(verify(store)) == {("upload", clip_key(OPEN))}
    assert verify(store, repair=True).problems == []
    assert verify(store).findings == ()
    assert kinds(verify(Store(store.url + "-of-another-run"))) == {("upload", "clip.mp4")}
