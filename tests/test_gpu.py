"""The benchmark for cards, tried on a CPU: every line of it runs, and it never says that a card's gate is passed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from support import ROOT

from flashvideo_ray.accounting.card import Card


def test_every_section_runs_on_a_cpu_and_passes_no_gate_of_a_card(tmp_path: Path) -> None:
    results, page = tmp_path / "results.json", tmp_path / "gpu.md"
    names = [
        *("ceilings", "preview", "refine", "text", "attention", "compiling", "layout", "memory"),
        *("golden", "encoders", "sharing", "loop"),
    ]
    script = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), str(results), "--tiny", "--page", str(page)]
    sections = [word for name in names for word in ("--section", name)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*script, *sections], check=True, env=env, capture_output=True, text=True)
    measured = json.loads(results.read_text())
    assert list(measured) == names
    assert not [section["broken"] for section in measured.values() if section["broken"]]
    assert {result["passed"] for section in measured.values() for result in section["results"]} == {None}
    assert not Card.read(results).find(what="text", where="core")  # and nothing of it is an estimate's number
    assert page.read_text().count("Not measured.") == len(names)


def test_the_page_of_docs_is_that_of_its_measurements(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    script = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), str(ROOT / "docs" / "gpu.json"), "--page", str(page)]
    subprocess.run(script, check=True, capture_output=True, text=True)
    assert page.read_text() == (ROOT / "docs" / "gpu.md").read_text()
