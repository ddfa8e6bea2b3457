"""Section on two processes that share a card."""

import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_bench import Bench, Result


def sharing(bench: Bench) -> Iterator[Result]:
    """Evaluations a second of one process, and of two that share the card."""
    bench.forget()
    alone, both = evaluations(1, bench.tiny), evaluations(2, bench.tiny)
    yield Result("one process", alone, "evaluations/s")
    yield Result("two processes together", both, "evaluations/s")
    yield Result("two over one", both / alone)


def evaluations(processes: int, tiny: bool) -> float:
    """What so many processes, started together, evaluate of stage 1 in a second, all of them."""
    starting: Any = multiprocessing.get_context("spawn")  # a process that knows a card must not be forked
    ready, rates = starting.Barrier(processes), starting.SimpleQueue()
    started = [starting.Process(target=_evaluate, args=(tiny, ready, rates)) for _ in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    if failed := [process.exitcode for process in started if process.exitcode]:
        raise RuntimeError(f"a process that evaluates ended with {failed[0]}")
    return sum(rates.get() for _ in started)


def _evaluate(tiny: bool, ready: Any, rates: Any) -> None:
    """What each of them does: load, wait for the rest, evaluate for a while, tell the rate."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench.here(tiny, Path(folder))
        run = bench.forward("preview")
        run()
        bench.wait()
        ready.wait(timeout=300)
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < (0.1 if tiny else 10):
            run()
            bench.wait()
            count += 1
        rates.put(count / (time.perf_counter() - started))
