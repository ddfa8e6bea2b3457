"""Given a ledger, when it is summed up, then these figures; and a page that holds them."""

import json
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest

from flashvideo_ray import Settings
from flashvideo_ray.accounting import billing, report
from flashvideo_ray.accounting.summary import joined, summarise
from flashvideo_ray.ledger.tables import CLIPS, PREVIEWS, extended
from flashvideo_ray.media import video

NASTY = "A cat <script>alert('x')</script> & \"friends\" </details>"
CANDIDATE = {"prompt": "A calm sea", "seed": 7, "candidate": 0, "reason": None}
PREVIEW_COLUMNS = [
    "clip_id", "id", "prompt", "seed", "candidate", "status", "reason", "latents", "preview", "preview_seconds",
]  # fmt: skip
CLIP_COLUMNS = [
    "clip_id", "id", "prompt", "seed", "candidate", "status", "stage", "reason", "error_class", "error", "attempts",
    "clip", "frames", "height", "width", "fps", "bytes", "refine_seconds", "device",
]  # fmt: skip
POSTER = video.poster_jpeg(np.random.default_rng(0).integers(0, 256, (1, 48, 80, 3), dtype=np.uint8))


def preview(clip_id: str, id: str = "p", **values) -> dict:
    return {
        "clip_id": clip_id, "id": id, **CANDIDATE, "status": "previewed", "latents": f"latents/{clip_id}.safetensors",
        "preview": f"previews/{clip_id}.mp4", "poster": f"previews/{clip_id}.jpg", "preview_seconds": 2.0,
        "score_seconds": 0.5, "device": "NVIDIA H100", "score_motion": 3.5, "score_black": None, **values,
    }  # fmt: skip


def rendered(clip_id: str, id: str = "p", **values) -> dict:
    return {
        "clip_id": clip_id, "id": id, **CANDIDATE, "status": "rendered", "attempts": 1, "clip": f"clips/{clip_id}.mp4",
        "poster": f"clips/{clip_id}.jpg", "frames": 49, "height": 1080, "width": 1920, "fps": 8.0, "bytes": 5_000_000,
        "refine_seconds": 4.0, "device": "NVIDIA L4", **values,
    }  # fmt: skip


def rejected(clip_id: str, id: str = "p", **values) -> dict:
    reason = "motion >= 0.5 (motion = 0.1)"
    return {
        "clip_id": clip_id,
        "id": id,
        **CANDIDATE,
        "status": "rejected",
        "stage": "score",
        "reason": reason,
        **values,
    }


def failed(clip_id: str, id: str = "p", **values) -> dict:
    return {
        "clip_id": clip_id, "id": id, **CANDIDATE, "status": "failed", "stage": "refine", "error_class": "ValueError",
        "error": "frame 3 has 12 values that are NaN", "attempts": 1, **values,
    }  # fmt: skip


def tables(previews: list[dict], clips: list[dict]) -> tuple[pa.Table, pa.Table]:
    scores = [pa.field("score_motion", pa.float64()), pa.field("score_black", pa.float64())]
    return (
        pa.Table.from_pylist(previews, extended(PREVIEWS, scores)),
        pa.Table.from_pylist(clips, CLIPS),
    )


def page(previews: list[dict], clips: list[dict], poster=lambda path: POSTER, **more) -> "Page":
    both = tables(previews, clips)
    run = {"created": "2026-01-02T03:04:05+00:00", "recipe": {"seed": 11, "note": NASTY}}
    return Page(report.write_report(*both, run, summarise(*both) | more, poster=poster, title="my <run>"))


class Page(HTMLParser):
    """Reads a page back; fails on a tag that is closed wrongly."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.open, self.tags, self.links, self.images, self.words = html, [], Counter(), [], [], []
        self.feed(html)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).replace("\u202f", " ").replace("\u00a0", " ").split())

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        attributes = dict(attrs)
        if tag == "a":
            self.links.append(attributes["href"])
        if tag == "img":
            self.images.append(attributes["src"])
        if tag not in ("meta", "img", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


@pytest.fixture
def night() -> tuple[list[dict], list[dict]]:
    """Six candidates of three prompts: two rendered, one rejected, two failed, one not refined yet."""
    previews = [
        preview("a", "p1"),
        preview("b", "p1", candidate=1, score_motion=float("nan")),
        preview("c", "p2", status="rejected", score_motion=0.1),
        preview("d", "p2", candidate=1),
        preview("e", "p3", status="approved", device="cpu", preview_seconds=10.0),
    ]
    clips = [
        rendered("a", "p1"),
        rendered("b", "p1", candidate=1, refine_seconds=6.0),
        rejected("c", "p2"),
        failed("d", "p2", candidate=1),
        failed("f", "p3", candidate=1, stage="preview", error_class="OutOfMemoryError", error="CUDA out of memory"),
    ]
    return previews, clips


def test_summary_counts_every_candidate_once(night):
    summary = summarise(*tables(*night))
    assert (summary["candidates"], summary["prompts"], summary["previews"], summary["survivors"]) == (6, 3, 5, 4)
    assert summary["status"] == {"rendered": 2, "failed": 2, "rejected": 1, "approved": 1}
    assert summary["failures"] == {"refine": {"ValueError": 1}, "preview": {"OutOfMemoryError": 1}}
    assert summary["rejections"] == {"motion >= 0.5": 1}
    assert summary["acceptance_rate"] == pytest.approx(4 / 5)


def test_summary_adds_up_time_and_media(night):
    summary = summarise(*tables(*night))
    assert summary["stages"]["preview"] == {"count": 5, "seconds": 18.0, "mean_seconds": 3.6}
    assert summary["stages"]["refine"] == {"count": 2, "seconds": 10.0, "mean_seconds": 5.0}
    assert summary["stages"]["publish"] == {"count": 0, "seconds": 0.0, "mean_seconds": None}
    assert summary["devices"] == {"NVIDIA H100": 8.0, "cpu": 10.0, "NVIDIA L4": 10.0}
    assert summary["gpu_seconds"] == 18.0
    assert summary["refine_seconds_saved"] == 5.0
    assert summary["media"] == {"clips": 2, "bytes": 10_000_000, "frames": 98, "seconds": 12.25}
    json.dumps(summary, allow_nan=False)


def test_what_the_clips_table_says_is_newer():
    summary = summarise(*tables([preview("a", status="rejected")], [rendered("a")]))
    assert summary["status"] == {"rendered": 1}
    assert summary["acceptance_rate"] == 1


def test_tables_need_only_the_promised_columns():
    previews, clips = tables([preview("a"), preview("b")], [rendered("a"), failed("b")])
    both = previews.select(PREVIEW_COLUMNS), clips.select(CLIP_COLUMNS)
    summary = summarise(*both)
    assert summary["gpu_seconds"] == 4.0
    assert "A calm sea" in Page(report.write_report(*both, {}, summary, poster=lambda path: None)).text


def test_page_shows_the_figures_with_their_units(night):
    text = page(*night, wall_seconds=4821.0).text
    for words in (
        "my <run>", "6 candidates of 3 prompts, started 2026-01-02 03:04 UTC", "Rendered 2 12 s of film, 10 MB",
        "Rejected 1 80 % of previews accepted", "Failed 2", "Wall time 1 h 20 min", "GPU time 18 s 18 GPU-seconds",
        "Refine time spared 5 s", "Survivors not rejected by selection 4", "Preview 5 3.6 s 18 s", "motion >= 0.5 1",
    ):  # fmt: skip
        assert words in text


def test_page_leads_to_the_media_and_says_why(night):
    sheet = page(*night)
    assert {"clips/a.mp4", "clips/b.mp4", "previews/c.mp4", "previews/e.mp4"} <= set(sheet.links)
    assert sheet.tags["article"] == 8  # two clips, and six candidates side by side
    assert "motion >= 0.5 (motion = 0.1)" in sheet.text
    assert "ValueError in refine 1 candidate frame 3 has 12 values that are NaN" in sheet.text
    assert "OutOfMemoryError in preview 1 candidate CUDA out of memory" in sheet.text
    assert "seed: 11" in sheet.text


def test_page_is_one_file_and_nothing_in_it_runs(night):
    sheet = page(*night)
    assert all(image.startswith("data:image/webp;base64,") for image in sheet.images)
    assert len(sheet.images) == 7  # the preview of one candidate never came to be
    assert not sheet.tags["script"] + sheet.tags["link"] + sheet.tags["iframe"]
    assert not any(link.startswith(("http", "//", "javascript:")) for link in sheet.links)


def test_prompts_reasons_and_errors_are_escaped():
    sheet = page(
        [preview("a", prompt=NASTY), preview("b", prompt=NASTY)],
        [
            rendered("a", prompt=NASTY, clip="javascript:alert(1)//"),
            rejected("b", prompt=NASTY, reason=NASTY),
            failed("c", prompt=NASTY, error=NASTY, error_class=NASTY, stage=NASTY),
        ],
    )
    assert "<script" not in sheet.html
    assert sheet.text.count("<script>alert('x')</script>") >= 6
    assert "javascript%3Aalert%281%29//" in sheet.links


def test_what_would_mislead_the_eye_is_shown_as_what_it_is():
    text = "a dog\u202e.tac a ton\x1b[2J"
    sheet = page([preview("a", text, prompt=text)], [failed("a", text, prompt=text, error=text)])
    assert not {"\u202e", "\x1b"} & set(sheet.html)
    assert sheet.text.count("a dog\\u202e.tac a ton\\x1b[2J") >= 3


def test_missing_scores_are_dashes(night):
    assert "motion 3.5 black –" in page(*night).text
    assert "motion – black –" in page(*night).text


@pytest.mark.parametrize("poster", [lambda path: None, lambda path: b"", lambda path: POSTER[:200]])
def test_a_poster_that_is_not_to_be_had_leaves_a_blank(night, poster):
    sheet = page(*night, poster=poster)
    assert sheet.images == []
    assert "clips/a.mp4" in sheet.links
    assert "no picture" in sheet.text


def test_empty_run():
    empty = tables([], [])
    assert summarise(*empty)["acceptance_rate"] is None
    assert "The ledger has no rows" in page([], []).text


def test_thousands_of_candidates_stay_a_small_page():
    prompt = "A long prompt, as they are written for this model. " * 16
    count = 3000
    noise = np.random.default_rng(0).integers(0, 256, (1, 360, 640, 3), dtype=np.uint8)
    large = video.poster_jpeg(noise, quality=95)
    sheet = page(
        [preview(f"{i:04x}", f"p{i}", prompt=prompt) for i in range(count)],
        [(rejected if i % 3 == 0 else rendered)(f"{i:04x}", f"p{i}", prompt=prompt) for i in range(count)],
        poster=lambda path: large,
    )
    assert len(sheet.html) < 4_000_000
    assert "The first 120 of 2 000 are shown" in sheet.text
    assert "The first 120 of 1 000 are shown" in sheet.text
    assert sheet.tags["article"] == len(sheet.images) == 240
    linked = [image for image in sheet.images if not image.startswith("data:")]
    assert linked
    assert set(linked) <= {f"{folder}/{i:04x}.jpg" for folder in ("clips", "previews") for i in range(count)}


def test_candidates_of_a_prompt_stand_side_by_side_with_what_became_of_them():
    sheet = page(
        [
            preview("a", "p1", rank=0.2, status="rejected"),
            preview("b", "p1", candidate=1, rank=0.9),
            preview("c", "p1", candidate=2, rank=0.5, status="rejected"),
            preview("d", "p2", status="rejected"),
            preview("e", "p1", candidate=3, rank=0.1),
        ],
        [
            rejected("a", "p1", reason="not among the best 1 of its prompt by motion (0.2, place 3 of 3)"),
            rendered("b", "p1", candidate=1),
            rejected("c", "p1", candidate=2, audit=True, clip="clips/c.mp4"),
            rejected("d", "p2"),
            {**rejected("e", "p1", candidate=3), "status": "skipped", "reason": "the job had 1 clip"},
        ],
    )
    side_by_side = sheet.text.partition("Candidates side by side 1 prompt")[2].partition("Rejected")[0]
    words = ("rendered rank 0.9", "rejected rank 0.5", "refined all the same, for the audit", "rejected rank 0.2")
    words += ("not among the best 1 of its prompt by motion (0.2, place 3 of 3)", "skipped rank 0.1 the job had 1 clip")
    places = [side_by_side.find(each) for each in words]
    assert -1 not in places
    assert places == sorted(places)
    assert {"clips/c.mp4", "previews/a.mp4"} <= set(sheet.links)
    assert "Skipped 1 the job had enough" in sheet.text


def test_page_shows_the_bill():
    both = tables(*night_of_two())
    prices = "prices.devices={H100: {on_demand: 3600}, L4: {on_demand: 360}}"
    pools = {"refine": {"held_seconds": 16.0, "busy_seconds": 4.0}}
    found = billing.bill(*both, Settings.load("nano", [prices]), pools)
    text = page(*night_of_two(), bill=billing.as_dict(found)).text
    for words in (
        "All work 4.40 USD 8 GPU-seconds + 1 core-seconds",
        "Selection saved 33.3 % against refining everything and filtering last: 0.400 USD, 4 GPU-seconds",
        "Preview NVIDIA H100 2 4 GPU-seconds 3 600.00 USD 4.00 USD",
        "Refine 16 s 75 % 1.60 USD",
        "score on cpu: no price in prices.devices",
    ):
        assert words in text, words


def night_of_two() -> tuple[list[dict], list[dict]]:
    return [preview("a"), preview("b", status="rejected")], [rendered("a"), rejected("b")]


def test_page_names_words_that_the_nano_model_does_not_know():
    both = tables([preview("a", prompt="A heron over a navy lake")], [])
    run = {"settings": {"preview": {"model": "nano"}}}
    text = Page(report.write_report(*both, run, summarise(*both), poster=lambda path: None)).text
    assert "draws these prompts without them: heron, lake." in text
    assert "A large striped red star slides left on a navy background." in text


def test_figures_by_columns_are_those_of_a_row_at_a_time() -> None:
    rng = np.random.default_rng(0)
    previews, clips = [], []
    for number in range(300):
        clip_id, prompt = f"{number:04}", f"p{number // 3}"
        if number % 7:
            seconds = [1.5, None, float("nan")][rng.integers(3)]
            status = ["previewed", "rejected", "approved"][rng.integers(3)]
            previews.append(preview(clip_id, prompt, candidate=number % 3, status=status, preview_seconds=seconds))
        kind = [None, rendered, rejected, failed][rng.integers(4)]
        if kind is not None:
            device = [None, "NVIDIA L4", "cpu"][rng.integers(3)]
            more = {"stage": [None, "preview", "refine"][rng.integers(3)]} if kind is failed else {}
            clips.append(kind(clip_id, prompt, candidate=number % 3, **{"device": device, "audit": None, **more}))
    both = tables(previews, clips)
    rows, found = joined(*both), summarise(*both)
    assert (found["candidates"], found["prompts"]) == (len(rows), len({row["id"] for row in rows}))
    assert found["status"] == Counter(row["status"] for row in rows)
    failures = Counter((row["stage"] or "unknown", row["error_class"]) for row in rows if row["status"] == "failed")
    assert {(s, c): n for s, classes in found["failures"].items() for c, n in classes.items()} == failures
    assert sum(found["rejections"].values()) == found["status"]["rejected"]
    kept = [row for row in rows if row["previewed"] and row["status"] != "rejected" and row["stage"] != "score"]
    assert found["survivors"] == len(kept)
    done = [row for row in rows if row["status"] == "rendered"]
    media = {
        "clips": len(done),
        "bytes": sum(row["bytes"] for row in done),
        "frames": sum(row["frames"] for row in done),
    }
    assert found["media"] == {**media, "seconds": round(sum(row["frames"] / row["fps"] for row in done), 3)}
    timed = [row["preview_seconds"] for row in previews if row["preview_seconds"] == 1.5]
    assert found["stages"]["preview"] == {"count": len(timed), "seconds": 1.5 * len(timed), "mean_seconds": 1.5}
