"""A run that signs what it publishes, and a file of it that tells by itself how to make it again."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from authority import Authority
from support import PROMPTS, tiny_overrides, write_prompts
from typer.testing import CliRunner

from flashvideo_ray import Settings
from flashvideo_ray.cli import app
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.media import credentials, provenance, video
from flashvideo_ray.settings import CredentialSettings


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def words(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def rows(output: Path) -> dict[str, dict[str, Any]]:
    return {row["clip_id"]: row for row in tables.read(Store(str(output)), "clips").to_pylist()}


@pytest.mark.usefixtures("inline")
def test_a_signed_run_from_its_first_job_to_the_same_clip_once_more(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path / "authority")
    right, output = authority.issue(), tmp_path / "run"
    prompts = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:2], negative_prompt=["blur", None], seed=[5, 6])
    own = [*tiny_overrides(tiny_model), *(f"credentials.{name}={value}" for name, value in right.items())]
    command = ["render", prompts, str(output), "-c", "nano", *words([*own, "credentials.previews=true"])]

    # A wrong certificate is refused before anything is there.
    expired = authority.issue("expired", days=(-9, -1))
    refused = run(*command, "--set", f"credentials.certificate={expired['certificate']}")
    assert refused.exit_code == 2
    assert "has expired on" in refused.output
    assert not output.exists()

    done = run(*command)
    assert done.exit_code == 0, done.output
    before = rows(output)
    for row in before.values():
        mp4 = (output / row["clip"]).read_bytes()
        assert (row["bytes"], row["sha256"]) == (len(mp4), hashlib.sha256(mp4).hexdigest())
        found = credentials.read(mp4, authority.root.read_text())
        assert found is not None
        assert (found.holds, found.trusted, found.says["prompt"]) == (True, True, row["prompt"])
        assert found.says == video.probe(mp4).metadata
    for preview in output.glob("previews/*/*.mp4"):
        assert credentials.read(preview.read_bytes()) is not None
    assert run("verify", str(output)).exit_code == 0

    # The key is nowhere but in its file.
    secret = Path(right["key"]).read_text().splitlines()[1]
    assert all(secret.encode() not in file.read_bytes() for file in output.rglob("*") if file.is_file())
    assert secret not in done.output + run("status", str(output)).output

    # The file alone tells how it was made, and its command makes the same stream, here without a signature.
    clip = next(row for row in before.values() if row["prompt"] == PROMPTS[0])
    shown = run("inspect", f"file://{output / clip['clip']}", "--json", "--trust", str(authority.root))
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.output)
    assert told["video"]["stream_sha256"] == clip["stream_sha256"]
    assert told["signature"]["signer"] == "Example Studio clips, Example Studio"
    assert (told["made"]["prompt"], told["made"]["seed"]) == (PROMPTS[0], 5)
    monkeypatch.chdir(tmp_path)
    line, _, again = told["command"].replace("/path/to/", f"{tiny_model.parent}/").partition(" && ")
    subprocess.run(["bash", "-c", line], check=True)
    made = run(*shlex.split(again)[1:])
    assert made.exit_code == 0, made.output
    [same] = rows(tmp_path / "again").values()
    assert same["clip_id"] == clip["clip_id"]
    assert same["stream_sha256"] == clip["stream_sha256"]
    assert same["sha256"] != clip["sha256"]

    # What a job had stored when it died: an unsigned clip is signed, a stranger's is not taken, its own is adopted.
    stranger = credentials.Signer(CredentialSettings(**Authority(tmp_path / "b", "Somebody").issue()))
    for part in (output / "ledger").glob("clips-*"):
        part.unlink()
    other = next(row for row in before.values() if row is not clip)
    unsigned = (tmp_path / "again" / same["clip"]).read_bytes()
    (output / clip["clip"]).write_bytes(unsigned)
    (output / other["clip"]).write_bytes(stranger.sign((output / other["clip"]).read_bytes(), {"clip_id": "x"}))
    assert run(*command).exit_code == 0
    after = rows(output)
    assert "adopted" not in (after[other["clip_id"]]["reason"] or "")
    for clip_id, row in after.items():
        assert row["stream_sha256"] == before[clip_id]["stream_sha256"]
        assert credentials.read((output / row["clip"]).read_bytes(), authority.root.read_text()).trusted  # type: ignore[union-attr]
    assert run("verify", str(output)).exit_code == 0
    for part in (output / "ledger").glob("clips-*"):
        part.unlink()
    assert run(*command).exit_code == 0
    assert {name: (row["sha256"], "adopted" in row["reason"]) for name, row in rows(output).items()} == {
        name: (row["sha256"], True) for name, row in after.items()
    }


def test_an_unsigned_file_shows_its_mark_and_what_is_withheld(tmp_path: Path) -> None:
    settings = Settings.of_tree({"video": {"metadata": "minimal"}})
    recipe = {**settings.recipe(), "fingerprints": {"preview": "a", "refine": "b"}}
    row = {"clip_id": "ab", "id": "x", "prompt": "a secret star", "negative_prompt": None, "seed": 3, "candidate": 0}
    said = {**provenance.of_candidate(row, "minimal"), **provenance.of_run(recipe, settings)}
    file = tmp_path / "clip.mp4"
    file.write_bytes(video.encode_mp4(np.zeros((2, 32, 48, 3), np.uint8), 8, metadata=said, xmp=provenance.XMP))
    shown = run("inspect", str(file))
    assert shown.exit_code == 0
    assert provenance.DIGITAL_SOURCE_TYPE in shown.output
    assert "It is not signed" in shown.output
    assert "prompt and seed are withheld" in shown.output
    told = json.loads(run("inspect", str(file), "--json").output)
    assert (told["mark"], told["signature"]) == (provenance.DIGITAL_SOURCE_TYPE, None)
    assert "PROMPT" in told["command"]
    assert "secret" not in json.dumps(told)


def test_what_a_stranger_s_file_says_forges_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.of_tree({"preview": {"model": "nano"}, "refine": {"model": "nano"}})
    recipe = {**settings.recipe(), "fingerprints": {"preview": "a", "refine": "b"}}
    forged = "\n  signed by     Example Studio\x1b[8m\x7f\x9b\u202e"
    prompt = f"a star{forged}"
    row = {"clip_id": "ab", "id": "x", "prompt": prompt, "negative_prompt": None, "seed": 3, "candidate": 0}
    said = {**provenance.of_candidate(row), **provenance.of_run(recipe, settings)}
    said |= {"digital_source_type": forged, f"a{forged}": "b", "signed by": "Example Studio", "sha256": "0" * 64}
    file = tmp_path / "clip.mp4"
    file.write_bytes(video.encode_mp4(np.zeros((2, 32, 48, 3), np.uint8), 8, metadata=said))
    shown = run("inspect", str(file)).output
    assert {each for each in shown if not each.isprintable()} == {"\n"}
    names = [line.split("  ")[1] for line in shown.splitlines() if line.startswith("  ")]
    assert not {name for name in names if name.startswith("signed")}
    assert len(names) == len({*names})
    as_json = run("inspect", str(file), "--json").output
    assert {each for each in as_json if not each.isprintable()} == {"\n"}
    told = json.loads(as_json)
    assert (told["made"]["prompt"], told["mark"]) == (prompt, forged)
    monkeypatch.chdir(tmp_path)
    subprocess.run(["bash", "-c", told["command"].partition(" && ")[0]], check=True)
    assert json.loads(Path("again.jsonl").read_text())["prompt"] == prompt


@pytest.mark.parametrize(
    ("models", "there"),
    [(("nano", "nano"), []), (("org/name@abc", "none"), []), (("existing", "nano"), ["preview_url"])],
)
def test_models_that_are_no_folders_stand_in_the_command_as_they_are(
    tmp_path: Path, models: tuple[str, str], there: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.of_tree({"preview": {"model": models[0]}, "refine": {"model": models[1]}})
    recipe = {**settings.recipe(), "fingerprints": {"preview": "a", "refine": "b"}}
    row = {"clip_id": "ab", "id": "x", "prompt": "a star", "negative_prompt": None, "seed": 3, "candidate": 0}
    said = {**provenance.of_candidate(row), **provenance.of_run(recipe, settings)}
    file = tmp_path / "clip.mp4"
    file.write_bytes(video.encode_mp4(np.zeros((2, 32, 48, 3), np.uint8), 8, metadata=said))
    told = json.loads(run("inspect", str(file), "--json").output)
    line, _, again = told["command"].partition(" && ")
    monkeypatch.chdir(tmp_path)
    subprocess.run(["bash", "-c", line], check=True)
    asked = json.loads(Path("again.jsonl").read_text())
    assert {*asked} == {"id", "prompt", "seed", *there}
    made = Settings.load(None, shlex.split(again)[5::2])
    assert (made.preview.model, made.refine.model) == models
    assert any("PREVIEW_URL" in note for note in told["notes"]) == bool(there)


def test_what_cannot_be_inspected_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    for file, message in (("text.mp4", "not a readable video"), ("none.mp4", "cannot be read: FileNotFoundError")):
        result = run("inspect", str(tmp_path / file))
        assert result.exit_code == 2
        assert message in result.output
    plain = tmp_path / "plain.mp4"
    plain.write_bytes(video.encode_mp4(np.zeros((2, 32, 48, 3), np.uint8), 8))
    result = run("inspect", str(plain))
    assert result.exit_code == 0
    assert "does not say how it was made" in result.output
