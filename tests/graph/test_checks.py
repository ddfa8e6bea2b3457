"""One pass over all settings, before anything is started: each limit at its edge, with the model's own geometry."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from support import tiny_overrides

from flashvideo_ray import Settings
from flashvideo_ray.engines.weights import ModelNotFoundError
from flashvideo_ray.errors import InputError
from flashvideo_ray.graph import checks, examination, recipe
from flashvideo_ray.graph.examination import Asked
from flashvideo_ray.graph.recipe import about
from flashvideo_ray.media import video
from flashvideo_ray.settings import STAGES, SettingsError

BLEND, CUT = "refine.decode_tiling=blend", "refine.decode_tiling=reference"
STAGE_1 = [stage for stage in STAGES if stage != "refine"]


def has_nvenc() -> bool:
    try:
        video.check_encoder("h264_nvenc")
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize(
    ("fits", "beyond"),
    [
        (["refine.height=16"], ["refine.height=15"]),
        (["preview.width=8"], ["preview.width=7"]),
        (["preview.num_frames=1"], ["preview.num_frames=0"]),
        ([BLEND, "refine.decode_tiles=[3, 4]"], [BLEND, "refine.decode_tiles=[4, 4]"]),
        ([BLEND, "refine.decode_tiles=[3, 4]"], [BLEND, "refine.decode_tiles=[3, 5]"]),
        ([CUT, "refine.decode_tiles=[48, 64]"], [CUT, "refine.decode_tiles=[50, 50]"]),
        (["refine.encode_tiles=[48, 64]"], ["refine.encode_tiles=[50, 50]"]),
        (
            ["refine.height=800", "refine.encode_tiles=[200, 64]"],
            ["refine.height=799", "refine.encode_tiles=[200, 64]"],
        ),
        (["refine.decode_tiles=[50, 50]"], ["refine.decode_tiles=[50, 50]", CUT]),
        (["score.scorers=[motion, cuts]"], ["score.scorers=[motion, flashvideo_ray.scorers.motion.Motion]"]),
        (["select.percentiles={motion: 50}"], ["select.percentiles={motoin: 50}"]),
        (["select.rank=motion"], ["select.rank=motion + alignment"]),
        (["video.encoder_preset=veryfast"], ["video.encoder_preset=warp"]),
    ],
)
def test_each_limit_at_its_edge(fits: list[str], beyond: list[str]) -> None:
    checks.check(Settings.load("nano", fits))
    with pytest.raises(InputError) as error:
        checks.check(Settings.load("nano", beyond))
    assert "\n" not in str(error.value)


def test_the_limits_are_those_of_the_model(tiny_model: Path) -> None:
    """Its latent pixels span 8 pixels where the nano model's span 4, and time is compressed by 4."""

    def load(*overrides: str) -> Settings:
        return Settings.load("nano", [*tiny_overrides(tiny_model), *overrides])

    checks.check(load("refine.encode_tiles=[8, 12]", "refine.encode_chunk_frames=8", "preview.num_frames=17"))
    for override, key in (
        ("refine.encode_tiles=[9, 12]", "refine.encode_tiles: 9 rows"),
        ("refine.encode_chunk_frames=6", "refine.encode_chunk_frames: "),
        ("preview.num_frames=13", "preview.num_frames: "),
    ):
        with pytest.raises(SettingsError) as error:
            checks.check(load(override))
        assert key in str(error.value)
    checks.check(load("preview.model=nano"))  # of other latents: it is given frames


def test_all_that_is_wrong_is_said_at_once() -> None:
    wrong = ["refine.encode_tiles=[99, 1]", "preview.height=3", "select.rank=beauty"]
    with pytest.raises(SettingsError) as error:
        checks.check(Settings.load("nano", wrong))
    lines = str(error.value).splitlines()
    assert [next(word for word in ("beauty", "preview.height", "encode_tiles") if word in line) for line in lines] == [
        "beauty", "preview.height", "encode_tiles",
    ]  # fmt: skip


def test_a_size_that_is_floored_is_made_and_recorded_as_asked_and_as_used() -> None:
    settings = checks.check(Settings.load("nano", ["refine.height=97", "refine.width=127"]))
    assert about(settings, 1)["sizes"] == {
        "preview": {"asked": [48, 64], "used": [48, 64]},
        "refine": {"asked": [97, 127], "used": [96, 112]},
    }


@pytest.mark.usefixtures("no_ray")
def test_an_encoder_that_needs_a_card_is_refused_where_there_is_none() -> None:
    nvenc = ["video.codec=h264_nvenc"]
    with pytest.raises(SettingsError, match=r"video\.codec: .* pools\.refine\.num_gpus is 0"):
        checks.check(Settings.load("nano", nvenc))
    # Previews can be made where no clip can.
    checks.check(Settings.load("nano", nvenc), STAGE_1)
    if has_nvenc():
        pytest.skip("this machine's card has NVENC")
    with pytest.raises(SettingsError, match=r"h264_nvenc .* set video\.codec to libx264"):
        checks.check(Settings.load("nano", [*nvenc, "pools.refine.num_gpus=1"]))


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Takes away what pip has written of a package, which can be imported all the same."""

    def take(package: str) -> None:
        found_by = metadata.Distribution.from_name

        def find(name: str) -> Any:
            if name == package:
                raise metadata.PackageNotFoundError(name)
            return found_by(name)

        monkeypatch.setattr(metadata.Distribution, "from_name", find)

    return take


def test_a_checkout_needs_no_installation(without: Callable[[str], None]) -> None:
    """`ray job submit --working-dir .` brings it to nodes that have all else."""
    installed = metadata.version("flashvideo-ray")
    without("flashvideo-ray")
    checks.check(Settings.load("nano"), STAGES)
    assert recipe.versions()["flashvideo-ray"] == installed
    assert ("ok", "versions") in {(found.level, found.about) for found in examination.examine(Asked(Settings(), ()))}


@pytest.mark.parametrize("stages", [STAGES, ("text", "refine")], ids=["render", "refine"])
def test_what_clips_are_made_with_has_a_version(without: Callable[[str], None], stages: Any) -> None:
    without("diffusers")
    with pytest.raises(InputError, match="diffusers is not installed here: pip install diffusers"):
        checks.check(Settings.load("nano"), stages)
    assert ("broken", "versions") in {
        (found.level, found.about) for found in examination.examine(Asked(Settings(), ()))
    }


def test_new_decisions_need_no_model() -> None:
    elsewhere = Settings.load("nano", ["preview.model=/elsewhere", "select.require=motion > 1"])
    assert checks.check(elsewhere, ()) == elsewhere
    with pytest.raises(ModelNotFoundError):
        checks.check(elsewhere)


def test_a_run_holds_a_million_candidates() -> None:
    settings = Settings.load("nano", ["candidates=8", "select.draw=2"])
    checks.check_count(100_000, settings)
    with pytest.raises(SettingsError, match="1,000,010"):
        checks.check_count(100_001, settings)


def test_a_damaged_model_folder_is_named(tiny_model: Path, tmp_path: Path) -> None:
    for stage in ("preview", "refine"):
        (tmp_path / stage / "vae").mkdir(parents=True)
        for file in ("model_index.json", "vae/config.json"):
            (tmp_path / stage / file).write_text((tiny_model / stage / file).read_text())
    (tmp_path / "preview" / "vae" / "config.json").write_text("{")
    with pytest.raises(ModelNotFoundError, match=r"preview.vae.config\.json"):
        checks.check(Settings.load("nano", tiny_overrides(tmp_path)))
