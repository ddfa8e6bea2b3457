"""The package agrees with the reference, and would be caught if it did not.

`tests/golden` holds the reference's own numbers. The first test replays all of them. The others make one deliberate
mistake each, of the kind that a port of FlashVideo makes, and see a gate fail.
"""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import replay
import torch
from support import ROOT

from flashvideo_ray.models import pipeline_preview, schedulers, transformer, vae
from flashvideo_ray.models.convert import convert
from flashvideo_ray.models.pipeline_base import FlashVideoPipeline
from flashvideo_ray.models.pipeline_refine import FlashVideoRefinePipeline
from flashvideo_ray.models.schedulers import FlashVideoDPMScheduler
from flashvideo_ray.models.transformer import FlashVideoTransformer3DModel

GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture(scope="module", autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, 2))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    """The golden checkpoints, converted once."""
    model = tmp_path_factory.mktemp("converted") / "model"
    convert(GOLDEN, model, text_encoder=str(GOLDEN / "t5"), dtype="float32")
    return model


def failures(group: str, model: Path, golden: Path = GOLDEN) -> list[str]:
    """Names of the comparisons of a group that fail."""
    rows = list(replay.replay(golden, model, [group]))
    assert rows
    return [row.name for row in rows if not row.passed]


def test_every_tensor_of_the_reference_is_reproduced(converted):
    rows = list(replay.replay(GOLDEN, converted))
    assert {row.name.split(":")[0] for row in rows} == set(replay.GROUPS)
    assert [(row.name, row.error, row.note) for row in rows if not row.passed] == []


def test_a_vector_that_is_not_there_fails(converted, tmp_path):
    golden = tmp_path / "golden"
    shutil.copytree(GOLDEN, golden)
    (golden / "tables.safetensors").unlink()
    assert failures("tables", converted, golden) == ["tables"]


def edit(model: Path, file: str, **values: object) -> None:
    path = model / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# Mistakes in what a model folder says. Each names the group of vectors that catches it.

CONFIGURED: dict[str, tuple[str, str, dict[str, object]]] = {
    "the last norm has the epsilon of the others": (
        "transformer",
        "refine/transformer/config.json",
        {"out_norm_eps": 1e-5},
    ),
    "one latent scale for both stages": ("stage 2, start", "refine/vae/config.json", {"scaling_factor": 0.7}),
    "the preview decoded with the scale of the refine stage": (
        "stage 1, decoded",
        "preview/vae/config.json",
        {"scaling_factor": 1.15258426},
    ),
    "encoded in the chunks of diffusers": ("stage 2, encoded", "refine/model_index.json", {"encode_chunk_frames": 8}),
    "decoded whole": ("stage 2, decoded", "refine/model_index.json", {"decode_tiling": "none"}),
    "times rounded to bfloat16": (
        "stage 2, run",
        "refine/scheduler/scheduler_config.json",
        {"time_dtype": "bfloat16"},
    ),
    "no statement of motion in the refine prompt": ("text", "refine/model_index.json", {"prompt_prefix": ""}),
    "a statement of motion in the preview prompt": (
        "text",
        "preview/model_index.json",
        {"prompt_prefix": "medium motion,"},
    ),
}


@pytest.mark.parametrize("mistake", CONFIGURED)
def test_a_wrong_setting_is_caught(mistake, converted, tmp_path):
    group, file, values = CONFIGURED[mistake]
    model = tmp_path / "model"
    shutil.copytree(converted, model)
    edit(model, file, **values)
    assert failures(group, model)


# Mistakes in the code.


def encode_the_empty_string(patch: pytest.MonkeyPatch) -> None:
    embed = FlashVideoPipeline._embed_text
    patch.setattr(
        FlashVideoPipeline, "_embed_text", lambda self, prompt, embeds, *_: embed(self, prompt, embeds, "", None)
    )


def swap_the_guidance_branches(patch: pytest.MonkeyPatch) -> None:
    tokens = FlashVideoPipeline._project_text
    patch.setattr(FlashVideoPipeline, "_project_text", lambda self, *embeds: tokens(self, *embeds)[::-1])


def round_the_steps(patch: pytest.MonkeyPatch) -> None:
    linspace = np.linspace
    patch.setattr(np, "linspace", lambda *arguments, **options: linspace(*arguments, **options).round())


def rescale_before_subsampling(patch: pytest.MonkeyPatch) -> None:
    set_timesteps = FlashVideoDPMScheduler.set_timesteps

    def subsample(self: FlashVideoDPMScheduler, count: int, device: object = None) -> None:
        set_timesteps(self, count)
        self.sampler_alphas = torch.cat([self.sqrt_alphas_cumprod[self.timesteps], torch.ones(1)])
        self._set_coefficients(self.sampler_alphas.double())

    patch.setattr(FlashVideoDPMScheduler, "set_timesteps", subsample)


def do_not_quantise_the_level(patch: pytest.MonkeyPatch) -> None:
    coefficients = FlashVideoDPMScheduler._set_coefficients

    def exact(self: FlashVideoDPMScheduler, alpha: torch.Tensor) -> None:
        self.denoiser_alphas = alpha[:-1]
        coefficients(self, alpha)

    patch.setattr(FlashVideoDPMScheduler, "_set_coefficients", exact)


def end_at_the_first_training_level(patch: pytest.MonkeyPatch) -> None:
    coefficients = FlashVideoDPMScheduler._set_coefficients

    def short(self: FlashVideoDPMScheduler, alpha: torch.Tensor) -> None:
        coefficients(self, torch.cat([alpha[:-1], self.sqrt_alphas_cumprod[:1].double()]))
        self.num_inference_steps = len(alpha)  # so that the last step is like any other

    patch.setattr(FlashVideoDPMScheduler, "_set_coefficients", short)


def guide_by_50_steps(patch: pytest.MonkeyPatch) -> None:
    def fifty(scale: float, timestep: int, steps: int) -> float:
        return 1 + scale * (1 - math.cos(math.pi * ((50 - timestep) / 50) ** 5)) / 2

    patch.setattr(pipeline_preview, "dynamic_guidance_scale", fifty)
    patch.setattr(replay, "dynamic_guidance_scale", fifty)


def rescale_the_rotary_grid(patch: pytest.MonkeyPatch) -> None:
    exact = transformer.get_1d_rotary_pos_embed

    def to_base_grid(dim: int, positions: torch.Tensor, **options: object) -> tuple:
        return exact(dim, positions * 30 / len(positions), **options)

    patch.setattr(transformer, "get_1d_rotary_pos_embed", to_base_grid)
    patch.setattr(transformer, "rotary_embedding", transformer.rotary_embedding.__wrapped__)  # without its cache


def take_the_mode_of_the_posterior(patch: pytest.MonkeyPatch) -> None:
    encode = FlashVideoRefinePipeline.encode_frames

    def mode(self: FlashVideoRefinePipeline, frames: torch.Tensor, **options: object) -> torch.Tensor:
        return encode(self, frames, **{**options, "posterior_noise": torch.zeros(())})

    patch.setattr(FlashVideoRefinePipeline, "encode_frames", mode)


def round_sizes_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        FlashVideoPipeline, "_floor_size", lambda self, height, width: (-(-height // 16) * 16, -(-width // 16) * 16)
    )


def round_pixels_to_8_bits(patch: pytest.MonkeyPatch) -> None:
    resize = vae.resize_frames

    def rounded(frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return resize((frames * 255).round() / 255, size)

    patch.setattr(vae, "resize_frames", rounded)
    patch.setattr(replay, "resize_frames", rounded)


def count_pixel_frames(patch: pytest.MonkeyPatch) -> None:
    condition = FlashVideoTransformer3DModel.condition
    patch.setattr(
        FlashVideoTransformer3DModel,
        "condition",
        lambda self, timestep, frames, *more: condition(self, timestep, 4 * frames - 3, *more),
    )


def leave_out_the_noise_step(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(schedulers.FlashVideoFlowScheduler, "model_noise_step", lambda self, noise_step: 0.0)


CODED: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "the unconditional text is the empty string": ("stage 1, short run", encode_the_empty_string),
    "conditional and unconditional are swapped": ("stage 1, short run", swap_the_guidance_branches),
    "steps are rounded, not floored": ("tables", round_the_steps),
    "levels are rescaled before subsampling": ("tables", rescale_before_subsampling),
    "velocity becomes a sample at the solver's own level": ("stage 1, short run", do_not_quantise_the_level),
    "the last step adds noise": ("stage 1, short run", end_at_the_first_training_level),
    "guidance counts 50 steps": ("stage-1 steps", guide_by_50_steps),
    "guidance counts 50 steps, in the run": ("stage 1, short run", guide_by_50_steps),
    "rotary positions are rescaled": ("transformer", rescale_the_rotary_grid),
    "the posterior is not sampled": ("stage 2, start", take_the_mode_of_the_posterior),
    "sizes are rounded up": ("stage 2, encoded", round_sizes_up),
    "pixels between the stages are 8 bits": ("stage 2, encoded", round_pixels_to_8_bits),
    "the size embedding counts pixel frames": ("transformer", count_pixel_frames),
    "the network is not told the noise step": ("stage 2, run", leave_out_the_noise_step),
}


@pytest.mark.parametrize("mistake", CODED)
def test_a_mistake_in_the_code_is_caught(mistake, converted, monkeypatch):
    group, make = CODED[mistake]
    make(monkeypatch)
    assert failures(group, converted)


# Mistakes in the conversion, made by changing what is converted.


def lora_without_its_scale(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor * 4 if ".matrix_B." in name else tensor  # the rank of these checkpoints


def no_lora_on_the_modulation(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor * 0 if ".matrix_B." in name and "adaLN" in name else tensor


@pytest.mark.parametrize(
    ("change", "group"), [(lora_without_its_scale, "LoRA merge"), (no_lora_on_the_modulation, "transformer")]
)
def test_a_wrong_merge_is_caught(change, group, tmp_path):
    golden = tmp_path / "golden"
    shutil.copytree(GOLDEN, golden)
    tensors = torch.load(golden / "stage1.pt", weights_only=True)["module"]
    torch.save({"module": {name: change(name, tensor) for name, tensor in tensors.items()}}, golden / "stage1.pt")
    assert failures(group, tmp_path / "model", golden)
