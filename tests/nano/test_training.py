import json
import subprocess
import sys
from pathlib import Path

import torch

from flashvideo_ray.models import FlashVideoPreviewPipeline
from flashvideo_ray.nano.config import SMOKE
from flashvideo_ray.nano.train.text import train_text
from flashvideo_ray.nano.train.vae import framewise_convolutions, init_vae, standardize

SMOKE_COMMAND = [sys.executable, "-m", "flashvideo_ray.nano.train", "all", "--smoke"]


def test_the_whole_training_runs_at_a_toy_size_and_exports_a_model(tmp_path: Path):
    subprocess.run([*SMOKE_COMMAND, "--work", str(tmp_path)], check=True, capture_output=True, timeout=240)
    pipe = FlashVideoPreviewPipeline.from_pretrained(tmp_path / "model" / "preview", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a red star", num_inference_steps=2, num_frames=3).frames.isfinite().all()


def test_a_killed_run_continues_to_the_same_weights(tmp_path: Path):
    whole = train_text(tmp_path / "whole", steps=60, batch=8, config=SMOKE)
    train_text(tmp_path / "parts", steps=60, batch=8, config=SMOKE, stop=25)
    resumed = train_text(tmp_path / "parts", steps=60, batch=8, config=SMOKE)
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, two)
    steps = [json.loads(line)["step"] for line in (tmp_path / "whole" / "text" / "curve.jsonl").open()]
    assert steps == [50]


def test_frame_by_frame_convolutions_and_standardised_latents_change_nothing():
    from flashvideo_ray.nano.networks import build_vae

    torch.manual_seed(0)
    vae = build_vae(SMOKE)
    init_vae(vae)
    pixels = torch.rand(1, 3, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = vae.encoder(pixels)[0][:, : SMOKE.latent_channels]
        frames = vae.decoder(latents)[0]
        with framewise_convolutions():
            torch.testing.assert_close(vae.encoder(pixels)[0][:, : SMOKE.latent_channels], latents)
            torch.testing.assert_close(vae.decoder(latents)[0], frames, atol=1e-4, rtol=1e-4)
        std = torch.rand(SMOKE.latent_channels) + 0.5
        standardize(vae, torch.zeros(SMOKE.latent_channels), std)
        after = vae.encoder(pixels)[0][:, : SMOKE.latent_channels]
        torch.testing.assert_close(after, latents / std[:, None, None, None])
        torch.testing.assert_close(vae.decoder(after)[0], frames, atol=1e-4, rtol=1e-4)
