"""Out of memory: the same again with less at once, with the first attempt's memory really free, and from there on."""

import weakref

import pytest
import torch

from flashvideo_ray.engines.memory_ladder import Ladder, notes


class Card:
    """A stand-in for a card: an attempt that asks for more than fits fails while it holds a large tensor."""

    def __init__(self, fits: int):
        self.fits = fits
        self.tried: list[int] = []
        self.held: list[weakref.ref[torch.Tensor]] = []

    def attempt(self, size: int) -> int:
        self.tried.append(size)
        assert not any(reference() is not None for reference in self.held), "the attempt before still holds memory"
        activations = torch.zeros(size)
        self.held.append(weakref.ref(activations))
        if size > self.fits:
            raise torch.OutOfMemoryError(f"tried to allocate {size}")
        return size


RUNGS = [("", {"size": 8}), ("in halves", {"size": 4}), ("in quarters", {"size": 2})]


def test_an_attempt_finds_the_memory_of_the_one_before_free() -> None:
    card = Card(fits=2)
    assert Ladder("decoded", RUNGS, "a larger card").run(card.attempt) == (2, "decoded in quarters for want of memory")
    assert card.tried == [8, 4, 2]


def test_a_phase_gives_back_what_the_next_one_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append("all"))
    assert Ladder("encoded", RUNGS, "a larger card").run(Card(fits=8).attempt) == (8, None)
    assert freed == ["all"]


def test_what_was_asked_for_leaves_no_note() -> None:
    assert Ladder("decoded", RUNGS, "a larger card").run(Card(fits=8).attempt) == (8, None)


def test_the_next_row_begins_at_the_rung_that_was_needed() -> None:
    ladder, card = Ladder("decoded", RUNGS, "a larger card"), Card(fits=4)
    for _ in range(2):
        assert ladder.run(card.attempt) == (4, "decoded in halves for want of memory")
    assert card.tried == [8, 4, 4]


def test_what_fails_on_the_last_rung_says_what_would_help() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="decoded, in quarters: out of memory; a larger card would help"):
        Ladder("decoded", RUNGS, "a larger card").run(Card(fits=1).attempt)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: out of memory",
        "FIND was unable to find an engine to execute this computation",
    ],
)
def test_libraries_that_find_no_memory_only_say_so(said: str) -> None:
    def attempt(size: int) -> int:
        if size > 4:
            raise RuntimeError(said)
        return size

    assert Ladder("decoded", RUNGS, "a larger card").run(attempt) == (4, "decoded in halves for want of memory")


def test_other_errors_are_not_tried_again() -> None:
    tried = []

    def attempt(size: int) -> None:
        tried.append(size)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        Ladder("decoded", RUNGS, "a larger card").run(attempt)
    assert tried == [8]


def test_notes_of_several_phases_are_one() -> None:
    assert notes(None, "encoded by 8", None, "decoded in 2x2") == "encoded by 8; decoded in 2x2"
    assert notes(None, None) is None
