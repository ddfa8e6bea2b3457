"""Previews that exist already: a column of URLs takes the place of stage 1."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import PROMPTS, write_prompts

import flashvideo_ray
from flashvideo_ray import Settings, identity, prompts
from flashvideo_ray.graph import fetching
from flashvideo_ray.ledger import prune, tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.verify import verify
from flashvideo_ray.media import video
from flashvideo_ray.prompts import PromptError
from flashvideo_ray.settings import SettingsError

SIZE = 9, 48, 64
ASKED = ["video.fps=8", "preview.num_frames=9", "preview.height=48", "preview.width=64"]


def load(refiner: Path | str, *overrides: str) -> Settings:
    return Settings.load("nano", [*ASKED, f"refine.model={refiner}", "ledger.flush_seconds=0.5", *overrides])


def rows(output: Path, table: tables.Table) -> list[dict[str, Any]]:
    return tables.read(Store(str(output)), table).to_pylist()


def clip(number: int, frames: int = SIZE[0], height: int = SIZE[1], width: int = SIZE[2], fps: float = 8) -> bytes:
    """A square that moves, the further the higher the number."""
    pictures = np.full((frames, height, width, 3), 90, np.uint8)
    for index in range(frames):
        left = min(index * number, width - 16)
        pictures[index, 16:32, left : left + 16] = (220, 30 * (number % 8), 40)
    return video.encode_mp4(pictures, fps)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which its files are."""
    folder = tmp_path / "last week"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield folder, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.usefixtures("inline")
def test_previews_that_exist_are_scored_selected_and_refined_and_those_that_are_not_fail_by_name(
    tmp_path: Path, served: tuple[Path, str], tiny_model: Path
) -> None:
    folder, address = served
    for number in range(12):
        (folder / f"{number}.mp4").write_bytes(clip(1 + number % 4))
    (folder / "3.mp4").write_bytes((folder / "3.mp4").read_bytes()[:-300])
    (folder / "7.mp4").write_bytes(clip(1, height=32))
    (folder / "11.mp4").unlink()
    urls = [f"{address}/{number}.mp4" if number % 2 else str(folder / f"{number}.mp4") for number in range(12)]
    # Three previews of the first prompt, of which the one that moves most is the best; one of each other.
    texts = [PROMPTS[0]] * 3 + [f"{PROMPTS[1]} {number}" for number in range(9)]
    output = tmp_path / "run"
    table = write_prompts(tmp_path / "prompts.parquet", texts, preview_url=urls)
    best = load(tiny_model, "select.rank=motion", "select.keep=1")
    result = flashvideo_ray.render(table, str(output), best)
    assert result.total == {"rendered": 7, "rejected": 2, "failed": 3}
    assert result.exit_status == 3

    previews = {row["preview_url"]: row for row in rows(output, "previews")}
    clips = {row["preview_url"]: row for row in rows(output, "clips")}
    assert len(previews) == 9
    for url, row in previews.items():
        data = (folder / url.rpartition("/")[2]).read_bytes()
        assert row["preview_sha256"] == hashlib.sha256(data).hexdigest()
        assert row["score_motion"] is not None
    assert [previews[url]["candidate"] for url in urls[:3]] == [0, 1, 2]
    assert [clips[url]["status"] for url in urls[:3]] == ["rejected", "rejected", "rendered"]
    assert {(row["height"], row["width"]) for row in clips.values() if row["status"] == "rendered"} == {(64, 96)}
    errors = {url: clips[url]["error"] for url in urls if clips[url]["status"] == "failed"}
    assert errors.keys() == {urls[3], urls[7], urls[11]}
    assert errors[urls[7]] == f"{urls[7]}: height is 32, and preview.height asks for 48"
    assert errors[urls[11]] == f"{urls[11]}: there is no such file"
    assert errors[urls[3]].startswith(f"{urls[3]}: ")
    assert not verify(Store(str(output)), decode=True).findings

    # The same command does nothing; where the file has come, a retry takes it up.
    assert flashvideo_ray.render(table, str(output), best).ended == {}
    (folder / "11.mp4").write_bytes(clip(2))
    assert flashvideo_ray.render(table, str(output), best, retry="failed").total == {
        "rendered": 8,
        "rejected": 2,
        "failed": 2,
    }


@pytest.mark.usefixtures("inline")
def test_a_file_that_is_another_when_it_is_needed_again_fails_by_name(tmp_path: Path, tiny_model: Path) -> None:
    urls = [str(tmp_path / f"{number}.mp4") for number in range(2)]
    for url in urls:
        Path(url).write_bytes(clip(1))
    table = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:2], preview_url=urls)
    output, strict = tmp_path / "run", load(tiny_model, "select.require=motion>1000")
    assert flashvideo_ray.render(table, str(output), strict).total == {"rejected": 2}
    store = Store(str(output))
    prune.prune(store, prune.plan(store, ["previews"]))  # the frames are not kept, and another rule needs them
    Path(urls[1]).write_bytes(clip(3))
    assert flashvideo_ray.render(table, str(output), load(tiny_model)).total == {"rendered": 1, "failed": 1}
    [failed] = [row for row in rows(output, "clips") if row["status"] == "failed"]
    assert failed["error_class"] == "PreviewChangedError"
    assert failed["error"].startswith(f"{urls[1]}: it is not the file any more")


@pytest.mark.usefixtures("inline")
def test_previews_without_a_refiner_are_clips(tmp_path: Path) -> None:
    Path(tmp_path / "a.mp4").write_bytes(clip(1, height=40))
    table = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:1], preview_url=[str(tmp_path / "a.mp4")])
    settings = Settings.load("nano", ["video.fps=8", "refine.model=none"])  # any size
    assert flashvideo_ray.render(table, str(tmp_path / "run"), settings).total == {"rendered": 1}
    [row] = rows(tmp_path / "run", "clips")
    assert (row["frames"], row["height"], row["width"]) == (9, 40, 64)


def test_rows_of_one_prompt_are_its_candidates_and_a_file_that_is_named_twice_is_a_duplicate(tmp_path: Path) -> None:
    file = tmp_path / "prompts.parquet"
    table = prompts.read_prompts(
        write_prompts(file, [*PROMPTS[:1] * 3, PROMPTS[1]], preview_url=["/a", "/b", "/c", "/a"], seed=[1, 2, 1, 1])
    )
    assert Counter(table["id"].to_pylist()).most_common(1)[0][1] == 3
    assert table["candidate"].to_pylist() == [0, 1, 2, 0]
    ids = identity.candidates(table, 1, {}, "existing")["clip_id"].to_pylist()
    assert len(set(ids)) == 4
    with pytest.raises(PromptError, match="row 1 and row 2 are the same prompt with the same seed"):
        prompts.read_prompts(write_prompts(file, PROMPTS[:1] * 2, preview_url=["/a", "/a"]))
    for url, problem in ((None, "preview_url is null"), (" ", "preview_url is empty"), ("a.mp4", "a relative path")):
        with pytest.raises(PromptError, match=f"row 2: .*{problem}"):
            prompts.read_prompts(write_prompts(file, PROMPTS[:2], preview_url=["/a", url]))


def test_settings_that_would_draw_others_are_refused(tmp_path: Path) -> None:
    table = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:1], preview_url=["/a"])
    for override, message in (
        ("candidates=2", "candidates: the prompts have a column preview_url, .* set it to 1"),
        ("select.draw=1", "select.draw: .* set it to 0"),
        ("pools.preview.num_gpus=1", "pools.preview.num_gpus: previews that exist are fetched on CPUs"),
        ("video.fps=null", "video.fps: set how many frames a second"),
    ):
        with pytest.raises(SettingsError, match=message):
            flashvideo_ray.render(
                table, str(tmp_path / "run"), load("nano", "select.keep=1", "select.rank=motion", override)
            )
    plain = write_prompts(tmp_path / "plain.parquet", PROMPTS[:1])
    with pytest.raises(SettingsError, match=r"preview\.model: existing takes previews from a column preview_url"):
        flashvideo_ray.render(plain, str(tmp_path / "run"), load("nano", "preview.model=existing"))


def test_resampled_frames_are_those_nearest_in_time(tmp_path: Path) -> None:
    frames = np.arange(24, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 48, 3), np.uint8)
    assert fetching.resampled(frames, 24, 8, None, None, None)[:, 0, 0, 0].tolist() == [*range(0, 24, 3)]
    assert fetching.resampled(frames[:4], 4, 8, None, None, None)[:, 0, 0, 0].tolist() == [0, 0, 1, 2, 2, 2, 3, 3]
    small = fetching.resampled(frames, 24, 24, 9, 16, 24)
    assert small.shape == (9, 16, 24, 3)
    assert small[:, 0, 0, 0].tolist() == [*range(9)]
