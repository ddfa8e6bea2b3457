"""How prompts are cut for text encoders that read little."""

import pytest

from flashvideo_ray.scorers._text import pieces


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A cat sleeps.", ["A cat sleeps."]),
        ("A cat sleeps. A dog runs.", ["A cat sleeps.", "A dog runs."]),
        ("One. Two. Three. Four. Five.", ["One. Two. Three.", "Four. Five."]),
        ("A white cat, a black dog, rain.", ["A white cat,", "a black dog, rain."]),
        ("a cat that runs after a mouse", ["a cat that runs", "after a mouse"]),
        ("A cat. an antidisestablishmentarian dog", ["A cat. an", "antidisestablishmentarian", "dog"]),
        ("", [""]),
    ],
)
def test_between_sentences_else_clauses_else_words(text, expected):
    assert pieces(text, lambda piece: len(piece) <= 18) == expected
