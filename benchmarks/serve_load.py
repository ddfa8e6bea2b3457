"""Many readers at once while previews are made: how long they wait, and what they cost the previews.

    python benchmarks/serve_load.py [--readers 200] [--seconds 30] [--candidates 10000]

Starts the service on a run in a temporary folder whose ledger holds many candidates, submits prompts for the nano
model, and compares the previews made in the same time without and with readers. Each reader asks for pages, the run and
parts of a preview, one after the other, with a pause of a second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import tempfile
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import requests

from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.writer import Writer
from flashvideo_ray.nano import vocabulary
from flashvideo_ray.serve import local
from flashvideo_ray.serve.app import ServeSettings
from flashvideo_ray.settings import LedgerSettings

HEADER = {"X-Requested-With": "flashvideo-ray"}
PAUSE = 1.0  # seconds between two requests of one reader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readers", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--candidates", type=int, default=10_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fill(Store(folder), args.candidates)
        options = ServeSettings(output=folder, config="nano", hosts=local.hosts("127.0.0.1", []), queue_limit=10_000)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with local.running(options, port=port) as address:
            api = f"{address}api/v1/"
            submit(api)
            wait_for_previews(api, 2)
            alone = previews_within(api, args.seconds)
            stop = threading.Event()
            waits: list[tuple[str, float]] = []
            statuses: Counter[int] = Counter()
            readers = [
                threading.Thread(target=read, args=(api, stop, waits, statuses, number), daemon=True)
                for number in range(args.readers)
            ]
            for reader in readers:
                reader.start()
            time.sleep(5)
            waits.clear()
            before = cpu_seconds()
            watched = previews_within(api, args.seconds)
            measured = list(waits)
            spent = cpu_seconds() - before
            stop.set()
            for reader in readers:
                reader.join(30)
    print(f"{args.candidates} candidates, {args.readers} readers, {args.seconds:g} s each")
    print(f"previews made: {alone} without readers, {watched} with them")
    print(f"requests: {len(measured)} ({len(measured) / args.seconds:.0f}/s), statuses {dict(statuses)}")
    print("CPU seconds: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in spent.most_common() if seconds >= 1))
    for kind in sorted({kind for kind, _ in measured}):
        own = np.array([seconds for each, seconds in measured if each == kind]) * 1000
        print(f"{kind}: median {np.median(own):.0f} ms, 95 % {np.percentile(own, 95):.0f} ms, worst {own.max():.0f} ms")


def fill(store: Store, count: int) -> None:
    """Previews without media, as an older job would have left them."""
    schema = tables.extended(tables.PREVIEWS, [pa.field("score_motion", pa.float64())])
    writer = Writer(store, "previews", schema, LedgerSettings())
    for number in range(count):
        words = random.Random(number // 4).sample(vocabulary.EXAMPLES[0].split(), 6)
        own = {"clip_id": f"{number:020x}", "id": f"p{number // 4}", "prompt": " ".join(words), "seed": number}
        writer.append({**own, "candidate": number % 4, "status": "previewed", "score_motion": random.random()})
    writer.flush()


def submit(api: str) -> None:
    """More prompts than will be done meanwhile."""
    for start in range(0, 1000, 100):
        prompts: list[Any] = [
            {"prompt": vocabulary.EXAMPLES[0], "seed": 1000 * seed} for seed in range(start, start + 100)
        ]
        requests.post(f"{api}prompts", json={"prompts": prompts}, headers=HEADER, timeout=120).raise_for_status()


def previews(api: str) -> int:
    """How many candidates have been previewed since the ledger was filled."""
    page = requests.get(f"{api}candidates", params={"q": vocabulary.EXAMPLES[0], "status": "previewed"}, timeout=120)
    return int(page.json()["total"])


def cpu_seconds() -> Counter[str]:
    """What this process (the readers) and each kind of process below it have spent so far."""
    spent: Counter[str] = Counter()
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            times = process.cpu_times()
            words = process.cmdline() or [process.name()]
        except psutil.Error:  # it has just ended
            continue
        name = "readers" if process.pid == os.getpid() else words[0].rsplit("/", 1)[-1]
        spent[name] += times.user + times.system
    return spent


def wait_for_previews(api: str, count: int) -> None:
    while previews(api) < count:
        time.sleep(0.5)


def previews_within(api: str, seconds: float) -> int:
    before = previews(api)
    time.sleep(seconds)
    return previews(api) - before


def read(api: str, stop: threading.Event, waits: list[tuple[str, float]], statuses: Counter[int], number: int) -> None:
    """One reader, until told to stop."""
    session, choice = requests.Session(), random.Random(number)
    clip: str | None = None
    while not stop.wait(PAUSE * (0.5 + choice.random())):
        kind, path, headers = "page", f"candidates?sort=-motion&limit=60&q={choice.choice(['', 'red', 'star'])}", {}
        if clip is not None and choice.random() < 0.5:
            kind, path, headers = "media", clip.removeprefix("/api/v1/"), {"Range": "bytes=0-65535"}
        elif choice.random() < 0.3:
            kind, path = "run", "run"
        began = time.perf_counter()
        try:
            answer = session.get(api + path, headers=headers, timeout=120)
        except requests.RequestException:
            statuses[0] += 1
            continue
        waits.append((kind, time.perf_counter() - began))
        statuses[answer.status_code] += 1
        if clip is None:
            made = session.get(f"{api}candidates?limit=200&sort=-at&status=previewed", timeout=120)
            items: list[dict[str, Any]] = json.loads(made.content)["items"]
            clip = next((item["preview"] for item in items if item["preview"]), None)


if __name__ == "__main__":
    main()
