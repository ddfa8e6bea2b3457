"""What a card makes of the code that no CPU can try: times, memory, kernels, offload, exactness.

    python benchmarks/gpu.py results.json [--section NAME ...] [--page docs/gpu.md]
    python benchmarks/gpu.py results.json --tiny

Needs torch, diffusers, transformers and this package; Ray is not used, and PyAV only by two sections. The networks have
the released sizes and random weights that are made on the card. Each section takes at most eight minutes, goes into the
JSON by itself, and replaces what was there of it. `--tiny` runs every line of this on a CPU, with small networks: that
shows that the script works, and nothing about a card, so no gate is ever passed by it. The exit status is 1 if a gate
failed on a card, or a section broke.
"""

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from gpu_bench import Bench, Result
from gpu_loop import loop
from gpu_models import attention, ceilings, compiling, encoders, golden, layout, memory, stage_times
from gpu_page import page
from gpu_sharing import sharing
from gpu_text import text

SECTIONS: dict[str, Callable[[Bench], Iterator[Result]]] = {
    "ceilings": ceilings,
    "preview": stage_times("preview"),
    "refine": stage_times("refine"),
    "text": text,
    "attention": attention,
    "compiling": compiling,
    "layout": layout,
    "memory": memory,
    "golden": golden,
    "encoders": encoders,
    "sharing": sharing,
    "loop": loop,
}


def machine(bench: Bench) -> dict[str, str]:
    """What a section ran on."""
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    if bench.device.type != "cuda":
        return {"card": f"none ({platform.machine()})", "driver": "none", **versions}
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    return {"card": torch.cuda.get_device_name(), "driver": driver, **versions, "cuda": str(torch.version.cuda)}


def measure(bench: Bench, name: str, keep: Callable[[dict[str, Any]], None]) -> None:
    """Run a section, and keep what it has at each result. What breaks it is one of its results."""
    started = time.perf_counter()
    results: list[dict[str, Any]] = []
    section = {
        "machine": machine(bench),
        "tiny": bench.tiny,
        "seconds": 0.0,
        "broken": "it was ended before",
        "results": results,
    }
    try:
        for result in SECTIONS[name](bench):
            results.append(asdict(result))
            section["seconds"] = round(time.perf_counter() - started, 1)
            keep(section)
            told = {True: "passed", False: "FAILED", None: ""}[result.passed]
            value = f"{result.value:.4g}" if isinstance(result.value, float) else result.value
            print(f"{name}: {result.name}: {value} {result.unit} {result.gate} {told}".rstrip(), flush=True)
        section["broken"] = None
    except Exception as error:  # the sections after it are worth having
        traceback.print_exception(error)
        section["broken"] = f"{type(error).__name__}: {error}"
    bench.forget()
    section["seconds"] = round(time.perf_counter() - started, 1)
    keep(section)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("results", type=Path, help="JSON to read and to bring up to date")
    parser.add_argument("--section", action="append", choices=SECTIONS, help="only this one; can be repeated")
    parser.add_argument("--tiny", action="store_true", help="small networks on the CPU: a trial of this script")
    parser.add_argument("--page", type=Path, help="write the JSON as a page here, and measure only named sections")
    arguments = parser.parse_args()
    gc.freeze()  # what is imported stays: memory is freed often, and each time all of it would be looked through
    # As in actors (`graph.cluster`): read when the card is first used.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench.here(arguments.tiny, Path(folder))
        measured = json.loads(arguments.results.read_text()) if arguments.results.is_file() else {}
        names = arguments.section or ([] if arguments.page else list(SECTIONS))
        if names and not bench.card and not bench.tiny:
            parser.error("no card here; --tiny tries the script on the CPU")
        for name in names:

            def keep(section: dict[str, Any], name: str = name) -> None:
                measured[name] = section
                arguments.results.write_text(json.dumps(measured, indent=1) + "\n")

            measure(bench, name, keep)
    if arguments.page:
        purposes = {name: str(section.__doc__).splitlines()[0] for name, section in SECTIONS.items()}
        arguments.page.write_text(page(measured, purposes))
    ran = [measured[name] for name in names]
    failed = any(result["passed"] is False for section in ran for result in section["results"])
    return 1 if failed or any(section["broken"] for section in ran) else 0


if __name__ == "__main__":
    sys.exit(main())
