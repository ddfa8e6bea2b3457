"""Section on the refine stage as an actor runs it: does the card wait for encoding and storing?"""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import Any

from gpu_bench import Bench, Result

LOOP_GATE = 0.97  # of the bare model's pace


class Told:
    """A stage's events, of which nobody hears."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        from flashvideo_ray.graph.events import Attempt

        answers = {"starting": 0.0, "begin": 1, "attempt": Attempt(1, overdue=False), "admit": "go"}
        return lambda *args, **kwargs: answers.get(name)


def loop(bench: Bench) -> Iterator[Result]:
    """Clips an hour of the refine stage as an actor runs it, two calls at a time, over those of the bare model."""
    if find_spec("av") is None:
        yield Result("the stage's own loop", "not measured: PyAV is not installed")
        return
    from safetensors.torch import save

    from flashvideo_ray import engines
    from flashvideo_ray.graph.stage_base import row_schema
    from flashvideo_ray.graph.stages import Refine
    from flashvideo_ray.ledger.store import Store
    from flashvideo_ray.settings import Settings

    model = bench.folder / "model"
    for stage in ("preview", "refine"):  # the settings name both; the stage loads its own
        config = bench.pipe("refine" if stage == "refine" or not bench.tiny else "preview")
        config.save_pretrained(model / stage)
    steps = min(3, bench.steps("refine"))  # so that all of this takes less than eight minutes
    bench.refine(num_inference_steps=1)
    bare = bench.seconds(partial(bench.refine, num_inference_steps=steps), 1, warm=True)
    bench.forget()
    dtype = str(bench.dtype).removeprefix("torch.")
    size = bench.size("refine")
    settings = Settings.of_tree(
        {
            "preview": {"model": str(model)},
            "refine": {"model": str(model), "dtype": dtype, "num_inference_steps": steps, **size},
            "pools": {"refine": {"num_gpus": 1}},
        }
    )
    prints = {"refine": engines.of(settings, "refine").fingerprint()}
    provenance = {"model_fingerprints": json.dumps(prints)}
    settings = engines.with_model_defaults(settings) if bench.tiny else settings
    actor = Refine(settings, Told(), Store(str(bench.folder / "run")), fps=8, provenance=provenance)
    latents = save({"latents": bench.latents("preview")[0].cpu()})
    embeds = save({"refine.prompt.prompt_embeds": bench.embeds("refine")[0]})

    def render(number: int) -> float:
        row = {**dict.fromkeys(row_schema().names), "clip_id": f"{number:020x}", "id": "a", "prompt": "a"}
        told = {"seed": number, "candidate": 0, "status": "previewed"}
        actor.process({**row, **told, "preview_latents": latents, "prompt_embeds": embeds})
        return time.perf_counter()

    # The first warms up, and the last has nothing beside it while it is encoded: from the second's end to the last's.
    with ThreadPoolExecutor(2) as calls:
        _, *ends = calls.map(render, range(3 if bench.tiny else 4))
    taken = (ends[-1] - ends[0]) / (len(ends) - 1)
    yield Result(f"the bare model, {steps} steps", bare, "s a clip")
    yield Result("the stage, encoding and storing beside it", taken, "s a clip")
    share = bare / taken
    yield Result(
        "pace of the stage over that of the model", share, "", f">= {LOOP_GATE}", bench.verdict(share >= LOOP_GATE)
    )
