"""Measure the nano model on its held-out prompts: `python -m flashvideo_ray.nano.evaluate` prints a table, writes JSON.

One candidate a prompt, no selection, the model's own defaults, everything through the pipelines that users run.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from flashvideo_ray.models import FlashVideoPreviewPipeline, FlashVideoRefinePipeline

from . import best_of, heldout_prompts, path, world
from .captions import caption
from .clip import NanoClip
from .make_prompts import heldout_scenes
from .measure import psnr, shares, ssim

BATCH = 8
DRAFT_STEPS = 4
"""Of stage 1, a fifth of the model's own: previews that fail more often."""
CORRUPTIBLE = ("shape", "color", "motion", "background")


class Evaluation:
    """The model, `count` held-out prompts with the scenes behind them, and the results so far."""

    def __init__(self, model: Path, count: int, dtype: torch.dtype) -> None:
        begin = time.perf_counter()
        self.preview = FlashVideoPreviewPipeline.from_pretrained(model / "preview", dtype=dtype)
        self.refine = FlashVideoRefinePipeline.from_pretrained(
            model / "refine",
            dtype=dtype,
            tokenizer=self.preview.tokenizer,
            text_encoder=self.preview.text_encoder,
        )
        self.clip = NanoClip(model / "clip")
        for pipe in (self.preview, self.refine):
            pipe.set_progress_bar_config(disable=True)
        self.results: dict[str, Any] = {"prompts": count, "load_seconds": time.perf_counter() - begin}
        self.rows = pq.read_table(heldout_prompts()).to_pylist()[:count]
        self.scenes = heldout_scenes()[slice(0, count)]

    def previews(self, candidate: int = 0, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Frames and latents of one candidate of every prompt."""
        frames, latents = [], []
        for first in range(0, len(self.rows), BATCH):
            rows = self.rows[first : first + BATCH]
            seeds = [torch.Generator().manual_seed(10_000 * candidate + first + i) for i in range(len(rows))]
            out = self.preview([row["prompt"] for row in rows], generator=seeds, **options)
            frames += list(out.frames)
            latents += list(out.latents)
        return frames, latents

    def clips(self, count: int, steps: int | None = None, **inputs: list[Tensor]) -> list[Tensor]:
        """Refined frames of the first `count` prompts, from `frames=` or `preview_latents=`."""
        ((name, videos),) = inputs.items()
        return [self._refined(i, num_inference_steps=steps, **{name: videos[i][None]}) for i in range(count)]

    def clip_of(self, index: int, latents: Tensor) -> Tensor:
        """Refined frames [frames, 3, height, width] in 0..1 of one preview of prompt `index`."""
        return self._refined(index, preview_latents=latents[None])

    def _refined(self, index: int, **options: Any) -> Tensor:
        refine: Any = self.refine
        result = refine(self.rows[index]["prompt"], generator=torch.Generator().manual_seed(index), **options)
        frames: Tensor = result.frames[0]
        return frames

    def truth(self, i: int, scale: int) -> Tensor:
        """The scene behind prompt `i`, [frames, 3, height, width] in 0..1."""
        return world.render(self.scenes[slice(i, i + 1)], scale)[0]

    def stage1(self) -> list[Tensor]:
        """Attributes of one preview a prompt; returns the latents."""
        frames, latents = self.previews()
        self.results["stage1"] = shares(frames, self.rows)
        return latents

    def stage2(self, latents: list[Tensor], count: int) -> None:
        """Against bilinear on ground truth; textures and attributes on ground truth and on previews."""
        lows = [self.truth(i, 1) for i in range(count)]
        self.results["stage2_truth"] = self._fidelity(self.clips(count, frames=lows), lows)
        bilinear = [_bilinear(low) for low in lows]
        self.results["bilinear"] = self._fidelity(bilinear, lows)
        wanted = self.rows[:count]
        before = [self.preview.decode_latents(one[None])[0] for one in latents[:count]]
        after = self.clips(count, preview_latents=latents)
        self.results["previews_before_stage2"] = shares(before, wanted)
        self.results["stage2_previews"] = shares(after, wanted)

    def _fidelity(self, clips: list[Tensor], lows: list[Tensor]) -> dict[str, float]:
        highs = [self.truth(i, world.SCALE) for i in range(len(lows))]
        pairs = list(zip(clips, highs, strict=True))
        return {
            "psnr": statistics.fmean(psnr(clip, high) for clip, high in pairs),
            "ssim": statistics.fmean(ssim(clip, high) for clip, high in pairs),
            **shares(clips, self.rows[: len(clips)]),
        }

    def nfe(self, count: int) -> None:
        """Stage 2 with 1 … 8 network evaluations, on ground truth."""
        lows = [self.truth(i, 1) for i in range(count)]
        self.results["nfe"] = {
            steps: self._fidelity(self.clips(count, steps, frames=lows), lows) for steps in range(1, 9)
        }

    def scorer(self) -> None:
        """How often the right caption beats one with a single attribute changed, on ground truth."""
        right: dict[str, list[bool]] = {name: [] for name in CORRUPTIBLE}
        for i in range(len(self.rows)):
            words, rng = self.scenes.words(i), random.Random(i)
            captions = [caption(words, random.Random(i))]
            for name in CORRUPTIBLE:
                other = rng.choice([value for value in world.ATTRIBUTES[name] if value != words[name]])
                captions.append(caption({**words, name: other}, random.Random(i)))
            score = self.clip(self.truth(i, 1)[None].expand(len(captions), -1, -1, -1, -1), captions)
            for name, value in zip(CORRUPTIBLE, score[1:], strict=True):
                right[name].append(bool(score[0] > value))
        self.results["clip"] = {name: statistics.fmean(values) for name, values in right.items()}

    def speed(self, repeats: int = 5) -> None:
        """Seconds of a whole video, text to high-resolution frames."""
        seconds = []
        for i in range(repeats + 1):
            begin = time.perf_counter()
            prompt, seed = self.rows[i]["prompt"], torch.Generator().manual_seed(i)
            first = self.preview(prompt, generator=seed, output_type="latent")
            self.refine(prompt, preview_latents=first.latents, generator=seed)
            seconds.append(time.perf_counter() - begin)
        self.results["seconds_a_video"] = statistics.median(seconds[1:])
        self.results["threads"] = torch.get_num_threads()


def _bilinear(low: Tensor) -> Tensor:
    return F.interpolate(low, scale_factor=world.SCALE, mode="bilinear", align_corners=False)


def table(results: dict[str, Any]) -> str:
    """The results beside the floors and goals that were set before training."""
    lines = ["| figure | floor | goal | measured |", "| --- | --- | --- | --- |"]

    def line(name: str, floor: str, goal: str, *values: float) -> None:
        lines.append(f"| {name} | {floor} | {goal} | {' / '.join(f'{v:.3g}' for v in values)} |")

    if one := results.get("stage1"):
        order = ("background", "color", "motion", "shape")
        goals = (".98 / .95 / .75 / .75", ".99 / .97 / .90 / .90")
        line("stage 1: background / colour / motion / shape", *goals, *(one[k] for k in order))
        line("all four", ".50", ".80", one["all"])
    if two := results.get("stage2_truth"):
        base, made = results["bilinear"], results["stage2_previews"]
        line("stage 2 over bilinear, PSNR (dB)", "> 0", "1.5", two["psnr"] - base["psnr"])
        line("stage 2 over bilinear, SSIM", "> 0", "> 0", two["ssim"] - base["ssim"])
        line("texture: on ground truth / on previews", ".70 / .60", ".85 / .75", two["texture"], made["texture"])
        before = results["previews_before_stage2"]
        names = ("background", "color", "motion", "shape")
        line("attributes after stage 2, worst change", "-.03", "0", min(made[k] - before[k] for k in names))
    if clip := results.get("clip"):
        line("CLIP over a corrupted caption, worst attribute", ".80", ".90", min(clip.values()))
    if best := results.get("best_of"):
        line("errors that best-of-4 removes", ".33", ".50", best_of.errors_removed(best))
    if drafts := results.get("best_of_drafts"):
        line(f"the same of {DRAFT_STEPS}-step previews", "", "", best_of.errors_removed(drafts))
    if "seconds_a_video" in results:
        line("seconds a video", "6", "4", results["seconds_a_video"])
    return "\n".join(lines)


def nfe_table(results: dict[int, dict[str, float]]) -> str:
    """Stage 2 by its number of network evaluations, on ground-truth previews."""
    lines = ["| evaluations | PSNR (dB) | SSIM | texture |", "| --- | --- | --- | --- |"]
    for steps, one in results.items():
        lines.append(f"| {steps} | {one['psnr']:.1f} | {one['ssim']:.3f} | {one['texture']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Evaluate the model in the package, or another folder."""
    parser = argparse.ArgumentParser(prog="flashvideo_ray.nano.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, default=path())
    parser.add_argument("--count", type=int, default=200, help="held-out prompts, at most 400")
    parser.add_argument("--parts", nargs="+", default=["speed", "stage1", "stage2", "nfe", "clip", "best", "draft"])
    parser.add_argument("--nfe-count", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--json", type=Path, default=Path("build/nano-eval.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    evaluation = Evaluation(arguments.model, arguments.count, getattr(torch, arguments.dtype))
    parts = set(arguments.parts)
    if "speed" in parts:
        evaluation.speed()
    latents = evaluation.stage1() if parts & {"stage1", "stage2"} else []
    if "stage2" in parts:
        evaluation.stage2(latents, arguments.count)
    if "nfe" in parts:
        evaluation.nfe(min(arguments.nfe_count, arguments.count))
    if "clip" in parts:
        evaluation.scorer()
    if "best" in parts:
        evaluation.results["best_of"] = best_of.best_of(evaluation)
    if "draft" in parts:
        evaluation.results["best_of_drafts"] = best_of.best_of(evaluation, (1, 2, 4), DRAFT_STEPS)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(evaluation.results, indent=1) + "\n")
    print(json.dumps(evaluation.results, indent=1))
    print(table(evaluation.results))
    if "nfe" in evaluation.results:
        print(f"\n{nfe_table(evaluation.results['nfe'])}")
    for name in ("best_of", "best_of_drafts"):
        if name in evaluation.results:
            print(f"\n{best_of.table(evaluation.results[name])}")


if __name__ == "__main__":
    main()
