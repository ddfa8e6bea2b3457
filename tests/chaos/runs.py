"""A run under test: the ordinary command in a process of its own, and what can be seen of it from outside."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from support import script, write_prompts

from flashvideo_ray import Settings, engines, identity, prompts
from flashvideo_ray.graph.recipe import recipe_of
from flashvideo_ray.ledger import parquet_log, tables
from flashvideo_ray.ledger.keys import latents_key
from flashvideo_ray.ledger.store import Store

from .model import AlikeError, StandIn
from .nodes import REFINES

HOOK = {"runtime_env": {"worker_process_setup_hook": "chaos.hook.watch"}}
_CLOCK = Path(__file__).parent / "clock"  # what makes a job's clock wrong
POOLS = {"preview": 2, "refine": 2}  # of workers
CALLS = 2  # that one worker has in flight: one samples, another is stored
SETTINGS = [
    "pools.preview.time_limit_seconds=20",
    "pools.refine.time_limit_seconds=20",
    f"pools.refine.resources={{{REFINES}: 1}}",
    "score.scorers=[motion, {name: chaos.model.Lot}]",
    "ledger.flush_seconds=1",
    "progress_seconds=5",
]


class Run:
    """One OUTPUT, the command that fills it, and the jobs that were started of it."""

    def __init__(
        self,
        folder: Path,
        output: str,
        model: StandIn,
        kinds: Sequence[str] = (),
        pools: Mapping[str, int] = POOLS,
        overrides: Sequence[str] = (),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.kinds = dict(zip(model.faults, kinds, strict=True))  # what the model's faults are called
        self.folder, self.output, self.model, self.pools = folder, output, model, pools
        self.store = Store(output)
        self.jobs = 0
        self.clock = 0  # seconds by which the clock of the next job's host is wrong
        self.process: subprocess.Popen[bytes] | None = None
        self._seen: set[tuple[str, Any, str]] = set()  # rows of candidates that ended
        self._ended_before = self._unseen = 0
        self.url = write_prompts(folder / "prompts.parquet", model.prompts)
        overrides = [
            *(f"{stage}.model={model.folder}" for stage in ("preview", "refine")),
            f"select.require=lot >= {model.rejected}",
            *(f"pools.{stage}.size={size}" for stage, size in pools.items()),
            *SETTINGS,
            *overrides,
        ]
        words = [word for setting in overrides for word in ("--set", setting)]
        self._keys = _latents_keys(self.url, Settings.load("nano", overrides))
        self.command = [script("flashvideo-ray"), "render", self.url, output, "-c", "nano", *words]

    @property
    def log(self) -> Path:
        return self.folder / f"job-{self.jobs}.log"

    @property
    def env(self) -> dict[str, str]:
        """What a job's process needs to know: `ray job submit` hands on a runtime environment like this."""
        return {**os.environ, "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(HOOK)}

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command; what has ended so far is looked at first."""
        retry = ["--retry", f"failed:{AlikeError.__name__}"] if self.alike() else []
        self._look()
        self._ended_before = len({clip_id for clip_id, _, status in self._seen if status != "failed"})
        self.jobs += 1
        env = self.env
        if self.clock:
            env |= {"CHAOS_CLOCK": str(self.clock), "PYTHONPATH": f"{_CLOCK}{os.pathsep}{env['PYTHONPATH']}"}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen([*self.command, *retry], stdout=log, stderr=log, env=env)
        return self.process

    def finished(self) -> None:
        """A job ended by itself. It compacted the ledger, so its rows are counted by what it says of itself."""
        # Lines such as `│ rendered  │ 97  │ 120 │`: of this job, and of the whole run.
        said = re.findall(r"^\W*(?:rendered|rejected|skipped)\W+(\d+)\W+\d+\W*$", self.log.read_text(), re.M)
        failed = sum(row["status"] == "failed" for row in self.rows("clips").values())
        left = len(self.model.prompts) - failed - self._ended_before
        self._unseen += max(0, sum(map(int, said)) - left)

    def open(self) -> int:
        """How many candidates have not ended."""
        return len(self.model.prompts) - len(self.rows("clips"))

    def alike(self) -> int:
        """How many candidates failed that were told to fail, whatever they are."""
        return sum(row["error_class"] == AlikeError.__name__ for row in self.rows("clips").values())

    def duplicated(self) -> int:
        """How many rows too many say that a candidate ended, other than those that were to be tried again."""
        self._look()
        ended = [clip_id for clip_id, _, status in self._seen if status != "failed"]
        return len(ended) - len(set(ended)) + self._unseen

    def progress(self) -> float:
        """The share of all samplings that have ended."""
        calls = [call for stage in ("preview", "refine") for call in self.model.calls(stage)]
        survivors = sum(self.model.survives(prompt) for prompt in self.model.prompts)
        return len({(call.stage, call.prompt) for call in calls if call.ended}) / (len(self._keys) + survivors)

    def stored(self) -> frozenset[str]:
        """The prompts whose latents are in the store: stage 1 is paid for."""
        there = set(self.store.keys("latents"))
        return frozenset(prompt for prompt, key in self._keys.items() if key in there)

    def rows(self, table: tables.Table) -> dict[str, dict[str, Any]]:
        """The newest row of each prompt."""
        return {row["prompt"]: row for row in tables.read(self.store, table).to_pylist()}

    def _look(self) -> None:
        found = parquet_log.read_all(self.store, "ledger/clips-", ["clip_id", "status", "at"])
        self._seen |= {
            (row["clip_id"], row["at"], row["status"]) for part in found.values() for row in part.to_pylist()
        }


def _latents_keys(url: str, settings: Settings) -> dict[str, str]:
    settings = engines.with_model_defaults(settings)
    fingerprint = recipe_of(settings)["fingerprints"]["preview"]
    table = prompts.read_prompts(url, base_seed=settings.seed)
    table = identity.candidates(table, settings.candidates, settings.stage1_recipe(), fingerprint)
    keys = [latents_key(clip_id) for clip_id in table["clip_id"].to_pylist()]
    return dict(zip(table["prompt"].to_pylist(), keys, strict=True))
