"""Whole runs under faults, in short (`make chaos` is the long form), and a run that moves to another cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from inline import stages_inline
from support import PROMPTS, TESTS, own_ray, tiny_overrides, write_prompts

import flashvideo_ray
from flashvideo_ray import Settings
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.keys import clip_key, latents_key
from flashvideo_ray.ledger.store import Store


@pytest.mark.long
def test_the_short_form() -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "chaos", "faults", "--short"]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=800)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]


@pytest.mark.long
def test_stage_2_in_another_cluster_needs_the_ledger_and_the_latents_alone(tmp_path: Path, tiny_model: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:4])
    settings = Settings.load("nano", tiny_overrides(tiny_model))
    here, there, straight = (tmp_path / name for name in ("here", "there", "straight"))
    with own_ray(), stages_inline():
        result = flashvideo_ray.preview(prompts, str(here), settings)
    assert (result.ended, result.total) == ({"previewed": 4}, {"previewed": 4})
    assert tables.read(Store(str(here)), "clips").num_rows == 0
    there.mkdir()
    for name in ("run.json", "ledger", "latents"):
        (shutil.copytree if (here / name).is_dir() else shutil.copy)(here / name, there / name)
    with own_ray():
        # Other rows a call and another order of work change nothing about a clip.
        other = Settings.load("nano", [*tiny_overrides(tiny_model), "pools.refine.batch_size=3"])
        assert flashvideo_ray.refine(str(there), other).ended == {"rendered": 4}
        # Nor does it matter whether an actor makes it, or this process.
        with stages_inline():
            flashvideo_ray.render(prompts, str(straight), settings)
    clips = sorted(path.relative_to(straight) for path in straight.glob("clips/*/*.mp4"))
    assert len(clips) == 4
    assert sorted(path.relative_to(there) for path in there.glob("clips/*/*.mp4")) == clips
    for path in clips:
        latents = latents_key(path.stem)
        assert (there / latents).read_bytes() == (straight / latents).read_bytes()
        assert (there / path).read_bytes() == (straight / path).read_bytes()
    assert clip_key(clips[0].stem) == str(clips[0])
