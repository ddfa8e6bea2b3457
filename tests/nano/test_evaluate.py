"""The evaluation of the nano model, on two prompts."""

from __future__ import annotations

import pytest
import torch

from flashvideo_ray.nano import best_of, path
from flashvideo_ray.nano.evaluate import Evaluation, table


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return Evaluation(path(), 2, torch.bfloat16)


def test_the_table_has_what_was_measured(evaluation: Evaluation) -> None:
    evaluation.stage1()
    evaluation.scorer()
    lines = table(evaluation.results).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| stage 1: background / colour / motion / shape",
        "| all four",
        "| CLIP over a corrupted caption, worst attribute",
    ]


def test_the_best_of_two_costs_two_previews_and_one_refine(evaluation: Evaluation) -> None:
    results = best_of.best_of(evaluation, (1, 2), steps=2)
    one, two = results["rows"]
    each = results["cpu_seconds"]
    assert two["selected"] - one["selected"] == pytest.approx(each["preview"] + each["score"])
    assert two["everything"] - two["selected"] == pytest.approx(each["refine"])
    assert two["oracle"] >= two["previews"]
    assert len(best_of.table(results).splitlines()) == 4


def test_errors_that_selection_removes() -> None:
    assert best_of.errors_removed({"one": 0.8, "rows": [{"n": 4, "previews": 0.95}]}) == pytest.approx(0.75)
