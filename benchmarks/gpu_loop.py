"""Section on the refine stage as an actor runs it: does the card wait for encoding and storing?"""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from gpu_bench import Bench, Result
from safetensors.torch import save

LOOP_GATE = 0.97  # of the bare model's pace
LITTLE = 0.85  # of the memory that a call has in use at once


class Told:
    """A stage's events, of which nobody hears."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        from flashvideo_ray.graph.events import Attempt

        answers = {"starting": 0.0, "begin": 1, "attempt": Attempt(1, overdue=False), "admit": "go"}
        return lambda *args, **kwargs: answers.get(name)


def loop(bench: Bench) -> Iterator[Result]:
    """The refine stage as an actor runs it, two calls at a time, over the bare model; then with too little memory.

    Clips have half the released height and width: a card has less to do for each of their pixels, so that it would
    sooner wait for encoding and storing.
    """
    if find_spec("av") is None:
        yield Result("the stage's own loop", "not measured: PyAV is not installed")
        return
    from flashvideo_ray import engines
    from flashvideo_ray.graph.stage_base import row_schema
    from flashvideo_ray.graph.stages import Refine
    from flashvideo_ray.ledger.store import Store
    from flashvideo_ray.settings import Settings

    bench.forget()
    bench = replace(bench, refine_size=(544, 960), models={})
    model = bench.folder / "model"
    for stage in ("preview", "refine"):  # the settings name both; the stage loads its own
        bench.pipe("refine" if stage == "refine" or not bench.tiny else "preview").save_pretrained(model / stage)
    bench.refine(num_inference_steps=1)
    bare = bench.measured("refine")
    bench.forget()
    dtype = str(bench.dtype).removeprefix("torch.")
    settings = Settings.of_tree(
        {
            "preview": {"model": str(model)},
            "refine": {
                "model": str(model),
                "dtype": dtype,
                "num_inference_steps": bench.steps("refine"),
                **bench.size("refine"),
            },
            "pools": {"refine": {"num_gpus": 1}},
        }
    )
    prints = {"refine": engines.of(settings, "refine").fingerprint()}
    provenance = {"model_fingerprints": json.dumps(prints)}
    settings = engines.with_model_defaults(settings) if bench.tiny else settings
    actor = Refine(settings, Told(), Store(str(bench.folder / "run")), fps=8, provenance=provenance)
    latents = save({"latents": bench.latents("preview")[0].cpu()})
    embeds = save({"refine.prompt.prompt_embeds": bench.embeds("refine")[0]})

    def render(number: int) -> tuple[float, dict[str, Any]]:
        row = {**dict.fromkeys(row_schema().names), "clip_id": f"{number:020x}", "id": "a", "prompt": "a"}
        told = {"seed": number, "candidate": 0, "status": "previewed"}
        done = actor.process({**row, **told, "preview_latents": latents, "prompt_embeds": embeds})
        return time.perf_counter(), done

    # The first warms up, and the last has nothing beside it while it is encoded: from the second's end to the last's.
    with ThreadPoolExecutor(2) as calls:
        _, *ends = (at for at, _ in calls.map(render, range(3 if bench.tiny else 5)))
    taken = (ends[-1] - ends[0]) / (len(ends) - 1)
    yield Result("the bare model", bare.seconds, "s a clip")
    yield Result("the stage, encoding and storing beside it", taken, "s a clip")
    share = bare.seconds / taken
    yield Result(
        "pace of the stage over that of the model", share, "", f">= {LOOP_GATE}", bench.verdict(share >= LOOP_GATE)
    )
    if not bench.card:
        yield Result("with too little memory", "not measured: it takes a card")
        return
    bench.free()
    torch.cuda.set_per_process_memory_fraction(LITTLE * bare.used / torch.cuda.mem_get_info()[1])
    name, started = f"a clip with {LITTLE:.0%} of the memory that it has in use", time.perf_counter()
    try:
        ended, done = render(99)
    except torch.OutOfMemoryError as error:
        yield Result(name, f"out of memory: {error}", "", "rendered", False)
    else:
        yield Result(name, ended - started, "s", "rendered", bool(done["memory_note"]))
        yield Result("what was done for it", str(done["memory_note"]))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
