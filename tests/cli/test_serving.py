"""The service on a Ray cluster that the command did not start."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest
import ray
import requests
from support import free_ports, own_ray

from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.writer import Writer
from flashvideo_ray.serve import app, local
from flashvideo_ray.serve.app import ServeSettings
from flashvideo_ray.serve.security import TOKENS_VARIABLE
from flashvideo_ray.settings import LedgerSettings

TOKEN = "0123456789abcdef"


@pytest.mark.parametrize("tokens", ["file", "variable"])
def test_on_a_cluster_the_run_and_the_tokens_are_those_that_the_command_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: str
) -> None:
    """Its workers have another folder, and another environment."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.delenv(TOKENS_VARIABLE, raising=False)
    monkeypatch.chdir(there)
    with own_ray():
        monkeypatch.chdir(here)
        monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        if tokens == "file":
            Path("tokens").write_text(f"viewer:ann:{TOKEN}")
        else:
            monkeypatch.setenv(TOKENS_VARIABLE, f"viewer:ann:{TOKEN}")
        options = ServeSettings(
            output="runs/mine", config="nano", token_file="tokens" if tokens == "file" else None, scale_to_zero=True
        )
        settings, recipe = app.load_run(options)
        app.open_run("runs/mine", settings, recipe)
        writer = Writer(Store("runs/mine"), "previews", tables.PREVIEWS, LedgerSettings())
        row = {"clip_id": "a" * 20, "id": "a", "prompt": "a red star", "seed": 1, "candidate": 0}
        writer.write(pa.Table.from_pylist([{**row, "status": "previewed", "at": tables.now()}], tables.PREVIEWS))
        [port] = free_ports(1)
        with local.running(options, port=port) as address:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            answer = requests.get(f"{address}api/v1/run", headers=headers, timeout=60)
            assert answer.status_code == 200
            assert answer.json()["candidates"] == 1
            assert requests.get(f"{address}api/v1/run", timeout=60).status_code == 401
    assert os.listdir(there) == []
