"""What `pipeline.py` gives each system to do: calls that occupy a card for a drawn time, and what they make.

A call's seconds depend on its prompt and seed alone, so all systems have the same work, in whatever order they do it.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from heapq import heapreplace
from pathlib import Path
from typing import Any

import numpy as np

PAPER = {"preview": 30.1, "refine": 72.2}
"""Seconds of a call (arXiv 2502.05179, table 4)."""
LATENTS = (1, 13, 16, 32, 60)  # of a preview of 49 frames at 256x480, half precision
TEXT = (226, 4096)  # of a prompt, likewise
PREVIEW, CLIP = (13, 72, 128, 3), (13, 144, 256, 3)  # frames: small, as two cores encode what a cluster's would
FPS = 8.0
_TOGETHER_SECONDS = 300.0  # to start all processes


@dataclass(frozen=True)
class Workload:
    """Candidates, the cards there are, and how long things take there: `scale` times the paper's seconds."""

    candidates: int = 1000
    of_a_prompt: int = 1
    previews: int = 16
    refiners: int = 8
    shared: int = 0  # cards for either stage instead, as a system may divide them
    pilot: int = 0  # further candidates, of an earlier job that is not part of the measurement
    keep: float = 0.25
    alone: bool = False  # whether the prompts are only those whose previews will be kept
    scale: float = 0.1
    spread: float = 0.2  # sigma of a log-normal distribution
    stragglers: float = 0.01
    straggling: float = 3.0  # times as long
    start_seconds: float = 20.0  # to load a model, before it is scaled; to move one to a card takes a tenth
    seed: int = 0

    def prompts(self) -> list[str]:
        """One for each candidate, or for so many of them."""
        found = [f"clip {number:06d}" for number in range(self.candidates // self.of_a_prompt)]
        return [prompt for prompt in found if not self.alone or self.lot(prompt) >= self.limit]

    def pilots(self) -> list[str]:
        """The prompts of the earlier job."""
        first = self.candidates // self.of_a_prompt
        return [f"clip {number:06d}" for number in range(first, first + self.pilot // self.of_a_prompt)]

    def seconds(self, stage: str, prompt: str, seed: int = 0) -> float:
        """How long one call occupies its card."""
        rng = self._rng(prompt, seed, list(PAPER).index(stage))
        drawn = PAPER[stage] * self.scale * float(rng.lognormal(-(self.spread**2) / 2, self.spread))
        return drawn * (self.straggling if rng.random() < self.stragglers else 1)

    def lot(self, prompt: str, seed: int = 0) -> int:
        """0 to 255: what is at least `limit` is kept."""
        return int(self._rng(prompt, seed, 9).integers(256))

    @property
    def limit(self) -> int:
        """The least lot that is kept."""
        return round(256 * (1 - self.keep))

    @property
    def load_seconds(self) -> float:
        """Of an actor's start."""
        return self.start_seconds * self.scale

    def _rng(self, prompt: str, seed: int, what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, int(prompt.rpartition(" ")[2]), seed, what])

    def bound(self, calls: Sequence[dict[str, Any]]) -> float:
        """Seconds from the first work to the last that no schedule of these calls on these cards can be under.

        Of cards for either stage: the least of all fixed splits.
        """
        first, second = (_drawn(calls, stage) for stage in PAPER)
        chains = [first[key] + second.get(key, 0.0) for key in first]
        return min(
            max(
                sum(first.values()) / previews + min(second.values()),
                min(first.values()) + sum(second.values()) / refiners,
                max(chains),
            )
            for previews, refiners in self._splits
        )

    def greedy(self, calls: Sequence[dict[str, Any]]) -> dict[tuple[int, int], float]:
        """Seconds that the same calls take without any overhead, each on the first card that is free, by split.

        Previews in order of the prompts; survivors in the order in which they are found, once all candidates of their
        prompt have a preview. Of cards for either stage there are as many splits as cards but one.
        """
        first, second = (_drawn(calls, stage) for stage in PAPER)

        def seconds(previews: int, refiners: int) -> float:
            made = _ends([(0.0, first[key]) for key in sorted(first)], previews)
            judged: dict[str, float] = defaultdict(float)
            for (prompt, _), end in zip(sorted(first), made, strict=True):
                judged[prompt] = max(judged[prompt], end)
            found = sorted((judged[prompt], second[prompt, seed]) for prompt, seed in second)
            return max(*made, *_ends(found, refiners))

        return {split: seconds(*split) for split in self._splits}

    @property
    def _splits(self) -> list[tuple[int, int]]:
        if not self.shared:
            return [(self.previews, self.refiners)]
        return [(number, self.shared - number) for number in range(1, self.shared)]


def _drawn(calls: Sequence[dict[str, Any]], stage: str) -> Mapping[tuple[str, str], float]:
    """Seconds of a stage's calls by prompt and seed."""
    return {(call["prompt"], call["seed"]): call["drawn"] for call in calls if call["stage"] == stage}


def _ends(calls: Iterable[tuple[float, float]], cards: int) -> list[float]:
    """When calls end that are begun in this order, on the first card that is free: from when they may, and seconds."""
    free = [0.0] * cards
    ends = []
    for ready, seconds in calls:
        ends.append(max(free[0], ready) + seconds)
        heapreplace(free, ends[-1])
    return ends


class Calls:
    """Occupies this process's card for the drawn time, and writes each call into a file of this process."""

    def __init__(self, workload: Workload, folder: str):
        self.workload, self.folder = workload, Path(folder)

    @contextmanager
    def call(self, stage: str, prompt: str, seed: int = 0) -> Iterator[None]:
        """What is done within it is part of the drawn time."""
        begun = time.time()
        yield
        drawn = self.workload.seconds(stage, prompt, seed)
        time.sleep(max(0.0, begun + drawn - time.time()))
        self.write(stage, prompt, seed, begun=begun, drawn=drawn)

    def seed_of(self, seed: int) -> int:
        """What a call's seconds are drawn with: a candidate's seed, where its prompt has others."""
        return 0 if self.workload.of_a_prompt == 1 else seed

    def write(self, stage: str, prompt: str, seed: int = 0, **more: float) -> None:
        """A line of the log, with the time."""
        line = {"stage": stage, "prompt": prompt, "seed": str(seed), "pid": os.getpid(), "at": time.time(), **more}
        with open(self.folder / f"{os.getpid()}.jsonl", "a") as log:
            log.write(json.dumps(line) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All lines of all processes."""
        lines = [line for path in self.folder.glob("*.jsonl") for line in path.read_text().splitlines()]
        return sorted((json.loads(line) for line in lines), key=lambda call: call["at"])

    def load(self, together: bool = True, sizes: tuple[int, int] | None = None) -> None:
        """A model's start, on one of so many cards of both stages (by default the workload's).

        `together`: all cards' models are loaded at the same time, as they would be on machines of their own. Here two
        cores start one process after the other, so that the first would be at work for a minute before the last.
        """
        if together:
            sizes = sizes or (self.workload.previews, self.workload.refiners)
            name = f"{sizes[0]}+{sizes[1]}.loading"
            (self.folder / f"{os.getpid()}.{name}").touch()
            deadline = time.monotonic() + _TOGETHER_SECONDS
            while len([*self.folder.glob(f"*.{name}")]) < sum(sizes):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"some cards have not begun to load within {_TOGETHER_SECONDS:g} s")
                time.sleep(0.2)
        time.sleep(self.workload.load_seconds)

    def move(self) -> None:
        """A model onto the card, in the place of another."""
        time.sleep(self.workload.load_seconds / 10)

    def latents(self, prompt: str, seed: int = 0) -> np.ndarray:
        """Noise, which no store can compress."""
        return np.frombuffer(_noise(prompt, seed).bytes(int(np.prod(LATENTS)) * 2), np.float16).reshape(LATENTS)

    def frames(self, shape: tuple[int, ...], prompt: str, seed: int = 0) -> np.ndarray:
        """A ramp that moves; the lot stands in the first pixel."""
        count, height, width, _ = shape
        ramp = np.arange(count)[:, None, None] * 3 + np.arange(height)[:, None] + np.arange(width)
        frames = np.repeat((ramp % 256).astype(np.uint8)[..., None], 3, axis=3)
        frames[0, 0, 0] = self.workload.lot(prompt, seed)
        return frames


def _noise(prompt: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([int(prompt.rpartition(" ")[2]), seed])


def saved(workload: Workload, path: Path) -> None:
    """Write it down for other processes."""
    path.write_text(json.dumps(asdict(workload)))


def loaded(path: str) -> Workload:
    """What was written down."""
    return Workload(**json.loads(Path(path).read_text()))


def lot_of(frames: np.ndarray) -> float:
    """What a preview is judged by."""
    return float(frames[0, 0, 0, 0])
