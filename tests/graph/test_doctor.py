"""`doctor` names each thing that would spoil a night, and says nothing against what is sound."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray
import s3fs
from authority import Authority
from careless_store import serve_careless_s3
from chaos.nodes import Nodes
from support import S3, tiny_overrides
from typer.testing import CliRunner

from flashvideo_ray import Settings, engines
from flashvideo_ray.cli import app
from flashvideo_ray.engines import completeness
from flashvideo_ray.graph import doctor, examination
from flashvideo_ray.graph.doctor import NodeTypes
from flashvideo_ray.graph.examination import Asked, Finding
from flashvideo_ray.graph.recipe import about, recipe_of
from flashvideo_ray.ledger import run_file
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.settings import STAGES

TESTS = Path(__file__).parent.parent


def settings_for(model: Path, *overrides: str) -> Settings:
    return Settings.of_tree({}, [*tiny_overrides(model), *overrides])


def here(settings: Settings, output: str | None = None) -> list[Finding]:
    """What is said of this machine, without a Ray."""
    with doctor.probed(output) as probe:
        return doctor.on_driver(settings, output, probe)[0]


def wrong(found: list[Finding]) -> list[str]:
    """About what there is something to say, each once."""
    return list(dict.fromkeys(line.about for line in found if line.level != "ok"))


def messages(found: list[Finding]) -> str:
    return "\n".join(f"{line.message} {line.mend}" for line in found if line.level == "broken")


@pytest.fixture
def copied(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def started(tiny_model: Path, tmp_path: Path) -> str:
    """A run of the tiny model."""
    settings = engines.with_model_defaults(settings_for(tiny_model))
    output = str(tmp_path / "run")
    run_file.open_run(Store(output), recipe_of(settings), about(settings, 1))
    return output


def test_a_sound_set_up_gets_lines_that_are_all_ok(
    no_ray: None, tiny_model: Path, started: str, tmp_path: Path
) -> None:
    words = [word for override in tiny_overrides(tiny_model) for word in ("--set", override)]
    before = sorted(Path(started).rglob("*"))
    result = CliRunner().invoke(app, ["doctor", started, *words])
    assert result.exit_code == 0, result.output
    assert {line.split()[0] for line in result.output.splitlines()} == {"ok"}
    for what in ("settings", "store", "versions", "model of refine", "encoder", "lease and patience", "placement"):
        assert what in result.output
    assert sorted(Path(started).rglob("*")) == before
    assert not ray.is_initialized()


def test_an_old_ray(no_ray: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Which is not even started. What is broken makes the exit status of the command."""
    (tmp_path / "ray-2.40.0.dist-info").mkdir()
    (tmp_path / "ray-2.40.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: ray\nVersion: 2.40.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    result = CliRunner().invoke(app, ["doctor", "-c", "nano"])
    assert result.exit_code == 1
    [line] = [line for line in result.output.splitlines() if line.startswith("broken")]
    assert "ray: 2.40.0 is installed" in line
    assert not ray.is_initialized()


def test_another_ray_on_a_node_than_on_the_driver(tiny_model: Path) -> None:
    theirs = {"python": "3.11.2", "ray": "2.61.0", "torch": "2.13.0+cu130"}
    found = examination.examine(Asked(settings_for(tiny_model), (), versions=theirs))
    assert "2.61.0 on the driver" in messages(found)
    assert "torch" not in messages(found)


def test_no_encoder(no_ray: None, tiny_model: Path) -> None:
    found = here(settings_for(tiny_model, "video.codec=h264_nvenc", "pools.refine.num_gpus=1"))
    assert "encoder" in wrong(found)
    assert "h264_nvenc" in messages(found)


def test_a_model_file_that_was_truncated(copied: Path) -> None:
    file = copied / "refine" / "transformer" / "diffusion_pytorch_model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    found = here(settings_for(copied))
    assert wrong(found) == ["model of refine"]
    assert str(file) in messages(found)


@pytest.mark.parametrize("lost", ["preview/vae", "preview/tokenizer", "preview/text_encoder/model.safetensors"])
def test_a_model_folder_that_lacks_something(copied: Path, lost: str) -> None:
    gone = copied / lost
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    assert [
        str(copied / lost) in line or "holds no weights" in line for line in completeness.faults(copied / "preview")
    ]


def test_a_folder_of_another_fingerprint(copied: Path, started: str) -> None:
    assert wrong(here(settings_for(copied), started)) == []
    file = copied / "refine" / "transformer" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    found = here(settings_for(copied), started)
    assert wrong(found) == ["model of refine"]
    assert "other weights than the run" in messages(found)


def test_weights_that_nobody_has_hashed_are_not_read(
    monkeypatch: pytest.MonkeyPatch, copied: Path, started: str, tmp_path: Path
) -> None:
    """Gigabytes take minutes: it is said, and the job does it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    large = copied / "refine" / "large.bin"
    with open(large, "wb") as file:
        file.truncate(2 * 2**30)
    begun = time.monotonic()
    found = here(settings_for(copied), started)
    assert time.monotonic() - begun < 60
    assert "not hashed yet" in next(line.message for line in found if line.about == "model of refine")


def test_other_settings_than_those_of_the_run(tiny_model: Path, started: str) -> None:
    found = here(settings_for(tiny_model, "candidates=3"), started)
    assert wrong(found) == ["run"]
    assert "candidates: 1 there, 3 now" in messages(found)


def test_a_bucket_that_may_only_be_read(s3: S3, tiny_model: Path) -> None:
    output = f"s3://{s3.bucket}/doctor/read-only"
    assert wrong(here(settings_for(tiny_model), output)) == []
    with s3.read_only():
        found = _once_refused(settings_for(tiny_model), output)
        assert wrong(found) == ["store"]
        assert "cannot be written" in messages(found)


def _once_refused(settings: Settings, output: str) -> list[Finding]:
    """The server reads its keys a moment after it is told to."""
    deadline = time.monotonic() + 20
    while True:
        found = here(settings, output)
        if wrong(found) or time.monotonic() > deadline:
            return found


def test_a_store_without_conditional_puts(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    with serve_careless_s3() as endpoint:
        for name, value in {"ENDPOINT_URL": endpoint, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        s3fs.S3FileSystem.clear_instance_cache()  # those of this process know the other server
        with doctor.probed("s3://careless/run") as probe:
            assert wrong(probe.lines) == ["conditional put"]
            assert "If-None-Match" in messages(probe.lines)
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_folder_that_may_not_be_written(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    found = here(settings_for(tiny_model), str(tmp_path / "file" / "run"))
    assert "store" in wrong(found)


def test_a_temporary_folder_that_is_full(tmp_path: Path) -> None:
    """A real one, of 64 KiB: a file system that only this test's process sees."""
    show = (
        "from flashvideo_ray.graph.examination import *\n"
        "print([(f.level, f.about) for f in examine(Asked(Settings(), ())) if f.about == 'temporary folder'])"
    )
    script = f'mount -t tmpfs -o size=64k none "{tmp_path}" && TMPDIR="{tmp_path}" "{sys.executable}" -c "$SHOW"'
    env = {**os.environ, "SHOW": show}
    told = subprocess.run(["unshare", "-rm", "sh", "-c", script], env=env, capture_output=True, text=True)
    if "unshare" in told.stderr or "mount" in told.stderr:
        pytest.skip("no file systems of one's own on this machine")
    assert told.stdout.strip() == "[('broken', 'temporary folder')]", told.stderr


@pytest.mark.parametrize(("days", "level"), [((-30, -1), "broken"), ((-1, 1), "warning"), ((-1, 300), "ok")])
def test_an_expired_certificate(tmp_path: Path, tiny_model: Path, days: tuple[int, int], level: str) -> None:
    own = Authority(tmp_path).issue(days=days)
    settings = Settings.model_validate({**settings_for(tiny_model).model_dump(), "credentials": own})
    found = examination.examine(Asked(settings, ("refine",)))
    assert [line.level for line in found if line.about == "certificate"] == [level]


NODES = [
    {"Resources": {"CPU": 16.0}, "Labels": {"gpu-tier": "none"}},
    {"Resources": {"CPU": 8.0, "GPU": 1.0}, "Labels": {"gpu-tier": "small"}},
]
TYPES = NodeTypes({"large": {"resources": {"CPU": 16, "GPU": 1}, "labels": {"gpu-tier": "large"}, "max_workers": 2}})


def test_a_label_that_no_node_has(tiny_model: Path) -> None:
    settings = settings_for(tiny_model, "pools.refine.labels={gpu-tier: smal}", "pools.refine.num_gpus=1")
    [line] = doctor.placement(NODES, settings, STAGES, None)
    assert (line.level, line.about) == ("broken", "placement")
    assert "label gpu-tier=smal" in line.message
    assert "did you mean gpu-tier=small?" in line.mend


def test_a_node_type_without_a_node_is_not_there_yet(tiny_model: Path) -> None:
    settings = settings_for(tiny_model, "pools.preview.labels={gpu-tier: large}", "pools.preview.num_gpus=1")
    [line] = doctor.placement(NODES, settings, STAGES, TYPES)
    assert line.level == "not there yet"
    settings = settings_for(tiny_model, "pools.preview.labels={gpu-tier: larg}", "pools.preview.num_gpus=1")
    [line] = doctor.placement(NODES, settings, STAGES, TYPES)
    assert line.level == "broken"


def test_a_card_that_is_too_small_for_its_stage(tiny_model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """What tells of cards is a command: this one says that there is an L4."""
    _card_tool("echo 'NVIDIA L4, 23034, 497'", tmp_path, monkeypatch)
    settings = Settings.load("flashvideo-1080p")
    [line] = examination.cards(Asked(settings, ("refine",), cards=1.0))
    assert (line.level, line.message.startswith("NVIDIA L4: refine needs ")) == ("broken", True)
    found = list(examination.cards(Asked(settings, ("refine",), cards=2.0)))
    assert "Ray counts 2 here, the driver has 1" in messages(found)


@pytest.mark.parametrize(
    ("says", "gib"),
    [
        ("echo 'NVIDIA L4, 23034, 506'", 22.0),
        ("case $1 in *reserved*) echo 'not a valid field to query'; exit 2;; esac; echo 'NVIDIA L4, 23034'", 22.5),
        ("case $1 in *reserved*) echo 'NVIDIA L4, 23034, [N/A]';; *) echo 'NVIDIA L4, 23034';; esac", 22.5),
    ],
    ids=["all", "old driver", "not told"],
)  # fmt: skip
def test_a_card_has_what_a_process_finds_there(says: str, gib: float, tmp_path: Path, monkeypatch: Any) -> None:
    _card_tool(says, tmp_path, monkeypatch)
    assert examination.cards_here() == [("NVIDIA L4", pytest.approx(gib, abs=0.01))]


def _card_tool(says: str, folder: Path, monkeypatch: Any) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{says}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_lease_that_outlasts_the_patience() -> None:
    assert [line.level for line in doctor.lease(Settings())] == ["ok"]
    impatient = Settings.of_tree({}, ["store_patience_seconds=30"])
    assert [line.level for line in doctor.lease(impatient)] == ["warning"]
    assert [line.level for line in doctor.lease(Settings(), put_seconds=7.0)] == ["warning"]


@pytest.mark.long
def test_nodes_of_a_cluster_are_asked_one_by_one(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, started: str, tmp_path: Path, no_ray: None
) -> None:
    """One has a clock that is 90 s ahead."""
    monkeypatch.setattr(doctor, "_NODE_SECONDS", 200)  # this machine is busy with other tests
    monkeypatch.setattr(doctor, "_CLOCK_SECONDS", 60)
    nodes = Nodes(0)
    try:
        nodes.join({"tier": "right"})
        with monkeypatch.context() as environment:
            environment.setenv("CHAOS_CLOCK", "90")
            environment.setenv("PYTHONPATH", f"{TESTS / 'chaos' / 'clock'}:{TESTS}")
            nodes.join({"tier": "wrong"})
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        found = doctor.examine(settings_for(tiny_model, "pools.refine.labels={tier: absent}"), started)
    finally:
        with suppress(Exception):
            ray.shutdown()
        nodes.shutdown()
    assert {line.about for line in found if line.level != "ok" and "wrong" in line.where} == {"clock"}
    assert "90 s ahead of the driver's" in messages(found)
    assert not [line for line in found if line.level != "ok" and "tier=right" in line.where]
    assert [line.about for line in found if line.level != "ok" and line.where == "driver"] == ["placement"]
    for what in ("versions", "model of preview", "store", "encoder", "temporary folder", "clock"):
        assert [line for line in found if line.about == what and "tier=right" in line.where], what
