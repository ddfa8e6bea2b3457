"""What rules for sending rows ahead are worth on the mean of many draws of `pipeline.py`'s workload. Nothing sleeps.

    python benchmarks/pipeline_schedules.py [--draws 30] [--candidates 120] [--cards 16+8]

One run of `pipeline.py` is one draw, of which a straggler among the last calls can decide. Here calls take their drawn
seconds on a clock that is only counted, and between two of them pass the seconds that were seen there. Rules:

- ahead: each actor has its next row before it is free, whichever actor that is;
- stored: that only while as many rows wait as there are actors; else a row waits until an actor has stored its clip;
- freed: the same, but a row goes to an actor as soon as its device is free. This is `graph.backpressure`.
"""

from __future__ import annotations

import argparse
import random
from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from statistics import fmean
from typing import Any

from pipeline_workload import PAPER, Workload
from rich.console import Console
from rich.table import Table

JUDGED_SECONDS = 0.4  # from a preview's end to where it waits for stage 2
STORED_SECONDS = 0.1  # from the last call's end to its clip in the store
AHEAD_SECONDS = 0.007  # from one call to the next, which is with the actor


@dataclass(frozen=True)
class Rule:
    """How many rows must wait, by actor, so that one is sent ahead; seconds from a call to one that was not."""

    waiting: float
    seconds: float


RULES = {"ahead": Rule(0, 0.3), "stored": Rule(1, 0.3), "freed": Rule(1, 0.1)}


class Pool:
    """Actors of one stage, and the prompts that wait for them."""

    def __init__(self, actors: int, rule: Rule, choice: random.Random):
        self.rule, self.choice = rule, choice
        self.waiting: deque[str] = deque()
        self.ahead: list[str | None] = [None] * actors
        self.busy = [False] * actors
        self.free_since = [-rule.seconds] * actors
        self.first, self.last, self.work = float("inf"), 0.0, 0.0

    def hand_out(self, now: float) -> list[tuple[float, int]]:
        """Send the rows that may be sent now; when each of the actors that were free begins."""
        begins = []
        while self.waiting:
            idle = [actor for actor, row in enumerate(self.ahead) if row is None and not self.busy[actor]]
            if idle:
                actor = min(idle, key=self.free_since.__getitem__)
                begins.append((max(now, self.free_since[actor] + self.rule.seconds), actor))
            else:
                computing = [actor for actor, row in enumerate(self.ahead) if row is None]
                if not computing or len(self.waiting) < self.rule.waiting * len(self.ahead):
                    break
                actor = self.choice.choice(computing)  # Ray Data goes by the number of calls
            self.ahead[actor] = self.waiting.popleft()
        return begins


def schedule(workload: Workload, rule: Rule) -> tuple[float, float, float]:
    """One draw: seconds to the last clip and those of greedy, both over the bound; stage 2 at work."""
    stages, choice = list(PAPER), random.Random(workload.seed)
    pools = [Pool(workload.previews, rule, choice), Pool(workload.refiners, rule, choice)]
    pools[0].waiting.extend(workload.prompts())
    events: list[tuple[float, int, str, int, Any]] = []  # when, in which order, what, stage, of whom
    order = count()
    log: list[dict[str, Any]] = []

    def happens(at: float, what: str, stage: int, whose: Any) -> None:
        heappush(events, (at, next(order), what, stage, whose))

    def begin(now: float, stage: int, actor: int) -> None:
        pool = pools[stage]
        prompt, pool.ahead[actor] = pool.ahead[actor], None
        assert prompt is not None
        seconds = workload.seconds(stages[stage], prompt)
        pool.busy[actor] = True
        pool.first, pool.last = min(pool.first, now), max(pool.last, now + seconds)
        pool.work += seconds
        log.append({"stage": stages[stage], "prompt": prompt, "seed": "0", "drawn": seconds})
        happens(now + seconds, "end", stage, (actor, prompt))

    happens(0.0, "start", 0, None)
    while events:
        now, _, what, stage, whose = heappop(events)
        if what == "begin":
            begin(now, stage, whose)
        elif what == "judged":
            pools[1].waiting.append(whose)
        elif what == "end":
            actor, prompt = whose
            pools[stage].busy[actor], pools[stage].free_since[actor] = False, now
            if stage == 0 and workload.lot(prompt) >= workload.limit:
                happens(now + JUDGED_SECONDS, "judged", 1, prompt)
            if pools[stage].ahead[actor] is not None:
                happens(now + AHEAD_SECONDS, "begin", stage, actor)
        for number, pool in enumerate(pools):
            for at, actor in pool.hand_out(now):
                happens(at, "begin", number, actor)
    bound = workload.bound(log)
    pool = pools[1]
    at_work = pool.work / len(pool.ahead) / (pool.last - pool.first)
    return (pool.last + STORED_SECONDS) / bound, min(workload.greedy(log).values()) / bound, at_work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=30)
    parser.add_argument("--candidates", type=int, default=120)
    parser.add_argument("--cards", default="16+8", help="of stage 1 and of stage 2")
    parser.add_argument("--scale", type=float, default=0.1, help="of the paper's seconds")
    options = parser.parse_args()
    previews, refiners = map(int, options.cards.split("+"))
    table = Table("rule", "work / bound", "greedy / bound", "stage 2 at work")
    for name, rule in RULES.items():
        found = [
            schedule(
                Workload(options.candidates, previews=previews, refiners=refiners, scale=options.scale, seed=seed), rule
            )
            for seed in range(options.draws)
        ]
        work, greedy, at_work = (fmean(column) for column in zip(*found, strict=True))
        table.add_row(name, f"{work:.3f}", f"{greedy:.3f}", f"{at_work:.1%}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
