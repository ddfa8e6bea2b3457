"""What the pipeline costs beside its models: CPU seconds of a clip of the nano model, in a job and in a bare loop.

    python benchmarks/overhead.py [--few 6] [--many 30] [--short] [--json FILE]

The job has one actor of one thread for each stage; the loop does all in one process with one thread, as it comes and
with the memory settings of the job's actors. All score, encode and store, and the streams of their clips are
compared. Each makes few clips and many: what a further clip costs is the difference, so that loading models and
starting Ray cancel out. All processes of a job count, Ray's own, too; those of the stages are also told apart.
Nothing else may run beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

import flashvideo_ray
from flashvideo_ray import Settings, engines
from flashvideo_ray.engines.engine import Text
from flashvideo_ray.graph import cluster
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.media import video
from flashvideo_ray.nano.vocabulary import EXAMPLES
from flashvideo_ray.scorers.panel import Panel
from flashvideo_ray.settings import Pool

MARK = "OVERHEAD_BENCHMARK"
SETTINGS = ["pools.refine.size=1"]
KEEPING = "loop that keeps freed memory"  # as the job's actors do


def job(folder: Path, count: int) -> None:
    """The job, and what it made, in the order of the prompts."""
    prompts = [EXAMPLES[number % len(EXAMPLES)] for number in range(count)]
    pq.write_table(pa.table({"prompt": prompts, "seed": list(range(count))}), folder / "prompts.parquet")
    flashvideo_ray.render(str(folder / "prompts.parquet"), str(folder / "run"), Settings.load("nano", SETTINGS))
    ray.shutdown()
    columns = ["prompt", "seed", "stream_sha256"]
    rows = tables.read(Store(str(folder / "run")), "clips", columns).sort_by("seed").select(columns).to_pylist()
    (folder / "clips.json").write_text(json.dumps(rows))


def loop(folder: Path, count: int) -> None:
    """The same clips, one after the other."""
    wanted = json.loads((folder / "clips.json").read_text())[:count]
    settings = engines.with_model_defaults(Settings.load("nano", SETTINGS))
    text, preview = (engines.of(settings, "preview").load_text(), engines.of(settings, "preview").load_preview())
    refine, fps = engines.of(settings, "refine").load_refine(), engines.fps_of(settings) or 1.0
    prefix = engines.of(settings, "refine").describe().prompt_prefix
    panel, store = Panel(settings.score.scorers, fps), Store(str(folder / "loop"))
    for row in wanted:
        prompt, seed = row["prompt"], row["seed"]
        latents, _ = preview.sample(Text(prompt, embeds=text.encode(prompt)), seed, _quiet)
        assert isinstance(latents, torch.Tensor)
        frames, _ = preview.decode(latents)
        panel(frames, prompt)
        store.put(f"{seed}.latents", latents.numpy().tobytes())
        store.put(f"{seed}.preview.mp4", video.encode_mp4(frames, fps, crf=settings.video.preview_crf))
        store.put(f"{seed}.preview.jpg", video.poster_jpeg(frames))
        frames, _ = refine.refine(latents, Text(prompt, embeds=text.encode(prompt, prefix)), seed, _quiet)
        mp4 = video.encode_mp4(frames, fps, crf=settings.video.clip_crf)
        store.put(f"{seed}.mp4", mp4)
        store.put(f"{seed}.jpg", video.poster_jpeg(frames))
        if video.digests(mp4)["stream_sha256"] != row["stream_sha256"]:
            raise AssertionError(f"another clip of {prompt!r}")


def _quiet(done: int, total: int) -> None:
    pass


class CpuWatch(threading.Thread):
    """Adds up the CPU seconds of all processes that carry a mark in their environment, of those that ended, too."""

    def __init__(self, mark: str):
        super().__init__(daemon=True)
        self.mark, self.over = f"{MARK}={mark}".encode(), threading.Event()
        self._of: dict[tuple[str, str], float] = {}
        self._kind: dict[tuple[str, str], str] = {}

    def run(self) -> None:
        """Until it is over."""
        while not self.over.wait(0.2):
            self.look()

    def look(self) -> None:
        """At all processes that there are now."""
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                stat = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
                key = (pid, stat[19])
                if key not in self._of and self.mark not in Path("/proc", pid, "environ").read_bytes().split(b"\0"):
                    continue  # it may be between fork and exec: asked again
                self._of[key] = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
                title = Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if kind := kind_of(title):
                    self._kind[key] = kind
            except OSError:
                continue

    def seconds(self) -> dict[str, float]:
        """So far, by kind of process."""
        found: dict[str, float] = {}
        for key, spent in self._of.items():
            kind = self._kind.get(key, "Ray")
            found[kind] = found.get(kind, 0.0) + spent
        return found


def kind_of(title: str) -> str | None:
    """What a process is for. A worker's title is its actor's, until it ends."""
    if title.startswith("ray::MapWorker"):
        return "stages"
    if title.startswith("ray::Tracker") or "overhead.py" in title:
        return "driver and tracker"
    return None


def measured(what: str, folder: Path, count: int) -> dict[str, float]:
    """CPU and wall seconds of one process and all that it starts."""
    mark = uuid.uuid4().hex
    watch, begun = CpuWatch(mark), time.monotonic()
    watch.start()
    env = {**os.environ, MARK: mark, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": ""}
    if what == KEEPING:
        env |= cluster.placement(Pool())["runtime_env"]["env_vars"]
    subprocess.run(
        [sys.executable, __file__, "--run", what, "--folder", str(folder), "--few", str(count)], env=env, check=True
    )
    watch.over.set()
    watch.join()
    watch.look()
    spent = watch.seconds()
    kinds = spent if what == "job" else {}
    return {"cpu_s": sum(spent.values()), "wall_s": time.monotonic() - begun, **kinds}


def figures(found: dict[str, dict[int, dict[str, float]]], few: int, many: int) -> dict[str, Any]:
    """CPU seconds of a further clip, and their ratio."""
    each = {
        what: {kind: (own[many][kind] - own[few].get(kind, 0.0)) / (many - few) for kind in own[many]}
        for what, own in found.items()
    }
    loops = [what for what in each if what != "job"]
    own = {what: each[what]["cpu_s"] / each["job"]["stages"] for what in loops}
    all_of = {what: each[what]["cpu_s"] / each["job"]["cpu_s"] for what in loops}
    return {
        "seconds_of_a_clip": each,
        "clips_per_cpu_s_of_the_job_over": all_of,
        "of_its_stages_alone_over": own,
        "runs": found,
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=6)
    parser.add_argument("--many", type=int, default=30)
    parser.add_argument("--short", action="store_true", help="without the loop as it comes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        return (job if options.run == "job" else loop)(options.folder, options.few)
    found: dict[str, dict[int, dict[str, float]]] = {"job": {}, "loop": {}, KEEPING: {}}
    if options.short:
        del found["loop"]
    with tempfile.TemporaryDirectory(prefix="overhead-") as name:
        for count in (options.few, options.many):
            folder = Path(name) / str(count)
            folder.mkdir()
            for what in found:
                found[what][count] = measured(what, folder, count)
                print(
                    what, count, "clips:", ", ".join(f"{k} {v:.1f}" for k, v in found[what][count].items()), flush=True
                )
    result = figures(found, options.few, options.many)
    print(json.dumps({key: value for key, value in result.items() if key != "runs"}, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
