"""Files of `deploy/`: valid by the schemas of those who read them, and with a place for the presets' pools."""

from __future__ import annotations

import datetime as dt
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from jsonschema.validators import validator_for
from support import ROOT, TESTS

from flashvideo_ray.graph import cluster
from flashvideo_ray.graph.nightly import Night
from flashvideo_ray.settings import STAGES, Settings

DEPLOY = ROOT / "deploy"
RAYJOB = yaml.safe_load((DEPLOY / "kuberay" / "rayjob.yaml").read_text())
NIGHTLY = [*yaml.safe_load_all((DEPLOY / "kuberay" / "nightly.yaml").read_text())]
RAYSERVICE = yaml.safe_load((DEPLOY / "rayservice.yaml").read_text())
KUBERAY = {"rayjob": RAYJOB["spec"]["rayClusterSpec"], "rayservice": RAYSERVICE["spec"]["rayClusterConfig"]}
AWS = yaml.safe_load((ROOT / "cluster.yaml").read_text())
GCP = yaml.safe_load((DEPLOY / "cluster-gcp.yaml").read_text())
HADOLINT = Path(sys.executable).parent / "hadolint"
# What shards.sbatch tells a job on a node of one card.
ONE_CARD = ["pools.preview.size=1", "pools.refine.size=1"]


def groups(cluster: dict[str, Any]) -> list[tuple[dict[str, Any], int]]:
    """Those of a cluster of KubeRay's, each with how many nodes it may have."""
    return [(cluster["headGroupSpec"], 1), *((group, group["maxReplicas"]) for group in cluster["workerGroupSpecs"])]


def node_of(group: dict[str, Any]) -> dict[str, Any]:
    """As `ray.nodes` has it, by what its container may use."""
    [container] = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    resources = {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}
    return {
        "Resources": {**resources, "memory": float(limits["memory"].removesuffix("Gi")) * 2**30},
        "Labels": group["labels"],
    }


def kuberay(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes of a cluster that has grown as far as it may."""
    return [node_of(group) for group, count in groups(cluster) for _ in range(count)]


def launched(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """The same of a file of Ray's cluster launcher, whose head is one node."""
    types = cluster["available_node_types"]
    counts = {name: 1 if name == cluster["head_node_type"] else own["max_workers"] for name, own in types.items()}
    assert sum(counts.values()) - 1 <= cluster["max_workers"]
    return [
        {"Resources": own["resources"], "Labels": own["labels"]}
        for name, own in types.items()
        for _ in range(counts[name])
    ]


def allocated(script: str) -> list[dict[str, Any]]:
    """The nodes that a Slurm script asks for."""
    asked = dict(re.findall(r"^#SBATCH --(\S+)=(\S+)", (DEPLOY / "slurm" / script).read_text(), re.MULTILINE))
    own = {"CPU": float(asked["cpus-per-task"]), "GPU": float(asked["gpus-per-node"])}
    return [{"Resources": own, "Labels": {}}] * int(asked["nodes"])


def faults(schema: dict[str, Any], made: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator_for(schema)(schema).iter_errors(made)]


def of_kubernetes(kind: str) -> dict[str, Any]:
    """The schema of a kind, such as `CronJob`."""
    core = json.loads((TESTS / "schemas" / "kubernetes.json").read_text())
    [name] = [name for name in core["$defs"] if name.endswith(f".{kind}")]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$ref": f"#/$defs/{name}", **core}


@pytest.mark.parametrize("made", [RAYJOB, RAYSERVICE], ids=lambda made: made["kind"])
def test_what_kuberay_reads_is_valid_by_the_schema_of_its_operator(made: dict[str, Any]) -> None:
    schema = json.loads((TESTS / "schemas" / f"{made['kind'].lower()}.json").read_text())
    assert faults(schema, made) == []
    assert faults(schema, {**made, "spec": {**made["spec"], "entrypont": "x"}})


def test_pods_and_what_makes_the_night_are_valid_by_the_schemas_of_kubernetes() -> None:
    for made in NIGHTLY:
        assert faults(of_kubernetes(made["kind"]), made) == []
    template = of_kubernetes("PodTemplateSpec")
    for own in KUBERAY.values():
        for group, _ in groups(own):
            assert faults(template, group["template"]) == []
            [container] = group["template"]["spec"]["containers"]
            assert faults(template, {"spec": {"containers": [{**container, "imagePulPolicy": "Always"}]}})


@pytest.mark.parametrize(
    ("preset", "nodes", "overrides"),
    [
        pytest.param("flashvideo-1080p", launched(AWS), [], id="cluster.yaml"),
        pytest.param("flashvideo-1080p", launched(GCP), [], id="cluster-gcp.yaml"),
        pytest.param("flashvideo-1080p", kuberay(KUBERAY["rayjob"]), [], id="rayjob.yaml"),
        pytest.param("flashvideo-1080p", kuberay(KUBERAY["rayservice"]), [], id="rayservice.yaml"),
        pytest.param("flashvideo-1080p-80gb", allocated("render.sbatch"), [], id="render.sbatch"),
        pytest.param("flashvideo-1080p-80gb", allocated("shards.sbatch"), ONE_CARD, id="shards.sbatch"),
    ],
)
def test_the_preset_has_a_place_for_every_pool(preset: str, nodes: list[dict[str, Any]], overrides: list[str]) -> None:
    """Those that a job with it opens; and without its cards it has none."""
    settings = Settings.load(preset, overrides)
    pools, stages = (
        settings.pools,
        tuple(stage for stage in STAGES if stage != "rate" or "rate" in settings.score.stages),
    )
    assert cluster.misplaced_on(nodes, pools, stages) == []
    most = max(node["Resources"].get("GPU", 0) for node in nodes)
    assert cluster.misplaced_on([node for node in nodes if node["Resources"].get("GPU", 0) < most], pools, stages)


def test_the_rayjob_and_the_service_name_the_preset_that_has_its_place_there() -> None:
    assert "--config flashvideo-1080p" in RAYJOB["spec"]["entrypoint"]
    [served] = yaml.safe_load(RAYSERVICE["spec"]["serveConfigV2"])["applications"]
    assert served["args"]["config"] == "flashvideo-1080p"


def test_containers_are_alike_and_have_no_rights_that_they_do_not_need() -> None:
    for group, _ in [each for own in KUBERAY.values() for each in groups(own)]:
        spec = group["template"]["spec"]
        [container] = spec["containers"]
        assert container["securityContext"] == {"runAsNonRoot": True, "allowPrivilegeEscalation": False}
        assert container["resources"]["limits"] == container["resources"]["requests"]
        # The weights that both files name are there, and the store's keys.
        [mount], [volume] = container["volumeMounts"], spec["volumes"]
        assert (mount["name"], mount["mountPath"]) == (volume["name"], "/models")
        assert container["envFrom"] == [{"secretRef": {"name": "flashvideo-store"}}]
        assert container["image"].endswith(":0.1.0")


@pytest.fixture
def night(tmp_path: Path) -> Callable[..., str]:
    """Runs the script of the CronJob, with a `kubectl` that writes down what it is given; what it said."""
    [cron] = [each for each in NIGHTLY if each["kind"] == "CronJob"]
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    [container] = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    [script] = container["args"]
    (tmp_path / "status").write_text("SUCCEEDED")
    tool = tmp_path / "kubectl"
    tool.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n'
        f"case $1 in apply) cat > {tmp_path}/applied;; get) cat {tmp_path}/status;; esac\n"
    )
    tool.chmod(0o755)
    shutil.copy(DEPLOY / "kuberay" / "rayjob.yaml", tmp_path)

    def run(job: str, check: bool = True) -> str:
        env = {"NIGHTS": container["env"][0]["value"], "JOB": job, "PATH": f"{tmp_path}:/usr/bin:/bin"}
        own = script.replace("/night/", f"{tmp_path}/")
        done = subprocess.run(["sh", "-euc", own], env=env, check=check, capture_output=True, text=True)
        return f"{done.stdout}{done.returncode}"

    return run


def test_a_night_is_the_rayjob_with_the_nights_date_in_it(night: Callable[..., str], tmp_path: Path) -> None:
    """However late the pod begins: the minute for which it was scheduled is in the name of its Job."""
    minute = int(dt.datetime(2026, 3, 1, 22, tzinfo=dt.UTC).timestamp()) // 60
    night(f"flashvideo-nightly-{minute}")
    made = yaml.safe_load((tmp_path / "applied").read_text())
    assert made["metadata"]["name"] == "flashvideo-2026-03-01"
    found = re.search(r"--output (\S+) --new --date (\S+) ", made["spec"]["entrypoint"])
    assert found is not None
    assert (found[1], Night.of(found[1], found[2]).date) == ("s3://bucket/nights/{date}", "2026-03-01")
    assert "wait rayjob/flashvideo-2026-03-01" in (tmp_path / "asked").read_text()
    night("by-hand")
    made = yaml.safe_load((tmp_path / "applied").read_text())
    assert made["metadata"]["name"] in {
        f"flashvideo-{dt.datetime.now(dt.UTC) - dt.timedelta(hours=h):%F}" for h in (0, 1)
    }


def test_a_night_fails_where_its_rayjob_did_and_where_it_is_no_night(night: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "status").write_text("FAILED")
    assert night("by-hand", check=False).endswith("FAILED\n1")
    rayjob = tmp_path / "rayjob.yaml"
    rayjob.write_text(rayjob.read_text().replace("s3://bucket/run1", "s3://acme/clips"))  # as somebody's bucket is
    (tmp_path / "status").write_text("SUCCEEDED")
    night("by-hand")
    assert "--output s3://bucket/nights/{date} --new" in (tmp_path / "applied").read_text()
    (tmp_path / "applied").unlink()
    rayjob.write_text(rayjob.read_text().replace("--output", "-o"))
    assert "no place for: --new" in night("by-hand", check=False)
    assert not (tmp_path / "applied").exists()


@pytest.mark.parametrize(("status", "told"), [(0, 0), (3, 0), (1, 1), (2, 1)])
def test_a_rayjob_is_not_started_again_for_candidates_that_failed(status: int, told: int) -> None:
    entrypoint = re.sub(r"^python jobs/render.py .*(?= \|\|)", f"sh -c 'exit {status}'", RAYJOB["spec"]["entrypoint"])
    assert subprocess.run(entrypoint, shell=True, check=False).returncode == told


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, which has kustomize within")
def test_kustomize_makes_the_base() -> None:
    made = subprocess.run(["kubectl", "kustomize", str(DEPLOY / "kuberay")], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    kinds = [each["kind"] for each in yaml.safe_load_all(made.stdout)]
    assert sorted(kinds) == ["ConfigMap", "CronJob", "Role", "RoleBinding", "ServiceAccount"]


def test_the_cluster_file_for_gcp_offers_what_the_one_for_aws_does() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    assert faults(schema, GCP) == faults(schema, AWS) == []
    aws = AWS["available_node_types"]
    own = GCP["available_node_types"]
    for name, node in aws.items():
        assert {key: own[name][key] for key in ("resources", "labels", "max_workers")} == {
            key: node[key] for key in ("resources", "labels", "max_workers")
        }


def test_the_image_is_pinned_and_runs_as_nobody_special() -> None:
    words = (DEPLOY / "Dockerfile").read_text()
    [pinned] = re.findall(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert f"FROM rayproject/ray:{pinned}-" in words
    assert [line for line in words.splitlines() if line.startswith("USER")] == ["USER 1000"]
    assert "-c /home/ray/src/constraints.txt" in words
    for source in re.findall(r"^COPY (?:--\S+ )?(.*) \S+$", words, re.MULTILINE):
        assert all((ROOT / name).exists() for name in source.split())


@pytest.mark.skipif(not HADOLINT.exists(), reason="no wheel of hadolint for this machine")
def test_the_linter_has_nothing_to_say_of_the_image() -> None:
    told = subprocess.run([HADOLINT, "--no-color", DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert (told.returncode, told.stdout) == (0, "")


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job of Slurm's. Its commands, and those that scripts start, write down what they get."""
    tools = {
        "scontrol": "printf 'n1\\nn2\\nn3\\nn4\\n'",
        "hostname": "echo 10.0.0.1",
        "srun": 'while [[ $1 == -* ]]; do [[ $1 == -w ]] && shift; shift; done; exec "$@"',
        "ray": f'echo "$@" >> {tmp_path}/rays',
        "sleep": ":",
        "flashvideo-ray": f'echo "$@ RAY_ADDRESS=${{RAY_ADDRESS:-}}" >> {tmp_path}/jobs; exit 3',
    }
    (tmp_path / "rays").touch()
    for name, body in tools.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    given = {
        "JOB_ID": "4711",
        "JOB_NODELIST": "n[1-4]",
        "CPUS_PER_TASK": "16",
        "GPUS_ON_NODE": "1",
        "ARRAY_TASK_ID": "3",
    }
    return {"PATH": f"{tmp_path}:/usr/bin:/bin", **{f"SLURM_{name}": value for name, value in given.items()}}


def test_on_an_allocation_there_is_one_ray_and_one_job_beside_its_head(slurm: dict[str, str], tmp_path: Path) -> None:
    words = ["p.parquet", "out", "flashvideo-1080p-80gb", "--set", "a=b c"]
    done = subprocess.run(["bash", DEPLOY / "slurm" / "render.sbatch", *words], env=slurm, check=False)
    assert done.returncode == 3  # the job's own
    started: list[str] = []
    while len(started) < 4:  # they are in the background, and this script has ended
        started = (tmp_path / "rays").read_text().splitlines()
    assert sorted("--head" in line for line in started) == [False, False, False, True]
    assert all("10.0.0.1" in line and "--num-gpus 1" in line for line in started)
    [job] = (tmp_path / "jobs").read_text().splitlines()
    assert job == "render p.parquet out -c flashvideo-1080p-80gb --set a=b c RAY_ADDRESS=10.0.0.1:24711"


def test_slurms_signal_before_the_end_of_the_time_reaches_the_job(slurm: dict[str, str], tmp_path: Path) -> None:
    job = tmp_path / "flashvideo-ray"
    told = f"trap 'echo told >> {tmp_path}/jobs; exit 1' TERM; echo begun >> {tmp_path}/jobs"
    job.write_text(f"#!/bin/bash\n{told}\nfor ((n = 0; n < 400; n++)); do /bin/sleep 0.05; done\n")
    script = subprocess.Popen(["bash", DEPLOY / "slurm" / "render.sbatch", "p.parquet", "out"], env=slurm)
    try:
        while not (tmp_path / "jobs").exists():
            assert script.poll() is None
        script.terminate()
        assert script.wait(20) == 1
    finally:
        script.kill()
    assert (tmp_path / "jobs").read_text().split() == ["begun", "told"]


def test_a_task_of_an_array_renders_its_share_on_its_own_node(slurm: dict[str, str], tmp_path: Path) -> None:
    script, elsewhere = DEPLOY / "slurm" / "shards.sbatch", {"RAY_ADDRESS": "10.9.9.9:6379"}
    words = ["8", "p.parquet", "out", "flashvideo-1080p-80gb", "--takeover"]
    done = subprocess.run(["bash", script, *words], env={**slurm, **elsewhere}, check=False)
    assert done.returncode == 3
    [job] = (tmp_path / "jobs").read_text().splitlines()
    words = job.removesuffix(" RAY_ADDRESS=").split()
    assert words[:7] == ["render", "p.parquet", "out", "-c", "flashvideo-1080p-80gb", "--shard", "3/8"]
    assert [word for word in words[7:] if word != "--set"] == [*ONE_CARD, "--takeover"]
