"""The names of metrics: module, board and alerts agree, and what a job knows is what is told."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from support import ROOT

from flashvideo_ray import Settings
from flashvideo_ray.graph import gauges, metrics
from flashvideo_ray.graph.gauges import Gauges
from flashvideo_ray.graph.tracker import StageState

BOARD = json.loads((ROOT / "deploy" / "grafana" / "flashvideo.json").read_text())
ALERTS = ROOT / "deploy" / "grafana" / "alerts.yaml"
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
QUERIES = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]


def names_in(texts: list[str]) -> set[str]:
    found = {name for text in texts for name in re.findall(r"ray_flashvideo_\w+", text)}
    histograms = [name for name, metric in metrics.EXPORTED.items() if metric.kind == "histogram"]
    return {next((own for own in histograms if name.startswith(own)), name) for name in found}


def test_the_board_shows_every_metric_and_no_other() -> None:
    assert names_in(QUERIES) == set(metrics.EXPORTED)
    variables = [variable["query"] for variable in BOARD["templating"]["list"]]
    assert names_in(variables) <= set(metrics.EXPORTED)


def test_alerts_ask_for_metrics_that_there_are_with_labels_that_they_have() -> None:
    assert names_in([rule["expr"] for rule in RULES]) <= set(metrics.EXPORTED)
    for text in [*QUERIES, *(rule["expr"] for rule in RULES)]:
        for name, inner in re.findall(r"(ray_flashvideo_\w+?)(?:_bucket|_sum|_count)?\{(.*?)\}", text):
            assert set(re.findall(r"(\w+)\s*=", inner)) <= {"run", *metrics.EXPORTED[name].tags}
    for rule in RULES:
        assert {"summary", "mend"} <= set(rule["annotations"])


def test_the_guide_names_every_metric_and_every_alert() -> None:
    guide = (ROOT / "docs" / "nightly.md").read_text()
    assert names_in([guide]) >= set(metrics.EXPORTED)
    told = re.findall(r"^\| `(Flashvideo\w+)` \|.*\| (\w+) \|$", guide, re.MULTILINE)
    assert dict(told) == {rule["alert"]: rule["labels"]["severity"] for rule in RULES}


def test_counters_are_named_as_prometheus_names_them() -> None:
    for name, metric in metrics.METRICS.items():
        assert name.endswith("_total") == (metric.kind == "counter")


FIRES = {  # an alert, the series that it is of, and how it grows: one that fires, and one that does not
    "FlashvideoStalled": ("ray_flashvideo_silent_seconds", {}, "0+60x60", "0+0x60"),
    "FlashvideoCallHangs": ("ray_flashvideo_oldest_call_seconds", {"stage": "refine"}, "0+60x60", "0+1x60"),
    "FlashvideoFailing": ("ray_flashvideo_candidates", {"status": "failed"}, "0+1x60", "0+0x60"),
    "FlashvideoOverBudget": ("ray_flashvideo_budget_spent_ratio", {}, "0+0.1x60", "0+0x60"),
    "FlashvideoStoreAway": ("ray_flashvideo_waiting_seconds", {"reason": "store"}, "0+60x60", "0+0x60"),
    "FlashvideoNoPlace": ("ray_flashvideo_waiting_seconds", {"reason": "placement"}, "0+60x60", "0+1x60"),
}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus")
def test_every_alert_fires_of_its_own_cause_and_of_no_other(tmp_path: Path) -> None:
    assert {rule["alert"] for rule in RULES} == set(FIRES)
    tests = []
    for alert, (name, tags, bad, good) in FIRES.items():
        labels = ",".join(f'{key}="{value}"' for key, value in {"run": "s3://b/r", **tags}.items())
        for values, expected in ((bad, [alert]), (good, [])):
            fired = [
                {"eval_time": "50m", "alertname": other, **({} if other in expected else {"exp_alerts": []})}
                for other in FIRES
                if other not in expected
            ]
            rule = next(rule for rule in RULES if rule["alert"] == alert)
            counted = f"count(ALERTS{{alertname='{alert}'}})"
            samples = [{"labels": "{}", "value": 1}] if expected else []
            assert rule["expr"]
            tests.append(
                {
                    "interval": "1m",
                    "input_series": [{"series": f"{name}{{{labels}}}", "values": values}],
                    "alert_rule_test": fired,
                    "promql_expr_test": [{"expr": counted, "eval_time": "50m", "exp_samples": samples}],
                }
            )
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": tests}))
    for command in (["check", "rules", str(ALERTS)], ["test", "rules", str(tmp_path / "test.yaml")]):
        told = subprocess.run(["promtool", *command], capture_output=True, text=True)
        assert told.returncode == 0, told.stdout + told.stderr


class Heard:
    """A meter that keeps what it is told."""

    def __init__(self, run: str):
        self.values: dict[tuple[str, ...], float] = {}

    def set(self, name: str, value: float, **tags: str) -> None:
        self._take(name, tags)
        self.values[name, *tags.values()] = value

    def add(self, name: str, value: float, **tags: str) -> None:
        self._take(name, tags)
        self.values[name, *tags.values()] = self.values.get((name, *tags.values()), 0) + value

    def _take(self, name: str, tags: dict[str, str]) -> None:
        assert set(metrics.METRICS[name].tags) == set(tags)


def test_what_a_driver_tells_of_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "Meter", Heard)
    prices = "prices.devices={H100: {on_demand: 4.0, spot: 2.0}}"
    pool = "pools.preview={size: 3, num_gpus: 0.5, accelerator_type: H100, spot: true}"
    claim: Any = SimpleNamespace(seconds=lambda: -5.0, lease=SimpleNamespace(lease_seconds=60.0))
    told = Gauges("run", Settings.of_tree({}, [prices, pool]), claim)
    for seconds in (1800.0, 7200.0):
        state = StageState(actors=2, open=1, done=int(seconds / 1800), held_seconds=seconds, oldest_seconds=9.0)
        told.tell({"preview": state}, {"text": 10, "preview": 10}, {"rendered": 3}, (0.5, "8 gpu-hours"), 7.0)
    values = told._meter.values  # type: ignore[attr-defined]
    assert values["flashvideo_actors", "preview", "missing"] == 1
    assert values["flashvideo_actors", "preview", "busy"] == 1
    assert values["flashvideo_calls_queued", "preview"] == 5
    assert values["flashvideo_calls_done_total", "preview"] == 4
    assert values["flashvideo_gpu_seconds_total", "preview"] == 3600
    assert values["flashvideo_money_total", "preview", "USD"] == pytest.approx(2.0)
    assert values["flashvideo_candidates", "open"] == 7
    assert values["flashvideo_budget_spent_ratio",] == 0.5
    assert values["flashvideo_waiting_seconds", "placement"] == 7.0
    assert values["flashvideo_waiting_seconds", "claim"] == 5.0
    assert values["flashvideo_waiting_seconds", "store"] == 65.0


def test_a_store_that_is_measured_travels_to_actors(tmp_path: Path) -> None:
    class Always:
        def seconds(self) -> float:
            return time.monotonic() + 60

    store = metrics.MeteredStore(str(tmp_path), 1.0, Always())
    store.put("clips/a", b"x")
    assert (tmp_path / "clips" / "a").read_bytes() == b"x"
    made, arguments = store.__reduce__()
    assert (made, pickle.dumps(arguments[:2])) == (metrics.MeteredStore, pickle.dumps((store.url, 1.0)))
