"""After `make demo`: the README's commands to a batch in PyTorch, and clips that tell how to make them again."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import guides
import pytest
from inline import stages_inline
from support import ROOT
from typer.testing import CliRunner

from flashvideo_ray import nano
from flashvideo_ray.cli import app
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.store import Store

# Four prompts of the demo, with fewer steps and smaller clips.
QUICK = ("preview.num_inference_steps=2", "preview.num_frames=5", "refine.num_inference_steps=1")
QUICK += ("refine.height=96", "refine.width=128")
SET = [word for setting in QUICK for word in ("--set", setting)]


def run(*words: str) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Iterator[Path]:
    """The folder in which the recipe of `make demo` was run; it is this process's own meanwhile."""
    [recipe] = re.findall(r"^demo:.*\n\t\$\(BIN\)/flashvideo-ray (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch, stages_inline():
        patch.chdir(folder)
        run(*shlex.split(recipe), "--prompts", "4", *SET)
        yield folder


def rendered(output: str) -> list[dict[str, Any]]:
    return [row for row in tables.read(Store(output), "clips").to_pylist() if row["status"] == "rendered"]


def test_the_readmes_two_commands_give_a_batch_in_pytorch(here: Path) -> None:
    make, export = guides.block("README.md", "make demo\n").splitlines()
    assert make == "make demo"
    command = shlex.split(export, comments=True)
    assert command[0] == ".venv/bin/flashvideo-ray"
    run(*command[1:])
    code = guides.block("README.md", "import glob, torch")
    assert len(code.strip().splitlines()) <= 10

    names: dict[str, Any] = {}
    exec(code, names)
    clips = rendered("runs/demo")
    assert names["frames"].shape == (4, 5, 96, 128, 3)
    assert sorted(names["captions"]) == sorted(row["prompt"] for row in clips)

    # And after a person has rejected one, and the same command has run again.
    from flashvideo_ray.ledger import decisions

    decisions.write(Store("runs/demo"), [decisions.Decision(clips[0]["clip_id"], "rejected", "ann")])
    run(*command[1:])
    exec(code, names)
    assert sorted(names["captions"]) == sorted(row["prompt"] for row in clips[1:])


@pytest.mark.parametrize("withheld", [False, True], ids=["all of it", "with prompts withheld"])
def test_a_clip_of_the_best_of_four_tells_how_to_make_it_again(here: Path, withheld: bool) -> None:
    clip = rendered("runs/demo")[0]
    output = "runs/demo"
    if withheld:  # the same prompt, alone of all in its file
        output = "runs/part"
        secret = ["--set", "video.metadata=minimal", *SET]
        run("render", str(nano.demo_prompts()), output, "-c", "demo", "--only", clip["id"], *secret)
        [there] = rendered(output)
        assert (there["clip_id"], there["stream_sha256"]) == (clip["clip_id"], clip["stream_sha256"])

    told = json.loads(run("inspect", f"{output}/{clip['clip']}", "--json"))
    assert told["video"]["stream_sha256"] == clip["stream_sha256"]
    assert any("withheld" in note for note in told["notes"]) == withheld
    assert (clip["prompt"] in json.dumps(told)) != withheld
    command = told["command"].replace("PROMPT", clip["prompt"]).replace("SEED", str(clip["seed"]))
    line, _, again = command.partition(" && ")
    folder = here / f"again-{withheld}"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        subprocess.run(["bash", "-c", line], check=True)
        run(*shlex.split(again)[1:])
        [same] = rendered("again")
    assert (same["clip_id"], same["stream_sha256"]) == (clip["clip_id"], clip["stream_sha256"])
