"""Models as the pipeline's stages run them: what a stage may ask of one, and which one settings name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flashvideo_ray.engines import weights
from flashvideo_ray.engines.existing import Existing
from flashvideo_ray.engines.flashvideo import FlashVideo
from flashvideo_ray.engines.nano import Nano
from flashvideo_ray.engines.no_refiner import NoRefiner

if TYPE_CHECKING:
    from flashvideo_ray.engines.engine import Engine, Vocabulary
    from flashvideo_ray.engines.weights import ModelStage
    from flashvideo_ray.settings import Settings

EXISTING = Existing.name
"""The name of no model of stage 1: previews are fetched."""


def of(settings: Settings, stage: ModelStage) -> Engine:
    """The engine of one stage. Nothing is loaded."""
    model = getattr(settings, stage).model
    if model == "nano":
        return Nano(settings, stage)
    if model == EXISTING and stage == "preview":
        return Existing(settings)
    if model == NoRefiner.name and stage == "refine":
        return NoRefiner(settings)
    if weights.is_pipeline(model):
        from flashvideo_ray.engines.pipelines import Pipeline  # and diffusers, which few processes need

        return Pipeline(settings, stage)
    return FlashVideo(settings, stage)


def with_model_defaults(settings: Settings) -> Settings:
    """The settings with every null in `preview` and `refine` replaced by what the models themselves state.

    Hub models are pinned to their commit. So that a recipe holds what was really used. Raises ModelNotFoundError.
    """
    return settings.model_copy(update={str(stage): of(settings, stage).resolved() for stage in _MODELS})


def fps_of(settings: Settings) -> float | None:
    """Frames a second of previews and clips: as set, or as stage 1 says. None: neither does."""
    return settings.video.fps or of(settings, "preview").describe().fps


def text_readers(settings: Settings) -> dict[ModelStage, ModelStage | None]:
    """For each stage the one whose text encoder works for it: its own, or stage 1's. None: it reads texts itself."""
    spaces = {stage: of(settings, stage).describe().text_space for stage in _MODELS}
    shared = spaces["preview"] == spaces["refine"]
    return {stage: None if space is None else ("preview" if shared else stage) for stage, space in spaces.items()}


def vocabulary_of(model: str) -> Vocabulary | None:
    """The words that a model was trained on, if they are only some."""
    return Nano.vocabulary if model == "nano" else None


_MODELS: tuple[ModelStage, ...] = ("preview", "refine")
