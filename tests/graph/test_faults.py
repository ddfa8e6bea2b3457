"""Candidates that fail: each ends in the ledger with what happened, and takes no other with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import PROMPTS, own_ray, tiny_overrides, write_prompts
from tiny import save_model

import flashvideo_ray
from flashvideo_ray import Settings
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.store import Store


@pytest.fixture
def ray_that_knows_the_faulty_network() -> Iterator[None]:
    # One CPU: the preset's actors have their place on it, and what Ray Data runs between them asks for none.
    with own_ray(num_cpus=1, runtime_env={"worker_process_setup_hook": "faulty.known"}):
        yield


@pytest.mark.usefixtures("ray_that_knows_the_faulty_network")
def test_a_candidate_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    faults = {
        PROMPTS[0]: ("preview", "raise", "RuntimeError", "more than the network can take", 1),
        PROMPTS[1]: ("preview", "nan", "NonFiniteError", "stage 1 gave NaN", 1),
        PROMPTS[2]: ("refine", "raise", "RuntimeError", "more than the network can take", 1),
        PROMPTS[3]: ("refine", "nan", "NonFiniteError", "stage 2 gave NaN", 1),
        PROMPTS[4]: ("refine", "kill", "AttemptsError", "died 2 times on this candidate", 3),
        "a red star moves up": ("preview", "hang", "TimeLimitError", "2 times over 10 s", 3),
    }
    model = save_model(tmp_path / "model", [(stage, fault, prompt) for prompt, (stage, fault, *_) in faults.items()])
    prompts = write_prompts(tmp_path / "prompts.parquet", [*faults, PROMPTS[5]])
    settings = Settings.load("nano", [*tiny_overrides(model), "max_attempts=2", "pools.preview.time_limit_seconds=10"])
    result = flashvideo_ray.render(prompts, str(tmp_path / "run"), settings)
    assert result.ended == {"rendered": 1, "failed": 6}
    assert result.exit_status == 3
    ended = {row["prompt"]: row for row in tables.read(Store(str(tmp_path / "run")), "clips").to_pylist()}
    assert ended[PROMPTS[5]]["status"] == "rendered"
    for prompt, (stage, _, error_class, message, attempts) in faults.items():
        row = ended[prompt]
        assert (row["status"], row["stage"], row["error_class"]) == ("failed", stage, error_class)
        assert message in row["error"]
        assert row["attempts"] == attempts
