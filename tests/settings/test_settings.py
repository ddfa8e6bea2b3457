"""Settings: presets, files, overrides, and errors that say what to do."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from flashvideo_ray.settings import Settings, SettingsError, presets


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads(name: str) -> None:
    assert Settings.load(name) == Settings.load(name)


def test_the_1080p_preset_places_the_two_stages_on_large_and_small_cards() -> None:
    pools = Settings.load("flashvideo-1080p").pools
    assert pools.preview.labels == {"gpu-tier": "large"}
    # Text and the large scorers have a share of a preview's card, none of their own.
    assert (pools.preview.num_gpus, pools.guests("preview")) == (0.5, ("text", "rate"))
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
        ("pools.refine.size=many", "pools.refine.size: Input should be a valid integer"),
        ("pools.text.size=auto", "text.size: auto is for preview and refine alone; give text a number"),
        ("refine.noise_step=1000", "refine.noise_step"),
        ("select.require=motion", "is a number, not a condition"),
        ("preview=3", "preview"),
        ("colour", "expected key=value"),
        ("seed.low=3", "seed: Input should be a valid integer"),
        ("select.percentiles={motion + flicker: 50}", "'motion + flicker' is not the name of a score"),
        ("select.rank=motion / 0", "divides by zero"),
        ("video={codec: h264_nvenc, clip_crf: 0}", "video: clip_crf 0 is lossless with libx264 and no target at all"),
    ],
)
def test_a_wrong_key_or_value_is_named(override: str, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        Settings.load("nano", [override])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("fits", "beyond"),
    [
        ("candidates=10000", "candidates=10001"),
        ("candidates=1", f"candidates={'9' * 400}"),
        ("select.draw=10000", "select.draw=30000000"),
        ("preview.height=16384", "preview.height=16385"),
        ("pools.refine.size=1000000", f"pools.refine.size=0x{'f' * 9000}"),
        ("refine.guidance_scale=1e9", "refine.guidance_scale=.inf"),
        ("refine.guidance_scale=0", f"refine.guidance_scale={'9' * 400}"),
        ("store_patience_seconds=1e9", "store_patience_seconds=1e300"),
        ("pools.refine.time_limit_seconds=1e9", "pools.refine.time_limit_seconds=.inf"),
        ("progress_seconds=0.1", "progress_seconds=nan"),
        ("prices.devices={H100: {on_demand: 4}}", "prices.devices={H100: {on_demand: .nan}}"),
        ("select.percentiles={motion: 99}", "select.percentiles={motion: .nan}"),
        ("score.scorers=[{name: motion, options: {a: [1.5]}}]", "score.scorers=[{name: motion, options: {a: [.nan]}}]"),
    ],
)
def test_every_number_is_finite_and_within_what_can_be_used(fits: str, beyond: str) -> None:
    Settings.load("nano", [fits])
    with pytest.raises(SettingsError) as error:
        Settings.load("nano", [beyond])
    assert beyond.partition("=")[0] in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "override",
    [
        "candidates={}",
        "pools.text.num_cpus={}",
        "pools.text.resources={{renderer: {}}}",
        "refine.encode_tiles=[{}, 2]",
        "refine.guidance_scale={}",
        "select.keep={}",
        "select.audit={}",
        "select.percentiles={{motion: {}}}",
        "video.clip_crf={}",
        "prices.devices={{cpu: {{on_demand: {}}}}}",
        "ledger.lease_seconds={}",
    ],
)
def test_yes_and_off_are_no_numbers(override: str) -> None:
    for word in ("yes", "off", "true"):
        with pytest.raises(SettingsError, match="a number is needed"):
            Settings.load("nano", [override.format(word)])


def test_no_number_of_the_settings_takes_a_truth_value() -> None:
    def numbers(model: type[BaseModel], tree: dict[str, Any], path: str = "") -> Iterator[str]:
        for name, value in tree.items():
            if isinstance(value, dict) and name in model.model_fields:
                inner = model.model_fields[name].annotation
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    yield from numbers(inner, value, f"{path}{name}.")
            elif isinstance(value, int | float) and not isinstance(value, bool):
                yield f"{path}{name}"

    found = list(numbers(Settings, Settings().model_dump()))
    assert len(found) > 40
    for name in found:
        with pytest.raises(SettingsError, match="a number is needed"):
            Settings.of_tree({}, [f"{name}=yes"])


def test_a_key_that_is_given_twice_is_refused_with_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("seed: 1\npools:\n  text: {size: 1}\n  score: {size: 1}\n  'text': {size: 2}\n")
    with pytest.raises(SettingsError, match=r"line 5: the key text is given twice \(first in line 3\)"):
        Settings.load(file)
    with pytest.raises(SettingsError, match="the key cpu is given twice"):
        Settings.load("nano", ["prices.devices={cpu: {on_demand: 1}, cpu: {on_demand: 2}}"])
    # What YAML merges is no repetition, and what is written out goes first.
    file.write_text("pools:\n  text: &a {size: 1}\n  score: &b {<<: *a, size: 2}\n  rate: {<<: *b, size: 3}\n")
    assert Settings.load(file).pools.rate.size == 3


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
    with pytest.raises(SettingsError, match="presets: demo, flashvideo-1080p, flashvideo-1080p-80gb, nano"):
        Settings.load("nan")


def test_the_recipe_leaves_out_what_is_operational() -> None:
    one = Settings.load("nano")
    other = Settings.load("nano", ["pools.refine.size=3", "select.require=motion > 1", "max_attempts=9"])
    assert one.recipe() == other.recipe()
    assert one.recipe() != Settings.load("nano", ["refine.noise_step=600"]).recipe()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(Exception, match="frozen"):
        Settings().seed = 3


def test_a_size_of_auto_is_a_number_before_it_is_used() -> None:
    pools = Settings.load("flashvideo-1080p", ["pools.preview.size=auto", "pools.refine.size=auto"]).pools
    assert pools.auto == ("preview", "refine")
    with pytest.raises(ValueError, match="chosen when a round of a job begins"):
        _ = pools.refine.actors
    sized = pools.sized({"preview": 7, "refine": 17})
    assert (sized.auto, sized.preview.actors, sized.refine.actors) == ((), 7, 17)
    # As few as work: text and rate are beside preview, one of each.
    assert [getattr(pools.sized(), stage).size for stage in ("preview", "refine")] == [1, 1]


@pytest.mark.parametrize("stages", [("preview", "refine"), ("refine", "preview")])
def test_pools_that_share_each_card_divide_none(stages: tuple[str, str]) -> None:
    shares = {stage: {"num_gpus": 0.5} for stage in stages}
    guest, host = stages
    for auto in stages:
        pools = {name: {**own, "size": "auto"} if name == auto else own for name, own in shares.items()}
        with pytest.raises(ValueError, match="give both sizes that are numbers"):
            Settings.model_validate({"pools": {**pools, guest: {**pools[guest], "beside": host}}})


@pytest.mark.parametrize(("actors", "each"), [(1, 0.5), (2, 0.75), (8, 0.9375)])
def test_cards_that_are_shared_are_counted_whole(actors: int, each: float) -> None:
    """A quarter of one of them is the text encoder's, a quarter the large scorers'."""
    pools = Settings.load("flashvideo-1080p", [f"pools.preview.size={actors}"]).pools
    assert pools.cards("preview") == each
    assert sum(pools.cards(stage) * getattr(pools, stage).actors for stage in ("text", "preview", "rate")) == actors
    assert Settings.load("flashvideo-1080p", ["pools.preview.size=auto"]).pools.cards("preview") == 1
    assert (pools.cards("refine"), pools.cards("score")) == (1, 0)
