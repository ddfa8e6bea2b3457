import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flashvideo_ray import nano
from flashvideo_ray.models import FlashVideoPreviewPipeline, FlashVideoRefinePipeline
from flashvideo_ray.nano import world
from flashvideo_ray.nano.clip import NanoClip, contact_sheet
from flashvideo_ray.nano.networks import build_tokenizer


def load(folder: Path) -> tuple[FlashVideoPreviewPipeline, FlashVideoRefinePipeline]:
    preview = FlashVideoPreviewPipeline.from_pretrained(folder / "preview")
    refine = FlashVideoRefinePipeline.from_pretrained(
        folder / "refine", tokenizer=preview.tokenizer, text_encoder=preview.text_encoder
    )
    for pipe in (preview, refine):
        pipe.set_progress_bar_config(disable=True)
    return preview, refine


def render(folder: Path, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    preview, refine = load(folder)
    first = preview(prompt, generator=torch.Generator().manual_seed(0))
    final = refine(prompt, preview_latents=first.latents, generator=torch.Generator().manual_seed(1))
    assert isinstance(first.frames, torch.Tensor)
    assert isinstance(final.frames, torch.Tensor)
    return first.frames, final.frames


def test_a_random_toy_model_is_complete_and_the_same_every_time(tmp_path: Path):
    one, two = nano.build_random(tmp_path / "one", seed=3), nano.build_random(tmp_path / "two", seed=3)
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
    low, high = render(one, "a red star")
    assert low.shape == (1, 5, 3, 16, 32)
    assert high.shape == (1, 5, 3, 32, 64)


def test_the_shipped_model_is_small_loads_fast_and_renders():
    files = [path for path in nano.path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12e6
    begin = time.perf_counter()
    load(nano.path())
    assert time.perf_counter() - begin < 3
    low, high = render(nano.path(), "A large striped red star slides left on a navy background.")
    assert low.shape == (1, world.FRAMES, 3, world.HEIGHT, world.WIDTH)
    assert high.shape == (1, world.FRAMES, 3, 4 * world.HEIGHT, 4 * world.WIDTH)
    assert high.isfinite().all()


def test_both_stages_ship_the_same_autoencoder():
    name = "vae/diffusion_pytorch_model.safetensors"
    one, two = load_file(nano.path() / "preview" / name), load_file(nano.path() / "refine" / name)
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("text", ["A Large RED star, slides left.", "a large red star slides left"])
def test_capitals_and_punctuation_make_no_difference(text: str):
    assert build_tokenizer()(text).input_ids == build_tokenizer()("a large red star slides left").input_ids


def test_the_scorer_takes_clips_of_any_size():
    scene = world.sample(2, torch.Generator().manual_seed(0))
    assert contact_sheet(world.render(scene)).shape == (2, 3, 128, 128)
    score = NanoClip()
    prompts = ["a red star on a navy background", "a big circle"]
    low, high = score(world.render(scene), prompts), score(world.render(scene, world.SCALE), prompts)
    assert low.shape == (2,)
    torch.testing.assert_close(low, high, atol=0.1, rtol=0)
