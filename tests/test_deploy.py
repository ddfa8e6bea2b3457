"""Files of `deploy/`: valid by the schemas of those who read them, and with a place for the presets' pools."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from jsonschema import Draft7Validator
from support import ROOT, TESTS

from flashvideo_ray.graph import cluster
from flashvideo_ray.graph.nightly import Night
from flashvideo_ray.settings import STAGES, Settings

DEPLOY = ROOT / "deploy"
RAYJOB = yaml.safe_load((DEPLOY / "kuberay" / "rayjob.yaml").read_text())
NIGHTLY = [*yaml.safe_load_all((DEPLOY / "kuberay" / "nightly.yaml").read_text())]
GCP = yaml.safe_load((DEPLOY / "cluster-gcp.yaml").read_text())


def groups() -> Iterator[tuple[dict[str, Any], int]]:
    """Those of the RayJob, each with how many nodes it may have."""
    spec = RAYJOB["spec"]["rayClusterSpec"]
    yield spec["headGroupSpec"], 1
    yield from ((group, group["maxReplicas"]) for group in spec["workerGroupSpecs"])


def node_of(group: dict[str, Any]) -> dict[str, Any]:
    """As `ray.nodes` has it, by what its container may use."""
    [container] = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    resources = {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}
    return {
        "Resources": {**resources, "memory": float(limits["memory"].removesuffix("Gi")) * 2**30},
        "Labels": group["labels"],
    }


def test_the_rayjob_is_valid_by_the_schema_of_its_operator() -> None:
    schema = json.loads((TESTS / "schemas" / "rayjob.json").read_text())
    assert [error.message for error in Draft7Validator(schema).iter_errors(RAYJOB)] == []
    assert [*Draft7Validator(schema).iter_errors({**RAYJOB, "spec": {**RAYJOB["spec"], "entrypont": "x"}})]


def test_the_rayjob_has_a_place_for_every_pool_of_its_preset() -> None:
    assert "--config flashvideo-1080p" in RAYJOB["spec"]["entrypoint"]
    nodes = [node_of(group) for group, count in groups() for _ in range(count)]
    assert cluster.misplaced_on(nodes, Settings.load("flashvideo-1080p").pools, STAGES) == []


def test_containers_are_alike_and_have_no_rights_that_they_do_not_need() -> None:
    for group, _ in groups():
        spec = group["template"]["spec"]
        [container] = spec["containers"]
        assert container["securityContext"] == {"runAsNonRoot": True, "allowPrivilegeEscalation": False}
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
        assert container["image"].endswith(":0.1.0")


def test_a_night_is_the_rayjob_with_the_nights_date_in_it(tmp_path: Path) -> None:
    """The script of the CronJob, with a `kubectl` that writes down what it is given."""
    [cron] = [each for each in NIGHTLY if each["kind"] == "CronJob"]
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    [script] = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["args"]
    tool = tmp_path / "kubectl"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n[ "$1" = wait ] || cat > {tmp_path}/applied\n')
    tool.chmod(0o755)
    shutil.copy(DEPLOY / "kuberay" / "rayjob.yaml", tmp_path)
    script = script.replace("/night/", f"{tmp_path}/").replace("kubectl", str(tool))
    subprocess.run(["sh", "-euc", script], check=True)
    made = yaml.safe_load((tmp_path / "applied").read_text())
    date = made["metadata"]["name"].removeprefix("flashvideo-")
    found = re.search(r"--output (\S+) --new --date (\S+) ", made["spec"]["entrypoint"] + " ")
    assert found is not None
    assert found[2] == date == Night.of(found[1], found[2]).date
    assert f"rayjob/flashvideo-{date}" in (tmp_path / "asked").read_text()


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, which has kustomize within")
def test_kustomize_makes_the_base() -> None:
    made = subprocess.run(["kubectl", "kustomize", str(DEPLOY / "kuberay")], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    kinds = [each["kind"] for each in yaml.safe_load_all(made.stdout)]
    assert sorted(kinds) == ["ConfigMap", "CronJob", "Role", "RoleBinding", "ServiceAccount"]


def test_the_cluster_file_for_gcp_offers_what_the_one_for_aws_does() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    assert [error.message for error in Draft7Validator(schema).iter_errors(GCP)] == []
    aws = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    own = GCP["available_node_types"]
    for name, node in aws.items():
        assert {key: own[name][key] for key in ("resources", "labels", "max_workers")} == {
            key: node[key] for key in ("resources", "labels", "max_workers")
        }


def test_the_image_is_pinned_and_runs_as_nobody_special() -> None:
    words = (DEPLOY / "Dockerfile").read_text()
    [pinned] = re.findall(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert f"FROM rayproject/ray:{pinned}-" in words
    assert [line for line in words.splitlines() if line.startswith("USER")] == ["USER ray"]
    assert "-c /home/ray/src/constraints.txt" in words
    for source in re.findall(r"^COPY (?:--\S+ )?(.*) \S+$", words, re.MULTILINE):
        assert all((ROOT / name).exists() for name in source.split())


@pytest.mark.parametrize("script", sorted((DEPLOY / "slurm").iterdir()), ids=lambda path: path.name)
def test_slurm_scripts_are_bash(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
