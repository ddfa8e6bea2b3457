"""What the pipeline knows of a model: a small protocol, behind which FlashVideo stands, and others may.

An `Engine` is one stage's model as settings name it. It is cheap: it answers questions about itself before anything is
loaded, on a machine without a card. What it loads runs in an actor. No engine knows Ray, and no stage knows an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch

StepTold = Callable[[int, int], None]
"""Is told how many steps of how many are done."""


class NonFiniteError(ValueError):
    """A model gave NaN or infinite values."""


def check_finite(values: torch.Tensor, source: str) -> None:
    """Raise NonFiniteError, which names the source, unless all values are finite."""
    finite = values.isfinite()
    if not finite.all():
        bad = (~finite).float().mean().item()
        raise NonFiniteError(f"{source} gave NaN or infinite values ({bad:.1%} of them)")


@dataclass(frozen=True)
class Description:
    """What one stage's model makes with the settings it was asked with."""

    height: int
    """Pixels, as they come out: what was asked for, floored to what the model can make."""
    width: int
    num_frames: int | None
    """None, and so with fps: as many as it is given."""
    fps: float | None
    num_inference_steps: int
    prompt_prefix: str
    """Is put before each prompt."""
    max_tokens: int
    """Of a prompt and its prefix; what is longer is cut."""
    latent_space: str
    """Of the preview latents that stage 1 makes and stage 2 takes: they fit where both name the same."""


class Vocabulary(Protocol):
    """The words of a model that knows only some."""

    examples: Sequence[str]
    """Prompts such as it was trained on."""

    def unknown_words(self, prompt: str) -> list[str]:
        """Those of a prompt that it does not know, in lower case, each once."""


class TextModel(Protocol):
    """A text encoder that is loaded."""

    def encode(self, text: str, prefix: str = "") -> torch.Tensor:
        """Embeddings `[tokens, width]` on the CPU. Raises NonFiniteError."""


class PreviewModel(Protocol):
    """Stage 1 that is loaded."""

    device_name: str

    def sample(
        self, prompt_embeds: torch.Tensor, negative_embeds: torch.Tensor | None, seed: int, told: StepTold
    ) -> tuple[torch.Tensor, str | None]:
        """Latents on the CPU, in the space that the description names, and a note if they came otherwise than asked.

        Raises NonFiniteError.
        """

    def decode(self, latents: torch.Tensor) -> tuple[np.ndarray, str | None]:
        """RGB uint8 `[frames, height, width, 3]`, and a note likewise. Raises NonFiniteError."""


class RefineModel(Protocol):
    """Stage 2 that is loaded."""

    device_name: str

    def refine(
        self,
        preview_latents: torch.Tensor,
        prompt_embeds: torch.Tensor,
        negative_embeds: torch.Tensor | None,
        seed: int,
        told: StepTold,
    ) -> tuple[np.ndarray, str | None]:
        """RGB uint8 `[frames, height, width, 3]`, and a note if they came otherwise than asked.

        Raises NonFiniteError.
        """


class Engine(Protocol):
    """One stage's model."""

    vocabulary: Vocabulary | None
    """None where it was trained on language at large."""
    ignores_negative_prompt: bool
    """Whether a negative prompt is something that it was not trained with."""

    def describe(self) -> Description:
        """See Description. Raises ModelNotFoundError."""

    def problems(self) -> list[str]:
        """One line for each setting that it cannot do, with its key. Raises ModelNotFoundError."""

    def fingerprint(self) -> str:
        """A hex digest of its weights and configuration: equal content, equal digest. Raises ModelNotFoundError."""

    def verify(self, fingerprint: str) -> None:
        """Raise WeightsError unless the weights that this machine has are those of the fingerprint."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, the end among them, uncut."""

    def load_text(self) -> TextModel:
        """Load the text encoder onto this process's device."""

    def load_preview(self) -> PreviewModel:
        """Load stage 1 likewise."""

    def load_refine(self) -> RefineModel:
        """Load stage 2 likewise."""
