"""What a stage did otherwise than asked for want of memory is in the row, whatever selection says of the candidate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import PROMPTS, tiny_overrides, write_prompts

import flashvideo_ray
from flashvideo_ray import Settings
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.models import FlashVideoTransformer3DModel


@pytest.mark.usefixtures("inline")
def test_each_rung_stays_readable_beside_the_reason_of_selection(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = FlashVideoTransformer3DModel.forward

    def one_sample(network: Any, hidden_states: torch.Tensor, *args: Any, **options: Any) -> Any:
        if len(hidden_states) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(network, hidden_states, *args, **options)

    monkeypatch.setattr(FlashVideoTransformer3DModel, "forward", one_sample)  # a card with room for one sample
    prompts = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:1])
    best = ["candidates=2", "select.rank=motion", "select.keep=1"]
    flashvideo_ray.render(prompts, str(tmp_path / "run"), Settings.load("nano", [*tiny_overrides(tiny_model), *best]))
    store = Store(str(tmp_path / "run"))
    note = "denoised with guidance apart for want of memory"
    previews = tables.read(store, "previews").to_pylist()
    assert [row["memory_note"] for row in previews] == [note] * 2
    [lost] = [row for row in previews if row["status"] == "rejected"]
    assert lost["reason"].startswith("not among the best 1 of its prompt")
    clips = {row["status"]: row for row in tables.read(store, "clips").to_pylist()}
    assert {status: row["memory_note"] for status, row in clips.items()} == {"rendered": note, "rejected": note}
    assert clips["rendered"]["reason"] is None
