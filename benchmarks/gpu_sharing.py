"""Section on two processes that share a card. Run as a command, this is one of them."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from gpu_bench import Bench, Result


def sharing(bench: Bench) -> Iterator[Result]:
    """Evaluations a second of one process, and of two that share the card."""
    alone = sum(evaluations(bench, 1))
    both = sum(evaluations(bench, 2))
    yield Result("one process", alone, "evaluations/s")
    yield Result("two processes together", both, "evaluations/s")
    yield Result("two over one", both / alone, "")


def evaluations(bench: Bench, processes: int) -> list[float]:
    """What each of so many processes, started together, evaluates of stage 1 in a second."""
    bench.forget()
    command = [sys.executable, __file__, *(["--tiny"] if bench.tiny else [])]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()  # it has loaded
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    rates = []
    for process in started:
        out, _ = process.communicate(timeout=400)
        if process.returncode:
            raise RuntimeError(f"a process that evaluates ended with {process.returncode}")
        rates.append(float(out))
    return rates


def evaluate(bench: Bench) -> None:
    """What each of these processes does: load, wait for the word, evaluate for a while, tell the rate."""
    run = bench.forward("preview")
    run()
    bench.wait()
    print("ready", flush=True)
    sys.stdin.readline()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < (0.2 if bench.tiny else 30):
        run()
        bench.wait()
        count += 1
    print(count / (time.perf_counter() - started))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        evaluate(Bench.here("--tiny" in sys.argv, Path(folder)))
