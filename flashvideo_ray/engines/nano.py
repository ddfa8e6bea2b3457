"""The tiny model that ships with the package, as an engine: FlashVideo in all but the words that it knows."""

from __future__ import annotations

from collections.abc import Sequence

from flashvideo_ray.engines.engine import Vocabulary
from flashvideo_ray.engines.flashvideo import FlashVideo
from flashvideo_ray.nano import vocabulary


class _Words:
    """See `engine.Vocabulary`."""

    examples: Sequence[str] = vocabulary.EXAMPLES

    def unknown_words(self, prompt: str) -> list[str]:
        """See Vocabulary."""
        return vocabulary.unknown_words(prompt)


class Nano(FlashVideo):
    """See `engine.Engine`."""

    vocabulary: Vocabulary | None = _Words()
