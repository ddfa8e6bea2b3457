"""Settings: presets, files, overrides, and errors that say what to do."""

from pathlib import Path

import pytest
import yaml

from flashvideo_ray.settings import Settings, SettingsError, presets


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads(name: str) -> None:
    assert Settings.load(name) == Settings.load(name)


def test_the_1080p_preset_places_the_two_stages_on_large_and_small_cards() -> None:
    pools = Settings.load("flashvideo-1080p").pools
    assert (pools.preview.num_gpus, pools.preview.labels) == (1, {"gpu-tier": "large"})
    assert (pools.refine.num_gpus, pools.refine.labels) == (1, {"gpu-tier": "small"})


def test_a_file_and_overrides(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"candidates": 2, "refine": {"noise_step": 650}, "score": {"scorers": ["motion"]}}))
    settings = Settings.load(file, ["pools.refine.size=4", "select.require=motion >= 0.5", "preview.model=/a b"])
    assert settings.candidates == 2
    assert settings.refine.noise_step == 650
    assert [scorer.name for scorer in settings.score.scorers] == ["motion"]
    assert settings.pools.refine.size == 4
    assert settings.select.require == ("motion >= 0.5",)
    assert settings.preview.model == "/a b"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pools.refin.size=4", "unknown key pools.refin; did you mean pools.refine?"),
        ("preview.heigth=256", "unknown key preview.heigth; did you mean preview.height?"),
        ("score.scorers=[{name: motion, option: {}}]", "did you mean score.scorers.0.options?"),
        ("pools.text.size=0", "pools.text.size: Input should be greater than 0 (found 0)"),
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
        ("refine.noise_step=1000", "refine.noise_step"),
        ("select.require=motion", "is a number, not a condition"),
        ("preview=3", "preview"),
        ("colour", "expected key=value"),
        ("seed.low=3", "seed: Input should be a valid integer"),
    ],
)
def test_a_wrong_key_or_value_is_named(override: str, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        Settings.load("nano", [override])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"), [("[1, 2]", "expected keys and values"), ("a: [", "not valid YAML"), ("", None)]
)
def test_a_file_that_is_not_settings(tmp_path: Path, content: str, message: str | None) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    if message is None:
        assert Settings.load(file) == Settings()
        return
    with pytest.raises(SettingsError, match=message):
        Settings.load(file)


def test_a_name_that_is_neither_file_nor_preset() -> None:
    with pytest.raises(SettingsError, match="presets: demo, flashvideo-1080p, nano"):
        Settings.load("nan")


def test_the_recipe_leaves_out_what_is_operational() -> None:
    one = Settings.load("nano")
    other = Settings.load("nano", ["pools.refine.size=3", "select.require=motion > 1", "max_attempts=9"])
    assert one.recipe() == other.recipe()
    assert one.recipe() != Settings.load("nano", ["refine.noise_step=600"]).recipe()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(Exception, match="frozen"):
        Settings().seed = 3
