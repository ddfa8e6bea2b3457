"""A real run under a real Prometheus: every query of the board returns data. `make test-metrics`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from support import PROMPTS, ROOT, TESTS, free_ports, serve_head, submit, write_prompts
from tiny import save_model

BOARD = json.loads((ROOT / "deploy" / "grafana" / "flashvideo.json").read_text())
ALERTS = ROOT / "deploy" / "grafana" / "alerts.yaml"
pytestmark = pytest.mark.skipif(
    "FLASHVIDEO_PROMETHEUS" not in os.environ or shutil.which("prometheus") is None,
    reason="a minute, and Debian's package prometheus: make test-metrics",
)


@contextmanager
def serve_prometheus(folder: Path, target: int) -> Iterator[str]:
    """Its URL; it looks at the target each second."""
    [port] = free_ports(1)
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [{"job_name": "ray", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with open(folder / "prometheus.log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def test_every_panel_of_the_board_has_data_of_a_real_run(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", faults=[("refine", "raise", PROMPTS[0])])
    prompts = write_prompts(tmp_path / "prompts.parquet", [*PROMPTS, *(f"{text} slowly" for text in PROMPTS)])
    env = {**os.environ, "PYTHONPATH": str(TESTS)}
    [port] = free_ports(1)
    settings = [
        f"preview.model={model}", f"refine.model={model}", "pools.refine.size=1", "pools.preview.num_gpus=0.5",
        "pools.refine.num_gpus=0.5", "prices.devices={cpu: {on_demand: 0.05}}", "candidates=2",
    ]  # fmt: skip
    options = ["--num-cpus=4", "--num-gpus=1", f"--metrics-export-port={port}"]
    begun = time.time()
    with serve_head(tmp_path, env, *options) as head, serve_prometheus(tmp_path, port) as url:
        words = ["--prompts", prompts, "--output", str(tmp_path / "run"), "--config", "nano", "--budget", "9 cpu-hours"]
        words += [word for setting in settings for word in ("--set", setting)]
        told = submit(head, "python", "jobs/render.py", *words)
        assert (tmp_path / "run" / "summary.json").exists(), told.stdout + told.stderr
        time.sleep(15)  # Ray's agents report every ten seconds
        empty = [query for query in queries() if not answer(url, query, begun)]
    assert empty == []


def queries() -> list[str]:
    told = {"$run": ".*", "$__rate_interval": "30s"}
    found = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
    for name, value in told.items():
        found = [query.replace(name, value) for query in found]
    return found


def answer(url: str, query: str, begun: float) -> list[Any]:
    asked: dict[str, str | float] = {"query": query, "start": begun, "end": time.time(), "step": "1s"}
    found = requests.get(f"{url}/api/v1/query_range", params=asked, timeout=30).json()
    assert found["status"] == "success", found
    return found["data"]["result"]
