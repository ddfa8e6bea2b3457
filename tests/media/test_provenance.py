"""What a video says of itself: the mark, what made it, and from which prompt unless that is kept back."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from flashvideo_ray import Settings
from flashvideo_ray.media import provenance
from flashvideo_ray.settings import AdapterSettings

ROW = {"clip_id": "ab", "id": "x", "prompt": "a star", "negative_prompt": None, "seed": 3, "candidate": 0}


def keys(settings: Settings) -> dict[str, str]:
    recipe = {**settings.recipe(), "fingerprints": {"preview": "a", "refine": "b"}}
    return {**provenance.of_candidate(ROW, settings.video.metadata), **provenance.of_run(recipe, settings)}


def test_a_video_names_its_candidate_its_settings_and_its_weights() -> None:
    told = keys(Settings())
    assert (told["clip_id"], told["prompt"], told["seed"], told["candidate"]) == ("ab", "a star", "3", "0")
    assert "negative_prompt" not in told
    assert json.loads(told["settings"])["video"] == {
        "preview_crf": 23, "clip_crf": 18, "codec": "libx264", "encoder_preset": None,
    }  # fmt: skip
    assert json.loads(told["model_fingerprints"]) == {"preview": "a", "refine": "b"}
    assert told["software"].startswith("flashvideo-ray ")


def test_minimal_keeps_back_everything_of_the_prompt() -> None:
    told = keys(Settings.of_tree({"video": {"metadata": "minimal"}}))
    assert not {*provenance.PRIVATE} & {*told}
    assert {"clip_id", "digital_source_type", "software", "models", "settings", "model_fingerprints"} <= {*told}


def test_folders_of_models_stand_without_their_path(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    settings = Settings.of_tree({"preview": {"model": str(tmp_path / "weights")}, "refine": {"model": "org/name@1"}})
    adapter = AdapterSettings(path=str(tmp_path / "style.safetensors"), weight=0.5)
    preview = settings.preview.model_copy(update={"adapters": (adapter,)})
    told = keys(settings.model_copy(update={"preview": preview}))
    assert json.loads(told["models"]) == {
        "preview": {"model": "weights", "adapters": [{"path": "style.safetensors", "weight": 0.5}]},
        "refine": {"model": "org/name@1", "adapters": []},
    }
    assert str(tmp_path) not in json.dumps(told)


def test_the_mark_is_iptcs_and_well_formed() -> None:
    packet = ElementTree.fromstring(provenance.XMP)
    [found] = packet.iter("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert found.text == provenance.DIGITAL_SOURCE_TYPE == keys(Settings())["digital_source_type"]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"software": "flashvideo-ray 0.0.1"}, True),
        ({"models": "elsewhere"}, True),
        ({"clip_id": "other"}, False),
        ({"settings": "{}"}, False),
        ({"model_fingerprints": "{}"}, False),
        ({"negative_prompt": "blur"}, False),
    ],
)
def test_a_file_is_taken_for_the_same_by_what_decides_its_pixels(change: dict[str, str], same: bool) -> None:
    now = keys(Settings())
    assert provenance.says_the_same({**now, **change}, now) is same
