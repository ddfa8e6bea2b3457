"""Replay a folder of golden vectors through the public classes and compare every tensor with the reference's.

    python benchmarks/replay.py GOLDEN_DIR [--json results.json]

The folder holds tiny official-layout checkpoints and the numbers that the reference implementation computed with them
in float32 on the CPU. The checkpoints go through `convert`, prompts through the tokenizer and T5, noise is injected,
and each result is compared: name, largest absolute error, gate, verdict. Everything is read from the folder, so any
folder of this layout can be replayed. The exit status is 1 if a gate fails or something is missing.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from golden import Golden, MissingError, to_255

from flashvideo_ray.models import FlashVideoDPMScheduler
from flashvideo_ray.models.official import VIDEO_ATTENTION_TEXT_ATTENTION, VIDEO_MLP_TEXT_MLP
from flashvideo_ray.models.pipeline_preview import dynamic_guidance_scale
from flashvideo_ray.models.schedulers import FlashVideoFlowScheduler
from flashvideo_ray.models.transformer import rotary_embedding
from flashvideo_ray.models.vae import decode_video, encode_video, resize_frames

EXACT, FORWARD, MOMENTS, STAGE1, STAGE2, PIXELS = 1e-6, 1e-5, 2e-5, 1e-4, 2e-4, 2e-2
"""Gates. Pixels are 0 to 255; everything else is in its own units."""

Comparison = tuple[str, float, Any, Any]
"""Name, gate, ours, theirs."""


@dataclass(frozen=True)
class Row:
    """One line of the table; `error` is None where there was nothing to compare, and `note` says why."""

    name: str
    error: float | None
    gate: float | None
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is a number inside the gate."""
        return self.error is not None and self.gate is not None and self.error <= self.gate


def tables(golden: Golden) -> Iterator[Comparison]:
    """Noise tables and solver levels, for every number of steps in the folder."""
    theirs = golden.file("tables.safetensors")
    scheduler = FlashVideoDPMScheduler()
    yield "signal levels of 1000 steps", EXACT, scheduler.sqrt_alphas_cumprod, theirs["sqrt_alphas_cumprod_1000"]
    counts = sorted(int(key.rsplit("_", 1)[1]) for key in theirs if key.startswith("timesteps_desc_"))
    if not counts:
        raise MissingError("timesteps_desc_N in tables.safetensors")
    for count in counts:
        scheduler.set_timesteps(count)
        yield f"steps of {count}", EXACT, scheduler.timesteps, theirs[f"timesteps_desc_{count}"]
        yield f"levels of {count}", EXACT, scheduler.sampler_alphas[:-1], theirs[f"sampler_alpha_sqrt_{count}"]


def step_rows(golden: Golden) -> Iterator[Comparison]:
    """What each stage-1 step used: time, levels, quantised level, guidance."""
    stage1 = golden.meta["stage1"]
    for name in ("rows_51", "rows_short"):
        rows = stage1[name]
        scheduler = FlashVideoDPMScheduler()
        scheduler.set_timesteps(len(rows))
        alphas = scheduler.sampler_alphas.tolist()
        steps = scheduler.timesteps.tolist()
        ours = {
            "timestep": steps,
            "alpha": alphas[:-1],
            "alpha_next": alphas[1:],
            "alpha_quantized": scheduler.denoiser_alphas.tolist(),
            "cfg": [dynamic_guidance_scale(stage1["cfg_scale"], step, len(rows)) for step in steps],
        }
        for column, values in ours.items():
            yield f"{name}: {column}", EXACT, values, [row[column] for row in rows]


def flow_times(golden: Golden) -> Iterator[Comparison]:
    """Stage-2 times in float32 and as the official bfloat16 run rounds them, and the degradation level."""
    stage2 = golden.meta["stage2"]
    for name, table in stage2["time_tables"].items():
        match = re.fullmatch(r"(float32|bfloat16)_steps(\d+)_shift([\d.]+)", name)
        if match is None:
            raise MissingError(f"a meaning for the time table {name}")
        scheduler = FlashVideoFlowScheduler(shift=float(match[3]), time_dtype=match[1])
        scheduler.set_timesteps(int(match[2]))
        yield f"{name}: t", EXACT, scheduler.times, table["t"]
        told = torch.tensor(table["model_timestep"])
        yield f"{name}: model time / 1000", EXACT, scheduler.timesteps / 1000, told / 1000
    step = golden.config["ref_step"]
    signal = FlashVideoFlowScheduler().sqrt_alphas_cumprod[step]
    yield f"signal at noise step {step}", EXACT, signal, stage2["sqrt_alpha_cumprod_at_ref"]
    rounded = FlashVideoFlowScheduler(time_dtype="bfloat16").model_noise_step(step)
    yield f"noise step {step} in bfloat16", EXACT, rounded, stage2["ref_step_bf16"]


def text(golden: Golden) -> Iterator[Comparison]:
    """Token ids and embeddings; the unconditional embedding is zero whatever the negative string."""
    theirs, words = golden.file("text.safetensors"), golden.meta["text"]
    length = golden.config["max_len"]
    for name, prompt in (("s1", words["prompt_s1"]), ("s2", words["prompt_s2"]), ("short", words["short"])):
        ids = golden.preview.tokenizer(
            prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        yield f"ids, {name}", EXACT, ids, theirs[f"ids_{name}"]
    yield "embedding, stage 1", FORWARD, golden.preview.encode_prompt(words["prompt_s1"]), theirs["s1_cond"]
    yield "embedding, stage 2", FORWARD, golden.refine.encode_prompt(words["prompt_s1"]), theirs["s2_cond"]
    yield "embedding, short prompt", FORWARD, golden.preview.encode_prompt(words["short"]), theirs["short_cond"]
    for name, pipeline in (("1", golden.preview), ("2", golden.refine)):
        _, uncond = pipeline._project_text(*pipeline._embed_text(words["prompt_s1"], None, None, None))
        expected = pipeline.transformer.project_text(theirs[f"s{name}_uncond"])
        yield f"unconditional text, stage {name}", EXACT, uncond, expected


def lora_merge(golden: Golden) -> Iterator[Comparison]:
    """One layer of stage 1 after the official merge, against the converted weights put back into its layout."""
    paths = sorted(golden.folder.glob("stage1_merged_layer*.safetensors"))
    if not paths:
        raise MissingError("stage1_merged_layer*.safetensors")
    weights = golden.preview.transformer.state_dict()
    for name, theirs in golden.file(paths[0].name).items():
        layer = re.search(r"\.(\d+)\.", name)
        block, part = f"transformer_blocks.{layer[1] if layer else 0}", name.rsplit(".", 1)[1]
        if "query_key_value" in name:
            ours = torch.cat([weights[f"{block}.attn1.to_{letter}.{part}"] for letter in "qkv"])
        elif "attention.dense" in name:
            ours = weights[f"{block}.attn1.to_out.0.{part}"]
        else:
            chunks = [
                chunk for norm in ("norm1", "norm2") for chunk in weights[f"{block}.{norm}.linear.{part}"].chunk(6)
            ]
            order = [*VIDEO_ATTENTION_TEXT_ATTENTION, *VIDEO_MLP_TEXT_MLP]
            ours = torch.cat([chunks[order.index(i)] for i in range(12)])
        yield name, EXACT, ours, theirs


def forward(golden: Golden) -> Iterator[Comparison]:
    """Single evaluations of both networks, their conditioning vectors and rotary tables."""
    theirs = golden.file("transformer_forward.safetensors")
    cases = sorted({key.split(".", 1)[0] for key in theirs})
    if not cases:
        raise MissingError("a case in transformer_forward.safetensors")
    for case in cases:
        x, context, step = (theirs[f"{case}.{name}"] for name in ("x", "ctx", "ref_noise_step"))
        for stage, pipeline in ((1, golden.preview), (2, golden.refine)):
            network, t = pipeline.transformer, theirs[f"{case}.t_stage{stage}"]
            patch = network.config.patch_size
            if stage == 1:
                shape = x.shape[1], x.shape[3] // patch, x.shape[4] // patch
                cos, sin = rotary_embedding(network.config.attention_head_dim, *shape, x.device)
                yield f"{case}: rotary cos", EXACT, cos, theirs[f"{case}.rope_cos"]
                yield f"{case}: rotary sin", EXACT, sin, theirs[f"{case}.rope_sin"]
            told = step.expand(len(x)) if stage == 2 else None
            with torch.no_grad():
                emb = network.condition(t, x.shape[1], told)
                out = network(x, context, t, told).sample
            yield f"{case}: conditioning, stage {stage}", FORWARD, emb, theirs[f"{case}.emb_stage{stage}"]
            yield f"{case}: network, stage {stage}", FORWARD, out, theirs[f"{case}.out_stage{stage}"]


def stage1_run(golden: Golden, name: str) -> Iterator[Comparison]:
    """A whole stage-1 sampling from the prompt, with the reference's noise."""
    theirs = golden.file(name)
    height, width = golden.config["hw1"]
    noise = theirs["step_noise"]
    states: list[torch.Tensor] = []

    def keep(pipeline: Any, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        states.append(tensors["latents"])
        return {}

    latents = golden.preview(
        golden.meta["text"]["prompt_s1"],
        height=height,
        width=width,
        num_frames=golden.config["frames"],
        num_inference_steps=len(noise) + 1,
        guidance_scale=golden.config["cfg1"],
        latents=theirs["init_noise"],
        step_noise=noise[:, None],
        output_type="latent",
        callback_on_step_end=keep,
    ).latents
    if "x_after_step" in theirs:
        ours = torch.cat([states[i] for i in theirs["x_after_step_index"].tolist()])
        yield "after each step", STAGE1, ours, theirs["x_after_step"]
    yield "latents", STAGE1, latents, theirs["latents_final"]


def stage1_pixels(golden: Golden) -> Iterator[Comparison]:
    """The decoded preview, float, before any rounding."""
    latents = golden.file("stage1_51.safetensors")["latents_final"]
    frames = golden.preview.decode_latents(latents)
    yield "pixels", PIXELS, to_255(frames), to_255(golden.low_resolution_frames)


def stage2_moments(golden: Golden) -> Iterator[Comparison]:
    """The preview upsampled, and encoded in chunks."""
    theirs = golden.file("stage2.safetensors")
    size = golden.refine._floor_size(*golden.config["target"])
    low = golden.low_resolution_frames
    for key in [key for key in theirs if key.startswith("pixel_upsampled_frame")]:
        picked = [int(number) for number in re.findall(r"\d+", key)]
        yield "upsampled pixels", EXACT, resize_frames(low[:, picked], size)[0].transpose(0, 1), theirs[key]
    moments = encode_video(golden.refine.vae, low, size, chunk_frames=golden.refine.config.encode_chunk_frames)
    yield "VAE moments", MOMENTS, moments.transpose(1, 2), theirs["vae_moments"]


def stage2_start(golden: Golden) -> Iterator[Comparison]:
    """The posterior sampled and scaled, and degraded: where the flow starts."""
    theirs = golden.file("stage2.safetensors")
    height, width = golden.config["target"]
    latents = golden.refine.encode_frames(
        golden.low_resolution_frames,
        height=height,
        width=width,
        posterior_noise=theirs["vae_sample_noise"].transpose(1, 2),
    )
    yield "encoded preview", STAGE2, latents, theirs["ref_latents_scaled"]
    start = golden.refine.scheduler.add_noise(latents, theirs["ref_noise"], golden.config["ref_step"])
    yield "degraded preview", STAGE2, start, theirs["x_noised_start"]


def stage2_run(golden: Golden) -> Iterator[Comparison]:
    """A whole stage-2 sampling from the preview's pixels, with the reference's noise."""
    theirs = golden.file("stage2.safetensors")
    height, width = golden.config["target"]
    states: list[torch.Tensor] = []

    def keep(pipeline: Any, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        states.append(tensors["latents"])
        return {}

    latents = golden.refine(
        golden.meta["text"]["prompt_s1"],
        frames=golden.low_resolution_frames,
        height=height,
        width=width,
        num_inference_steps=golden.config["steps2"],
        guidance_scale=golden.config["cfg2"],
        noise_step=golden.config["ref_step"],
        posterior_noise=theirs["vae_sample_noise"].transpose(1, 2),
        noise=theirs["ref_noise"],
        output_type="latent",
        callback_on_step_end=keep,
    ).latents
    if "x_before_step" in theirs:
        yield "between steps", STAGE2, torch.cat(states[:-1]), theirs["x_before_step"][1:]
    yield "latents", STAGE2, latents, theirs["latents_final"]


def stage2_pixels(golden: Golden) -> Iterator[Comparison]:
    """The decoded clip: two tiles, hard cut."""
    theirs = golden.file("stage2_pixels.safetensors")
    latents = golden.file("stage2.safetensors")["latents_final"]
    ratio = int(golden.refine.vae.config["temporal_compression_ratio"])
    needed = (int(theirs["frame_index"].max()) + ratio - 1) // ratio + 1  # later ones have no influence
    frames = golden.refine.decode_latents(latents[:, : needed + 1 - needed % 2])
    yield "pixels", PIXELS, to_255(frames[:, theirs["frame_index"]]), theirs["pixels_0_255"]


def vae_alone(golden: Golden) -> Iterator[Comparison]:
    """The VAE by itself: decodes of other lengths, encodes with other chunks."""
    theirs, vae = golden.file("vae.safetensors"), golden.preview.vae
    decoded = [key.removesuffix(".z") for key in theirs if key.endswith(".z")]
    encoded = [key for key in theirs if ".moments_" in key]
    if not decoded or not encoded:
        raise MissingError("a decode and an encode in vae.safetensors")
    for name in decoded:
        frames = decode_video(vae, theirs[f"{name}.z"].transpose(1, 2))
        yield f"{name}: pixels", PIXELS, to_255(frames), theirs[f"{name}.pixels_0_255"]
    for key in encoded:
        video = theirs[key.split(".")[0] + ".x"].transpose(1, 2)
        chunk = int(re.findall(r"\d+", key.split(".moments_")[1])[0]) - 1
        moments = encode_video(vae, video / 2 + 0.5, chunk_frames=chunk)
        yield key, MOMENTS, moments.transpose(1, 2), theirs[key]


GROUPS: dict[str, Callable[[Golden], Iterator[Comparison]]] = {
    "tables": tables,
    "stage-1 steps": step_rows,
    "stage-2 times": flow_times,
    "text": text,
    "LoRA merge": lora_merge,
    "transformer": forward,
    "VAE": vae_alone,
    "stage 1, short run": lambda golden: stage1_run(golden, "stage1_short.safetensors"),
    "stage 1, full run": lambda golden: stage1_run(golden, "stage1_51.safetensors"),
    "stage 1, decoded": stage1_pixels,
    "stage 2, encoded": stage2_moments,
    "stage 2, start": stage2_start,
    "stage 2, run": stage2_run,
    "stage 2, decoded": stage2_pixels,
}


def compare(name: str, gate: float, ours: Any, theirs: Any) -> Row:
    """Return the largest absolute difference; NaN anywhere is a failure."""
    ours, theirs = torch.as_tensor(ours).double(), torch.as_tensor(theirs).double()
    if ours.shape != theirs.shape:
        return Row(name, None, gate, f"shape {list(ours.shape)}, reference {list(theirs.shape)}")
    return Row(name, (ours - theirs).abs().max().item(), gate)


def replay(folder: Path, model: Path | None = None, groups: list[str] | None = None) -> Iterator[Row]:
    """Replay a folder and yield a row for every comparison, in order.

    Args:
        folder: the golden vectors.
        model: converted model to use; made there if it does not exist, and in a temporary place by default.
        groups: names of the groups to replay, default all.
    """
    with tempfile.TemporaryDirectory() as temporary:
        golden = Golden(folder, model or Path(temporary) / "model")
        for group in groups or GROUPS:
            try:
                for name, gate, ours, theirs in GROUPS[group](golden):
                    yield compare(f"{group}: {name}", gate, ours, theirs)
            except MissingError as missing:
                yield Row(group, None, None, f"missing: {missing}")
            except KeyError as missing:
                yield Row(group, None, None, f"missing: {missing} in meta.json")
            except (ValueError, RuntimeError, OSError) as error:
                yield Row(group, None, None, f"{type(error).__name__}: {error}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("golden", type=Path, help="folder of golden vectors")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    torch.set_num_threads(min(torch.get_num_threads(), 2))
    rows = []
    for row in replay(arguments.golden):
        rows.append(row)
        error = row.note if row.error is None else f"{row.error:.2e}"
        gate = "" if row.gate is None else f"{row.gate:.0e}"
        print(f"{row.name:64} {error:>10} {gate:>7}  {'ok' if row.passed else 'FAIL'}", flush=True)
    failed = sum(not row.passed for row in rows)
    print(f"{len(rows)} comparisons, {failed} failed")
    if arguments.json:
        content = [{**asdict(row), "passed": row.passed} for row in rows]
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
