"""Where weights come from: a hub that many actors of a node would ask at once."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from flashvideo_ray import engines
from flashvideo_ray.engines import weights
from flashvideo_ray.settings import Settings

COMMIT = "0" * 39 + "1"
INDEX = {"_class_name": "WanPipeline", "vae": ["diffusers", "AutoencoderKLWan"], "transformer_2": [None, None]}
FILES = {"model_index.json": json.dumps(INDEX).encode(), "vae/config.json": b"{}", "all-in-one.safetensors": b"large"}


class Hub:
    """A hub with one model, which counts what it is asked and can be asked too often."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.refusals = 0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked[self.path.partition("?")[0]] += 1
                if hub.refusals:
                    hub.refusals -= 1
                    return self._send(429, b"")
                if self.path.startswith("/api/models/org/video/tree/"):
                    tree = [{"type": "file", "path": name, "oid": "0", "size": len(FILES[name])} for name in FILES]
                    return self._send(200, json.dumps(tree).encode())
                if self.path.startswith("/api/models/org/video"):
                    listed = [{"rfilename": name} for name in FILES]
                    return self._send(200, json.dumps({"id": "org/video", "sha": COMMIT, "siblings": listed}).encode())
                data = FILES[self.path.partition(f"/{COMMIT}/")[2]]
                return self._send(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"')

            def do_HEAD(self) -> None:
                self.do_GET()

            def _send(self, status: int, data: bytes, **headers: str) -> None:
                self.send_response(status)
                for name, value in {**headers, "X-Repo-Commit": COMMIT, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{found.server.server_port}")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_: str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "_HUB_PAUSES", (0.1, 0.1))
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_actors_of_a_node_ask_the_hub_once_for_a_commit(hub: Hub) -> None:
    def load(_: int) -> Path:
        return weights.locate(f"org/video@{COMMIT}", "")

    with ThreadPoolExecutor(8) as actors:
        [folder] = {*actors.map(load, range(8))}
    assert (folder / "vae/config.json").read_bytes() == FILES["vae/config.json"]
    assert max(hub.asked.values()) <= 2  # of a file: what it is, and its content
    assert not (folder / "all-in-one.safetensors").exists()  # no component of the pipeline
    before = hub.asked.total()
    assert load(9) == folder
    assert hub.asked.total() == before
    (folder / "vae/config.json").unlink()  # somebody has made room on the disk
    assert (load(10) / "vae/config.json").is_file()


def test_a_hub_that_is_asked_too_often_is_asked_again_after_a_pause(hub: Hub) -> None:
    hub.refusals = 1
    assert weights.pinned("org/video") == f"org/video@{COMMIT}"


def test_a_folder_never_asks_a_hub(hub: Hub, pipelines: Callable[[str], Path]) -> None:
    tree = {
        "preview": {"model": str(pipelines("ltx")), "call": {"max_sequence_length": 16}},
        "refine": {"model": "none"},
    }
    engine = engines.of(engines.with_model_defaults(Settings.of_tree(tree)), "preview")
    assert engine.count_tokens(["a red circle"]) == [4]
    engine.load_text()
    engine.load_preview()
    assert not hub.asked
