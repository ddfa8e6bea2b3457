"""Models as the pipeline's stages run them: what a stage may ask of one, and which one settings name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flashvideo_ray.engines.flashvideo import FlashVideo
from flashvideo_ray.engines.nano import Nano

if TYPE_CHECKING:
    from flashvideo_ray.engines.engine import Engine, Vocabulary
    from flashvideo_ray.engines.weights import ModelStage
    from flashvideo_ray.settings import Settings


def of(settings: Settings, stage: ModelStage) -> Engine:
    """The engine of one stage. Nothing is loaded."""
    return Nano(settings, stage) if getattr(settings, stage).model == "nano" else FlashVideo(settings, stage)


def vocabulary_of(model: str) -> Vocabulary | None:
    """The words that a model was trained on, if they are only some."""
    return Nano.vocabulary if model == "nano" else None
