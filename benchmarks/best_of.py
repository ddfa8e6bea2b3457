"""What selection on previews is worth with the nano model: faithful clips, and CPU seconds for each of them.

    python benchmarks/best_of.py [--prompts 200] [--candidates 8] [--threads 1] [--json results.json]

Makes so many previews of every held-out prompt. Of the first 1, 2, 4, … of them the one that the nano model's own CLIP
ranks first is refined, and the clip is read by the judge, which neither CLIP nor stage 1 has ever seen. A clip is
faithful if background, colour, motion and shape are as the prompt says. CPU seconds are of this process, measured in
the same run; `refine everything` pays stage 2 for all N candidates and then takes the same one.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flashvideo_ray.nano import judge, path
from flashvideo_ray.nano.evaluate import Evaluation
from flashvideo_ray.nano.measure import all_right


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", type=Path, default=path())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    evaluation, clock = Evaluation(args.model, args.prompts, torch.bfloat16), Clock()
    prompts = [row["prompt"] for row in evaluation.rows]
    latents, scores, right = [], [], []
    for candidate in range(args.candidates):
        frames, low = clock("preview", partial(evaluation.previews, candidate))
        latents.append(low)
        scores.append(clock("score", partial(evaluation.clip, torch.stack(frames), prompts)))
        right.append([all_right(judge.read(f), row) for f, row in zip(frames, evaluation.rows, strict=True)])
        print(f"candidate {candidate}: {sum(right[-1]) / len(prompts):.1%} of the previews are faithful", flush=True)
    made = args.candidates * len(prompts)
    ranked = torch.stack(scores)
    counts = [1 << n for n in range(args.candidates.bit_length()) if 1 << n <= args.candidates]
    chosen = {n: ranked[:n].argmax(0).tolist() for n in counts}
    clips: dict[tuple[int, int], bool] = {}
    for n in counts:
        for i, candidate in enumerate(chosen[n]):
            if (i, candidate) not in clips:
                video = clock("refine", partial(refined, evaluation, i, latents[candidate][i]))
                clips[i, candidate] = all_right(judge.read(video), evaluation.rows[i])
    each = {name: clock.seconds[name] / made for name in ("preview", "score")}
    each["refine"] = clock.seconds["refine"] / len(clips)
    rows = []
    for n in counts:
        share = sum(clips[i, c] for i, c in enumerate(chosen[n])) / len(prompts)
        oracle = sum(any(right[c][i] for c in range(n)) for i in range(len(prompts))) / len(prompts)
        selected = n * (each["preview"] + each["score"]) + each["refine"]
        everything = n * (each["preview"] + each["score"] + each["refine"])
        rows.append({"n": n, "faithful": share, "oracle": oracle, "selected": selected, "everything": everything})
    print(json.dumps(each))
    print("| best of | faithful clips | a faithful one was there | CPU s a faithful clip | refine everything |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows:
        per = [f"{row[name] / row['faithful']:.1f}" if row["faithful"] else "-" for name in ("selected", "everything")]
        print(f"| {row['n']} | {row['faithful']:.1%} | {row['oracle']:.1%} | {per[0]} | {per[1]} |")
    if args.json:
        args.json.write_text(json.dumps({"prompts": len(prompts), "seconds": each, "rows": rows}, indent=2))


def refined(evaluation: Evaluation, index: int, latents: torch.Tensor) -> torch.Tensor:
    """The clip of one preview, `[frames, 3, height, width]` in 0..1."""
    result = evaluation.refine(
        evaluation.rows[index]["prompt"],
        preview_latents=latents[None],
        generator=torch.Generator().manual_seed(index),
    )
    return result.frames[0]


if __name__ == "__main__":
    main()
