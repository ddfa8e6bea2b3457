"""docs/quickstart.md on a clean machine: a fresh clone, an empty home, each block as it stands. `make test-docs`."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from guides import blocks
from support import ROOT

NEEDED = "PATH", "LANG", "TMPDIR", "RAY_TMPDIR"  # and where pip finds packages


@pytest.mark.skipif("FLASHVIDEO_QUICKSTART" not in os.environ, reason="takes minutes: make test-docs")
@pytest.mark.timeout(3600)
def test_the_quickstart_works_to_the_letter(tmp_path: Path) -> None:
    """In order, each in a shell of its own; then the doctor finds nothing, within a minute."""
    clone, home = tmp_path / "flashvideo_ray", tmp_path / "home"
    home.mkdir()
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    env = {name: value for name, value in os.environ.items() if name in NEEDED or name.startswith(("PIP_", "SSL_"))}
    env["HOME"] = str(home)
    for block in blocks(ROOT / "docs" / "quickstart.md"):
        if block.language == "text" or block.mark == "not run":
            continue
        began = time.monotonic()
        done = subprocess.run(["bash", "-e"], input=block.text, cwd=clone, env=env, capture_output=True, text=True)
        print(f"{block}: {time.monotonic() - began:.0f} s\n{block.text}{done.stdout[-3000:]}")
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
        if "doctor" in block.text:
            assert time.monotonic() - began < 60
            found = [line for line in done.stdout.splitlines() if line.strip()]
            assert found
            assert [line for line in found if not line.startswith("ok ")] == []
    assert (clone / "runs" / "demo" / "report.html").is_file()
    [rows] = (clone / "runs" / "dataset" / "data").glob("*.jsonl")
    found = [json.loads(line)["video"] for line in rows.read_text().splitlines()]
    assert len(found) == 4
    assert all((clone / "runs" / "dataset" / name).is_file() for name in found)
