import random

import pyarrow.parquet as pq
import pytest
import torch

from flashvideo_ray.nano import demo_prompts, heldout_prompts, judge, world
from flashvideo_ray.nano.captions import MAX_WORDS, caption, sentence, word_list
from flashvideo_ray.nano.make_prompts import heldout_scenes
from flashvideo_ray.nano.vocabulary import EXAMPLES, unknown_words


def scenes(count: int, split: str = "train", seed: int = 0) -> world.Scenes:
    return world.sample(count, torch.Generator().manual_seed(seed), split)


def held_out(some: world.Scenes) -> torch.Tensor:
    return world.is_heldout(*(some.index[name] for name in ("shape", "color", "motion")))


def test_training_never_sees_a_held_out_combination():
    assert not held_out(scenes(2000)).any()
    assert held_out(scenes(2000, "heldout")).all()


def test_every_attribute_value_is_held_out_and_trained_equally_often():
    grid = torch.cartesian_prod(*(torch.arange(len(world.ATTRIBUTES[n])) for n in ("shape", "color", "motion")))
    held = grid[world.is_heldout(*grid.T)]
    assert len(held) == 30
    for column in range(3):
        assert held[:, column].bincount().unique().numel() == 1


def test_an_object_stays_in_the_frame():
    some = scenes(500, "all")
    centre, radius = world.trajectory(some, torch.arange(world.FRAMES))
    assert (centre - radius[..., None] >= 0).all()
    assert (centre[..., 0] + radius <= world.WIDTH).all()
    assert (centre[..., 1] + radius <= world.HEIGHT).all()


def test_a_crop_and_a_choice_of_frames_are_parts_of_the_whole_clip():
    some = scenes(3, "all")
    whole = world.render(some, world.SCALE)
    top, left = torch.tensor([0, 8, 60]), torch.tensor([16, 100, 0])
    part = world.render(some, world.SCALE, torch.tensor([2, 7]), (top, left, 32, 40))
    for i in range(3):
        expected = whole[i, [2, 7], :, top[i] : top[i] + 32, left[i] : left[i] + 40]
        torch.testing.assert_close(part[i], expected, atol=2e-4, rtol=0)


def test_texture_exists_at_high_resolution_only():
    index = {name: torch.zeros(4, dtype=torch.long) for name in world.ATTRIBUTES}
    index["texture"] = torch.arange(4)
    some = world.Scenes(index, torch.tensor([[50.0, 24.0]] * 4))
    low, high = world.render(some, 1), world.render(some, world.SCALE)
    for i in range(1, 4):
        torch.testing.assert_close(low[i], low[0])
        assert (high[i] - high[0]).abs().max() > 0.1


@pytest.mark.parametrize(("scale", "count"), [(1, 60), (world.SCALE, 24)])
def test_the_judge_is_right_on_ground_truth(scale: int, count: int):
    some = scenes(count, "all", seed=3)
    for i in range(count):
        words = some.words(i)
        reading = judge.read(world.render(some[slice(i, i + 1)], scale)[0])
        assert reading == {name: words[name] for name in reading}
        assert ("texture" in reading) == (scale > 1)


def test_the_judge_does_not_take_a_blob_or_a_still_or_an_empty_clip_for_something():
    some = scenes(1, "all")
    clip = world.render(some)[0]
    still = judge.read(clip[:1].expand(9, -1, -1, -1))
    assert still["motion"] == judge.NONE
    empty = world.BACKGROUND_RGB[0][None, :, None, None].expand(9, -1, world.HEIGHT, world.WIDTH)
    reading = judge.read(empty)
    assert (reading["background"], reading["shape"], reading["color"]) == ("navy", judge.NONE, judge.NONE)
    ragged = clip.clone()
    ragged[:, :, ::3] = clip[:, :, :1, :1].expand_as(ragged[:, :, ::3])
    assert judge.read(ragged)["shape"] == judge.NONE


def test_captions_fit_the_text_length_and_the_closed_vocabulary():
    known, rng, some = set(word_list()), random.Random(0), scenes(300, "all")
    texts = [caption(some.words(i), rng) for i in range(300)]
    assert max(len(text.split()) for text in texts) <= MAX_WORDS
    assert {word for text in texts for word in text.split()} <= known
    assert len(set(texts)) > 280


def test_unknown_words_are_named_once_in_order_without_case_and_punctuation():
    assert unknown_words("A large cat, slowly rises. The CAT over Paris!") == ["cat", "paris"]
    assert [unknown_words(text) for text in EXAMPLES] == [[], [], []]


def test_bundled_prompts_are_held_out_balanced_and_understood():
    rows = pq.read_table(heldout_prompts()).to_pylist()
    truth = heldout_scenes()
    assert len(rows) == 400 == len({row["id"] for row in rows})
    assert held_out(truth).all()
    for name, values in world.ATTRIBUTES.items():
        counts = [sum(row[name] == value for row in rows) for value in values]
        assert max(counts) - min(counts) <= 5, (name, counts)
    assert all(row[name] == truth.words(i)[name] for i, row in enumerate(rows) for name in world.ATTRIBUTES)
    demo = pq.read_table(demo_prompts()).to_pylist()
    assert len(demo) >= 24
    assert not [word for row in rows + demo for word in unknown_words(row["prompt"])]
    assert sentence("a red star") == "A red star."
