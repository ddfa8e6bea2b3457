"""Real runs under a real Prometheus: the board's queries return data, and alerts fire of real causes.

`make test-metrics`: some minutes, and Debian's package `prometheus`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import requests
import yaml
from support import PROMPTS, ROOT, S3, children, free_ports, own_ray, serve_s3, short_lease, write_prompts
from tiny import save_model

BOARD = json.loads((ROOT / "deploy" / "grafana" / "flashvideo.json").read_text())
ALERTS = ROOT / "deploy" / "grafana" / "alerts.yaml"
SECONDS = 8  # in the place of the alerts' own, which are for calls of minutes
PATIENCE = 90.0  # until an alert fires: a busy machine may take many times as long as one that is not
# A job as any other, but its workers know the network that fails.
JOB = """
import sys, faulty, ray
ray.init(runtime_env={"worker_process_setup_hook": "faulty.known"}, logging_level="warning")
from flashvideo_ray.cli import app
app(sys.argv[1:])
"""
pytestmark = pytest.mark.skipif(
    "FLASHVIDEO_PROMETHEUS" not in os.environ or shutil.which("prometheus") is None,
    reason="minutes, and Debian's package prometheus: make test-metrics",
)


@dataclass
class Prometheus:
    """It looks at a Ray each second, and has the rules of `deploy/` with shorter times."""

    url: str
    folder: Path
    s3: S3

    def answer(self, query: str, since: float) -> list[Any]:
        """The series that a query has returned since then."""
        asked: dict[str, str | float] = {"query": query, "start": since, "end": time.time(), "step": "1s"}
        found = requests.get(f"{self.url}/api/v1/query_range", params=asked, timeout=30).json()
        assert found["status"] == "success", found
        return found["data"]["result"]

    def firing(self, run: str) -> set[str]:
        """The alerts that a run has at this moment."""
        found = requests.get(f"{self.url}/api/v1/alerts", timeout=30).json()["data"]["alerts"]
        return {each["labels"]["alertname"] for each in found if each["labels"]["run"] == run}

    def wait(self, done: Callable[[], bool], what: str, job: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < deadline, f"{what}: not in {PATIENCE:g} s; {self.log(job)}"
            assert job.poll() in (None, 0, 3), self.log(job)
            time.sleep(0.2)

    @contextmanager
    def fires(self, alert: str, run: str, job: subprocess.Popen[bytes]) -> Iterator[None]:
        """What is done within is the cause of the alert: it did not fire before, and does afterwards."""
        self.wait(lambda: alert not in self.firing(run), f"{alert} is over", job)
        yield
        self.wait(lambda: alert in self.firing(run), f"{alert} fires", job)

    def log(self, job: subprocess.Popen[bytes]) -> str:
        return (self.folder / f"{job.pid}.log").read_text()[-3000:]

    @contextmanager
    def job(self, prompts: str, output: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """`flashvideo-ray render` on the Ray that is looked at."""
        env = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        command = [sys.executable, "-c", JOB, "render", prompts, output, "--config", "nano", *words]
        log = self.folder / "job.log"
        with open(log, "wb") as out:
            job = subprocess.Popen(command, env=env, stdout=out, stderr=out)
        log.rename(self.folder / f"{job.pid}.log")
        try:
            yield job
        finally:
            job.kill()
            job.wait()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("watched")
    [target] = free_ports(1)
    # Ray's own ten seconds are for clusters.
    quick = {"_metrics_export_port": target, "_system_config": {"metrics_report_interval_ms": 500}}
    with (
        serve_s3(folder / "s3") as s3,
        own_ray(num_cpus=4, num_gpus=1, **quick),
        serve_prometheus(folder, target) as url,
    ):
        yield Prometheus(url, folder, s3)


@contextmanager
def serve_prometheus(folder: Path, target: int) -> Iterator[str]:
    """Its URL."""
    [port] = free_ports(1)
    rules = yaml.safe_load(ALERTS.read_text())
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        if "_seconds" in rule["expr"]:
            rule["expr"] = re.sub(r"> \d+$", f"> {SECONDS}", rule["expr"])
    (folder / "alerts.yml").write_text(yaml.safe_dump(rules))
    subprocess.run(["promtool", "check", "rules", str(folder / "alerts.yml")], check=True, stdout=subprocess.DEVNULL)
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["alerts.yml"],
        "scrape_configs": [{"job_name": "ray", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with open(folder / "prometheus.log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + PATIENCE
        while not _is_ready(url):
            assert server.poll() is None, (folder / "prometheus.log").read_text()
            assert time.monotonic() < deadline, (folder / "prometheus.log").read_text()
            time.sleep(0.1)
        yield url
    finally:
        server.kill()
        server.wait()


def _is_ready(url: str) -> bool:
    with suppress(requests.RequestException):
        return requests.get(f"{url}/-/ready", timeout=5).ok
    return False


def overrides(model: Path, *others: str) -> list[str]:
    common = [f"preview.model={model}", f"refine.model={model}", "pools.refine.num_gpus=1", *others]
    return [word for setting in common for word in ("--set", setting)]


def test_every_panel_has_data_of_a_run_that_spends_its_budget(prometheus: Prometheus, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", faults=[("preview", "raise", PROMPTS[0])])
    prompts = write_prompts(tmp_path / "prompts.parquet")
    run, begun = str(tmp_path / "run"), time.time()
    words = overrides(model, "pools.refine.size=1", "prices.devices={cpu: {on_demand: 0.05}}", "candidates=40")
    with (
        prometheus.job(prompts, run, "--budget", "0.003 gpu-hours", *words, "--set", "max_equal_failures=99") as job,
        prometheus.fires("FlashvideoOverBudget", run, job),
    ):
        assert job.wait(150) == 3, prometheus.log(job)
    assert [query for query in queries(run) if not prometheus.answer(query, begun)] == []


def test_alerts_fire_of_a_real_cause_and_end_with_it(prometheus: Prometheus, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", faults=[("preview", "raise", PROMPTS[0])])
    prompts = write_prompts(tmp_path / "prompts.parquet", [*PROMPTS, *(f"{text} slowly" for text in PROMPTS)])
    run = f"s3://{prometheus.s3.bucket}/run"
    # Twelve candidates of the first prompt fail; the others are slow enough that one is always under way; of two cards
    # that stage 2 asks for, one is there.
    own = ["candidates=12", "max_equal_failures=99", "preview.num_inference_steps=60", "pools.refine.size=2"]
    with prometheus.job(prompts, run, *overrides(model, *own, *short_lease(12))) as job:
        with prometheus.fires("FlashvideoFailing", run, job), prometheus.fires("FlashvideoNoPlace", run, job):
            pass

        with prometheus.fires("FlashvideoStalled", run, job), prometheus.fires("FlashvideoCallHangs", run, job):
            stopped = workers("Preview")
            for each in stopped:
                each.send_signal(signal.SIGSTOP)
        for each in stopped:
            each.send_signal(signal.SIGCONT)

        with prometheus.fires("FlashvideoStoreAway", run, job):
            prometheus.s3.kill()
        prometheus.s3.start()

        left = {"FlashvideoFailing", "FlashvideoNoPlace"}
        prometheus.wait(lambda: prometheus.firing(run) == left, "what is mended fires no more", job)
        assert job.poll() is None


def workers(stage: str) -> list[psutil.Process]:
    """The actors of a stage, on the Ray of this process."""
    found = children(f"ray::MapWorker(MapBatches({stage}")
    assert found, f"no actor of {stage}"
    return found


def queries(run: str) -> list[str]:
    """Those of all panels, as Grafana asks them."""
    found = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
    return [query.replace("$run", run).replace("$__rate_interval", "30s") for query in found]
