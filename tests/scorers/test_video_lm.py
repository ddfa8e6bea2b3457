import numpy as np
import pytest
import tiny_vision
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from flashvideo_ray import scorers
from flashvideo_ray.errors import InputError
from flashvideo_ray.scorers.video_lm import QUESTIONS


def frames(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 40, 64, 3), dtype=np.uint8)


def asked_directly(folder, pixels: np.ndarray, question: str) -> float:
    """The probability of yes among yes and no, from all logits of a plain call of processor and model."""
    model, processor = AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    text = "<|im_start|>" + "<image>" * len(pixels) + question + "<end_of_utterance>\nAssistant:"
    pictures = [Image.fromarray(frame) for frame in pixels]
    inputs = processor(text=[text], images=[pictures], return_tensors="pt", do_image_splitting=False)
    with torch.no_grad():
        probabilities = model(**inputs).logits[0, -1].softmax(-1)
    vocabulary = processor.tokenizer.get_vocab()
    yes, no = (
        sum(probabilities[vocabulary[word]].item() for word in words if word in vocabulary)
        for words in (("yes", "Yes", "YES", "Ġyes", "ĠYes", "ĠYES"), ("no", "No", "NO", "Ġno", "ĠNo", "ĠNO"))
    )
    return yes / (yes + no)


def test_each_number_is_the_probability_of_yes(video_lm_folder):
    pixels = frames(3)
    scores = scorers.load("video-lm", {"model": str(video_lm_folder)})(pixels, 'a "red" {circle}')
    asked = {name: text.replace("{prompt}", 'a "red" {circle}') for name, text in QUESTIONS.items()}
    assert scores == {
        f"vlm_{name}": pytest.approx(asked_directly(video_lm_folder, pixels, text), abs=1e-5)
        for name, text in asked.items()
    }
    assert len({round(score, 3) for score in scores.values()}) == 3


def test_questions_and_frames_can_be_chosen(video_lm_folder):
    options = {"model": str(video_lm_folder), "frames": 2, "questions": {"motion": "Does {prompt} move?"}}
    score = scorers.load("video-lm", options)(frames(5), "the star")["vlm_motion"]
    expected = asked_directly(video_lm_folder, frames(5)[[0, 4]], "Does the star move?")
    assert score == pytest.approx(expected, abs=1e-5)


def test_the_answer_depends_on_the_pictures(video_lm_folder):
    scorer = scorers.load("video-lm", {"model": str(video_lm_folder)})
    assert scorer(frames(3), "") != pytest.approx(scorer(255 - frames(3) // 2, ""), abs=1e-3)


def test_a_question_that_nobody_asks(video_lm_folder):
    with pytest.raises(InputError, match="no question is called beauty; there are follows, motion, clean"):
        scorers.load("video-lm", {"model": str(video_lm_folder), "questions": {"beauty": "Is it?"}})


def test_a_model_that_cannot_be_asked(tmp_path):
    folder = tiny_vision.save_video_lm(tmp_path, template=None)
    with pytest.raises(InputError, match="no chat template"):
        scorers.load("video-lm", {"model": str(folder)})
