"""What engines without weights have in common: nothing is read, fetched, verified or loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from flashvideo_ray.engines.engine import Vocabulary
from flashvideo_ray.settings import Settings


class Weightless:
    """Most of `engine.Engine`, for what stands in the place of a model. Its name is its fingerprint."""

    name: str
    vocabulary: Vocabulary | None = None

    def __init__(self, settings: Settings):
        self.settings = settings

    def refusal(self, num_frames: int | None, height: int | None, width: int | None) -> str | None:
        """See Engine. It takes all frames."""
        return None

    def on_negative_prompts(self) -> str | None:
        """See Engine."""
        return None

    def source(self) -> None:
        """See Engine. It has none."""

    def fingerprint(self) -> str:
        """See Engine."""
        return self.name

    def text_fingerprint(self) -> str:
        """See Engine."""
        return self.name

    def verify(self, fingerprint: str) -> None:
        """See Engine."""

    def networks(self) -> None:
        """See Engine. Not known."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """See Engine."""
        return [0 for _ in texts]

    def load_text(self) -> NoReturn:
        """See Engine. It reads none: the graph asks for no text of it."""
        raise TypeError(f"{self.name} reads no text")

    def load_preview(self) -> NoReturn:
        """See Engine. The graph has no such stage 1 to load."""
        raise TypeError(f"{self.name} is no stage 1 that is loaded")
