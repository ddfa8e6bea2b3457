"""Text alignment: by the packaged CLIP, and by any CLIP or SigLIP that transformers loads."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPModel, SiglipModel

from flashvideo_ray import scorers
from flashvideo_ray.errors import InputError
from flashvideo_ray.nano.captions import caption
from flashvideo_ray.nano.world import COLORS

LONG = "A red circle glides to the left. It is small, and it casts no shadow. In the end, a blue star falls. Slowly!"


def frames(count: int = 5, height: int = 40, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_nano_knows_which_colour_was_asked_for(scenes, draw):
    """Of captions that differ in one word, the right one scores above, for 19 clips of 20 at least."""
    clip = scorers.load("clip")
    better = []
    for index, pixels in enumerate(draw(scenes)):
        words = scenes.words(index)
        wrong = words | {"color": COLORS[(COLORS.index(words["color"]) + 1 + index % 5) % len(COLORS)]}
        right, other = (clip(pixels, caption(text, random.Random(index)))["alignment"] for text in (words, wrong))
        better.append(right > other)
    assert np.mean(better) >= 0.95


def test_alignment_is_the_mean_cosine_similarity(clip_folder):
    pixels = frames()
    model, processor = CLIPModel.from_pretrained(clip_folder).eval(), AutoProcessor.from_pretrained(clip_folder)
    pictures = [Image.fromarray(frame) for frame in pixels]
    inputs = processor(text=["a red circle"], images=pictures, return_tensors="pt", padding=True)
    with torch.no_grad():
        out = model(**inputs)
    expected = out.logits_per_image / model.logit_scale.exp()
    scores = scorers.load("clip", {"model": str(clip_folder), "batch": 2})(pixels, "a red circle")
    assert scores == {"alignment": pytest.approx(expected.mean().item(), abs=1e-5), "alignment_pieces": 1}
    assert expected.std() > 1e-3  # the tiny model does look


def test_frames_are_spread_over_the_clip(clip_folder):
    pixels = frames(9)
    few, all_of_those = ({"model": str(clip_folder), "frames": count} for count in (3, 9))
    expected = scorers.load("clip", all_of_those)(pixels[[0, 4, 8]], "a star")
    assert scorers.load("clip", few)(pixels, "a star") == pytest.approx(expected)


def test_a_long_prompt_is_read_in_pieces(clip_folder):
    """Every character is a token of the tiny CLIP: 75 go into one piece."""
    clip = scorers.load("clip", {"model": str(clip_folder)})
    first, second = LONG.split(" In ")
    second = f"In {second}"
    scores = [clip(frames(), text)["alignment"] for text in (first, second)]
    letters = [len(text.replace(" ", "")) for text in (first, second)]
    assert clip(frames(), LONG) == {
        "alignment": pytest.approx(np.average(scores, weights=letters), abs=1e-5),
        "alignment_pieces": 2,
    }


def test_siglip_is_the_models_probability(siglip_folder):
    pixels = frames()
    model, processor = SiglipModel.from_pretrained(siglip_folder).eval(), AutoProcessor.from_pretrained(siglip_folder)
    pictures = [Image.fromarray(frame) for frame in pixels]
    inputs = processor(text=["a red circle"], images=pictures, return_tensors="pt", padding="max_length")
    assert inputs.input_ids.shape == (1, 16)
    with torch.no_grad():
        logits = model(input_ids=inputs.input_ids, pixel_values=inputs.pixel_values).logits_per_image
    scores = scorers.load("siglip", {"model": str(siglip_folder), "batch": 2})(pixels, "a red circle")
    assert scores == {"siglip": pytest.approx(logits.mean().sigmoid().item(), abs=1e-5), "siglip_pieces": 1}
    assert logits.std() > 1e-3


def test_siglip_too_reads_long_prompts_in_pieces(siglip_folder):
    siglip = scorers.load("siglip", {"model": str(siglip_folder)})
    assert siglip(frames(), "the video is of one red circle. " * 4)["siglip_pieces"] > 1


@pytest.mark.parametrize("name", ["clip", "siglip", "nsfw"])
def test_a_model_that_is_not_there(name, tmp_path):
    with pytest.raises(InputError, match=r"cannot load .*a folder as transformers saves it, or a hub id"):
        scorers.load(name, {"model": str(tmp_path / "nothing")})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dtype": "int8"}, "dtype must be float32, bfloat16 or float16"), ({"batch": 0}, "batch must be at least 1")],
)
def test_options_that_cannot_be(clip_folder, options, message):
    with pytest.raises(InputError, match=message):
        scorers.load("clip", {"model": str(clip_folder), **options})
