"""Scorers: a preview's pixels and its prompt in, named numbers out. One scorer a file; docs/scorers.md compares them.

A scorer is any class with `names`, an `__init__` that takes its options and a `__call__` (see `Scorer`). Settings name
it by a short name below or by a dotted path such as `my_package.taste.Taste`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import keyword
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from flashvideo_ray.scorers import columns

SHORT_NAMES = {
    "motion": "flashvideo_ray.scorers.motion.Motion",
    "flicker": "flashvideo_ray.scorers.flicker.Flicker",
    "sharpness": "flashvideo_ray.scorers.sharpness.Sharpness",
    "exposure": "flashvideo_ray.scorers.exposure.Exposure",
    "sanity": "flashvideo_ray.scorers.sanity.Sanity",
    "cuts": "flashvideo_ray.scorers.cuts.Cuts",
    "phash": "flashvideo_ray.scorers.phash.PHash",
    "clip": "flashvideo_ray.scorers.clip.Clip",
    "siglip": "flashvideo_ray.scorers.siglip.Siglip",
    "aesthetic": "flashvideo_ray.scorers.aesthetic.Aesthetic",
    "video-lm": "flashvideo_ray.scorers.video_lm.VideoLM",
    "nsfw": "flashvideo_ray.scorers.nsfw.NSFW",
    "opennsfw": "flashvideo_ray.scorers.opennsfw.OpenNSFW",
    "watermark": "flashvideo_ray.scorers.watermark.Watermark",
}


class Scorer(Protocol):
    """What a scorer looks like. It is built once in each worker with its options as keyword arguments."""

    names: ClassVar[tuple[str, ...]]
    """The numbers it gives; they become the ledger's columns `score_<name>`."""

    def __call__(self, frames: NDArray[np.uint8], prompt: str) -> dict[str, float]:
        """Measure one preview: RGB uint8 `[frames, height, width, 3]`. Returns a number for each of `names`."""
        ...


def path_of(name: str) -> str:
    """The dotted path that a short name stands for; a dotted path stays. Imports nothing."""
    return SHORT_NAMES.get(name, name)


def resolve(name: str) -> type[Scorer]:
    """The scorer class behind a short name or a dotted path, not yet built: enough to know its `names`.

    Raises:
        ValueError: no such short name, nothing at that path, or what is there is no scorer.
    """
    module_name, _, attribute = path_of(name).rpartition(".")
    if not module_name:
        near = difflib.get_close_matches(name, SHORT_NAMES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(SHORT_NAMES)}, or use a dotted path"
        raise ValueError(f"unknown scorer {name!r}: {hint}")
    try:
        scorer = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"scorer {name!r} cannot be imported: {error}") from error
    named = isinstance(getattr(scorer, "names", None), tuple)
    if not (isinstance(scorer, type) and named and "__call__" in dir(scorer)):  # every class is itself callable
        raise ValueError(f"{name!r} is no scorer: it must be a class with `names`, a tuple of strings, and `__call__`")
    return scorer


def check(name: str, options: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """The names of the numbers that a scorer will give. Builds nothing: a model may be gigabytes, and on other nodes.

    Raises:
        ValueError: as `resolve`, or the scorer does not take these options.
    """
    scorer = resolve(name)
    try:
        inspect.signature(scorer).bind(**(options or {}))
    except TypeError as error:
        raise ValueError(f"scorer {name!r} does not take these options: {error}") from error
    wrong = [
        each
        for each in scorer.names
        if not str(each).isidentifier() or keyword.iskeyword(each) or each in columns.TAKEN
    ]
    if wrong:
        raise ValueError(f"scorer {name!r} calls a number {wrong[0]!r}: no rule could use that name, or it is taken")
    return scorer.names


def load(name: str, options: Mapping[str, Any] | None = None, *, fps: float | None = None) -> Scorer:
    """Build a scorer by its short name or dotted path.

    `fps`, the frame rate of the previews, goes to a scorer whose constructor takes one and whose options give none.

    Raises:
        ValueError: as `resolve`, or the scorer does not take these options.
    """
    scorer = resolve(name)
    options = dict(options or {})
    if fps is not None and "fps" in inspect.signature(scorer).parameters:
        options.setdefault("fps", fps)
    try:
        return scorer(**options)
    except TypeError as error:
        raise ValueError(f"scorer {name!r} does not take these options: {error}") from error
