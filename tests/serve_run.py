"""The service that tests over HTTP and in the browser share, as the command starts it.

Its run holds ten thousand candidates of a batch job.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import ray
import torch
from authority import Authority
from PIL import Image
from ray.serve.context import _get_global_client
from support import at_a_terminal, ctrl_c, free_ports, script, tiny_overrides

from flashvideo_ray.graph import remaining
from flashvideo_ray.graph.stage_base import row_schema
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.keys import clip_key, poster_key, preview_key
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.writer import Writer
from flashvideo_ray.media import video
from flashvideo_ray.nano import world
from flashvideo_ray.serve import app, local
from flashvideo_ray.serve.app import ServeSettings
from flashvideo_ray.settings import LedgerSettings, Settings

MANY = 10_000
SIBLINGS = 4
# Prompts about which there is something to tell; the media of `LOST` are not in the store.
HOSTILE, REJECTED, RENDERED, LOST = 7, 20, 21, 22
HOSTILE_TEXT = 'a star <img src=x onerror="document.title=1"> <b>bold</b> \u202eder\u202c \x1b[31m'
# What the stages did otherwise than asked for the clips of `RENDERED`, for want of memory.
NOTES = {
    "preview": "denoised with guidance apart for want of memory",
    "clip": "decoded in 2x4 tiles for want of memory",
}
PATIENCE = 240.0  # seconds, on a busy machine
LIMIT = 40  # candidates that may wait
TOKENS = {role: f"{role}-0123456789abcdef" for role in ("viewer", "reviewer", "operator")}


@dataclass
class Served:
    """A running `flashvideo-ray serve`, its run, and what it says to the terminal."""

    address: str
    store: Store
    options: ServeSettings
    root: str
    """The certificate, in PEM, that its previews and clips are signed under."""
    process: subprocess.Popen[bytes]
    terminal: Path

    @property
    def said(self) -> str:
        return self.terminal.read_text()

    def ctrl_c(self) -> int:
        """What a terminal sends, to the command and all that it started; its exit status."""
        client = _get_global_client(raise_if_no_controller_running=False)
        if client is not None:  # its handles would go on to ask a Ray that is gone, and start another one for that
            client.shutdown_cached_handles()
        ray.shutdown()  # this process's own connection
        ctrl_c(self.process)
        return self.process.wait(PATIENCE)


@contextmanager
def serving(folder: Path, tiny_model: Path) -> Iterator[Served]:
    """Fill a run and serve it. This process is connected to the service's Ray meanwhile."""
    people = [f"{role}:{role}'s name:{token}" for role, token in TOKENS.items()]
    people.append("reviewer:another reviewer's name:another-0123456789abcdef")
    (folder / "tokens").write_text("\n".join(people))
    authority = Authority(folder / "authority")
    own = {**authority.issue(), "previews": "true"}
    options = ServeSettings(
        output=str(folder / "run"),
        set=(
            *tiny_overrides(tiny_model),
            "preview.num_inference_steps=60",
            "refine.num_inference_steps=40",
            "select.require=motion >= 0",
            *(f"credentials.{name}={value}" for name, value in own.items()),
        ),
        token_file=str(folder / "tokens"),
        hosts=local.hosts("127.0.0.1", []),
        queue_limit=LIMIT,
    )
    settings, recipe = app.load_run(options)
    app.open_run(options.output, settings, recipe)
    fill(folder / "run", settings)
    ray.shutdown()  # the one that other tests share
    [port] = free_ports(1)
    command = [script("flashvideo-ray"), "serve", options.output, f"--port={port}", f"--queue-limit={LIMIT}"]
    command += [f"--token-file={options.token_file}", *(f"--set={setting}" for setting in options.set)]
    terminal = folder / "terminal"
    with open(terminal, "wb") as out:
        # Without a token of its own, so that this process can connect to its Ray.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_AUTH_MODE": "disabled"}
        process = at_a_terminal(command, env=environment, stdout=out, stderr=out)
        root = authority.root.read_text()
        served = Served(f"http://127.0.0.1:{port}/", Store(options.output), options, root, process, terminal)
        try:
            deadline = time.monotonic() + PATIENCE
            while served.address not in served.said:
                assert process.poll() is None, served.said
                assert time.monotonic() < deadline, served.said
                time.sleep(0.2)
            ray.init(_ray_of(process), logging_level="warning")
            yield served
        finally:
            if process.poll() is None:
                served.ctrl_c()


def _ray_of(process: subprocess.Popen[bytes]) -> str:
    """The address of the Ray that a process started, as its raylet was told it."""
    option = "--gcs-address="
    started = psutil.Process(process.pid).children(recursive=True)
    return next(word.removeprefix(option) for each in started for word in each.cmdline() if word.startswith(option))


def fill(run: Path, settings: Settings) -> None:
    """Ten thousand previews, four of each prompt, as a batch job would have left them; the newest first on the page."""
    frames = (world.render(world.sample(1, torch.Generator().manual_seed(3)))[0] * 255).byte().permute(0, 2, 3, 1)
    poster = io.BytesIO()
    Image.fromarray(frames[0].numpy()).save(poster, "JPEG")
    (run / "poster").write_bytes(poster.getvalue())
    (run / "video").write_bytes(video.encode_mp4(frames.numpy(), world.FPS))
    store, schema = Store(str(run)), tables.extended(tables.PREVIEWS, [pa.field("score_motion", pa.float64())])

    def link(what: str, key: str) -> None:
        (run / key).parent.mkdir(parents=True, exist_ok=True)
        os.link(run / what, run / key)

    rows, clips = [], []
    for number in range(MANY):
        clip_id, prompt = f"{number:020x}", number // SIBLINGS
        preview, clip = preview_key(clip_id), clip_key(clip_id)
        own: dict[str, Any] = {
            "clip_id": clip_id, "id": f"prompt-{prompt}", "seed": number, "candidate": number % SIBLINGS,
            "prompt": HOSTILE_TEXT if prompt == HOSTILE else f"shot {prompt:04d} of a red star",
        }  # fmt: skip
        made = {"preview": preview, "poster": poster_key(preview), "latents": f"latents/{clip_id}.safetensors"}
        motion = -1.0 if prompt == REJECTED else number / 100
        noted = {"memory_note": NOTES["preview"] if prompt == RENDERED else None}
        rows.append({**own, **made, **noted, "status": "previewed", "score_motion": motion, "preview_seconds": 0.5})
        if prompt != LOST:
            link("poster", poster_key(preview))
            link("video", preview)
        if prompt == RENDERED:
            link("poster", poster_key(clip))
            link("video", clip)
            there = {"clip": clip, "poster": poster_key(clip), "memory_note": NOTES["clip"]}
            clips.append({**own, **there, "status": "rendered", "refine_seconds": 1.0})
    for table, columns, content in (("previews", schema, rows), ("clips", tables.CLIPS, clips)):
        writer = Writer(store, table, columns, LedgerSettings())  # type: ignore[arg-type]
        writer.write(pa.Table.from_pylist([{**row, "at": tables.now()} for row in content], schema=columns))
    decided = remaining.next_work(store, None, row_schema(), settings).decided
    assert decided.num_rows == SIBLINGS
    Writer(store, "clips", tables.CLIPS, LedgerSettings()).write(decided)
