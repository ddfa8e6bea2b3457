"""What selection on previews is worth: faithful clips of the best of 1, 2, 4, 8, and CPU seconds for each of them.

Of the first N previews of a prompt the one that the nano model's CLIP ranks first is refined, and the clip is read by
the judge, which neither CLIP nor stage 2 has ever seen. A clip is faithful if background, colour, motion and shape are
as the prompt says. `refine everything` pays stage 2 for all N candidates and then takes the same one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from . import judge
from .clip import NanoClip
from .measure import all_right


class Models(Protocol):
    """What is needed of an evaluation: prompts, and what makes and ranks previews and clips of them."""

    rows: list[dict[str, Any]]
    clip: NanoClip

    def previews(self, candidate: int = 0, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Frames and latents of one candidate of every prompt."""

    def clip_of(self, index: int, latents: Tensor) -> Tensor:
        """Frames of the clip of one prompt."""


class Clock:
    """CPU seconds of this process, by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        """Do the work and add its seconds to those of the name."""
        begin = time.process_time()
        result = work()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - begin
        return result


def best_of(evaluation: Models, counts: Sequence[int] = (1, 2, 4, 8), steps: int | None = None) -> dict[str, Any]:
    """The figures: CPU seconds of a preview, its score and a refine, and a row for each of `counts`.

    `steps` of stage 1; None: the model's own number.
    """
    clock, rows = Clock(), evaluation.rows
    latents: list[list[Tensor]] = []
    scores: list[Tensor] = []
    right: list[list[bool]] = []
    for candidate in range(max(counts)):
        frames, low = clock("preview", partial(evaluation.previews, candidate, num_inference_steps=steps))
        latents.append(low)
        scores.append(clock("score", partial(evaluation.clip, torch.stack(frames), [row["prompt"] for row in rows])))
        right.append([all_right(judge.read(f), row) for f, row in zip(frames, rows, strict=True)])
        print(f"candidate {candidate}: {sum(right[-1]) / len(rows):.1%} of the previews are faithful", flush=True)
    ranked, faithful = torch.stack(scores), torch.tensor(right)
    chosen = {n: ranked[:n].argmax(0).tolist() for n in counts}
    clips: dict[tuple[int, int], bool] = {}
    for index, candidate in sorted({pair for n in counts for pair in enumerate(chosen[n])}):
        video = clock("refine", partial(evaluation.clip_of, index, latents[candidate][index]))
        clips[index, candidate] = all_right(judge.read(video), rows[index])
    made = {"preview": faithful.numel(), "score": faithful.numel(), "refine": len(clips)}
    each = {name: clock.seconds[name] / count for name, count in made.items()}
    return {
        "cpu_seconds": each,
        "rows": [
            {
                "n": n,
                "previews": float(faithful[chosen[n], range(len(rows))].float().mean()),
                "clips": sum(clips[pair] for pair in enumerate(chosen[n])) / len(rows),
                "oracle": float(faithful[:n].any(0).float().mean()),
                "selected": n * (each["preview"] + each["score"]) + each["refine"],
                "everything": n * (each["preview"] + each["score"] + each["refine"]),
            }
            for n in counts
        ],
        "one": float(faithful.float().mean()),  # of all candidates
    }


def errors_removed(results: dict[str, Any], n: int = 4) -> float:
    """The share of one preview's errors that the best of `n` does not have."""
    [row] = [row for row in results["rows"] if row["n"] == n]
    return float((row["previews"] - results["one"]) / max(1 - results["one"], 1e-9))


def table(results: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        "| best of | faithful previews | faithful clips | one of N faithful | CPU s a faithful clip | refine all |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in results["rows"]:
        shares = " | ".join(f"{row[name]:.1%}" for name in ("previews", "clips", "oracle"))
        costs = " | ".join(f"{row[name] / max(row['clips'], 1e-9):.1f}" for name in ("selected", "everything"))
        lines.append(f"| {row['n']} | {shares} | {costs} |")
    return "\n".join(lines)
