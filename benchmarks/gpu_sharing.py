"""Section on two processes that share a card."""

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpu_bench import Bench, Result


def sharing(bench: Bench) -> Iterator[Result]:
    """Evaluations a second of one process, and of two that share the card."""
    bench.forget()
    alone, both = bench.pace(1), bench.pace(2)
    yield Result("one process", alone, "evaluations/s")
    yield Result("two processes together", both, "evaluations/s")
    yield Result("two over one", both / alone, "")


@contextmanager
def pacing(tiny: bool) -> Iterator[Callable[[int], float]]:
    """What so many processes, started together, evaluate of stage 1 in a second, all of them.

    They are forked, so that what is imported is imported for all, by a process that is forked here: before this one has
    a card, since one that has must not fork.
    """
    forking = multiprocessing.get_context("fork")
    asks, asked = forking.Pipe()
    process = forking.Process(target=_answer, args=(asked, asks, tiny))
    process.start()
    asked.close()

    def pace(processes: int) -> float:
        asks.send(processes)
        answer = asks.recv()
        if isinstance(answer, Exception):
            raise answer
        return float(answer)

    try:
        yield pace
    finally:
        asks.close()
        process.join()


def _answer(asked: Any, others_end: Any, tiny: bool) -> None:
    """What the first of these processes does until nobody asks any more."""
    others_end.close()
    while True:
        try:
            processes = asked.recv()
        except EOFError:
            return
        try:
            asked.send(_evaluations(processes, tiny))
        except Exception as error:
            asked.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _evaluations(processes: int, tiny: bool) -> float:
    forking: Any = multiprocessing.get_context("fork")
    ready, rates = forking.Barrier(processes), forking.SimpleQueue()
    started = [forking.Process(target=_evaluate, args=(tiny, ready, rates)) for _ in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    if failed := [process.exitcode for process in started if process.exitcode]:
        raise RuntimeError(f"a process that evaluates ended with {failed[0]}")
    return sum(rates.get() for _ in started)


def _evaluate(tiny: bool, ready: Any, rates: Any) -> None:
    """What each of the others does: load, wait for the rest, evaluate for a while, tell the rate."""
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
