"""What a run has exactly one of, and what is recorded about it: for run.json."""

from __future__ import annotations

import logging
import platform
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from flashvideo_ray import engines
from flashvideo_ray.engines.weights import ModelStage
from flashvideo_ray.settings import ScorerSettings, Settings
from flashvideo_ray.versions import version_of

log = logging.getLogger("flashvideo_ray")


def recipe_of(settings: Settings, fingerprints: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a run has exactly one of. Models stand in it by fingerprint: where their files are does not matter.

    Those are read from the models' files unless they are given.
    """
    recipe = settings.recipe()
    if fingerprints is None:
        fingerprints = _fingerprints(settings)
    return {**recipe, "fps": engines.fps_of(settings), "fingerprints": dict(fingerprints)}


def _fingerprints(settings: Settings) -> dict[str, str]:
    stages: tuple[ModelStage, ...] = ("preview", "refine")
    found: dict[str, str] = {stage: engines.of(settings, stage).fingerprint() for stage in stages}
    if engines.text_readers(settings)["refine"] == "refine":  # another one than stage 1's
        found["refine_text"] = engines.of(settings, "refine").text_fingerprint()
    return found


def sizes(settings: Settings) -> dict[str, dict[str, list[int | None]]]:
    """Height and width of each stage, as asked and as they come out: what is asked for is rounded down to a grid.

    None: as they are given.
    """
    found = {}
    stage: ModelStage
    for stage in ("preview", "refine"):
        own, made = getattr(settings, stage), engines.of(settings, stage).describe()
        found[str(stage)] = {"asked": [own.height, own.width], "used": [made.height, made.width]}
    return found


def about(settings: Settings, candidates: int) -> dict[str, Any]:
    """What run.json records beside the recipe."""
    return {
        "settings": settings.model_dump(mode="json"),
        "sizes": sizes(settings),
        "candidates": candidates,
        "command": shlex.join(sys.argv),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of what decides how things come out. Raises NotInstalledError."""
    packages = ("flashvideo-ray", "ray", "torch", "diffusers", "transformers")
    return {"python": platform.python_version(), **{name: version_of(name) for name in packages}}


def with_added_scorers(settings: Settings, run: Mapping[str, Any] | None) -> Settings:
    """The settings with the scorers that `score` gave to a run since it was started.

    They belong to the run: a command that starts it again need not name them, and new previews get these scores, too.
    """
    own = {spec.name for spec in settings.score.scorers}
    more = [
        ScorerSettings.model_validate(spec) for spec in (run or {}).get("added_scorers", []) if spec["name"] not in own
    ]
    if not more:
        return settings
    log.warning(
        "this run has further scores, of `score`, that new previews get too: %s", ", ".join(s.name for s in more)
    )
    score = settings.score.model_copy(update={"scorers": (*settings.score.scorers, *more)})
    return settings.model_copy(update={"score": score})
