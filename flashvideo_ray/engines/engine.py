"""What the pipeline knows of a model: a small protocol, behind which FlashVideo stands, and others may.

An `Engine` is one stage's model as settings name it. It is cheap: it answers questions about itself before anything is
loaded, on a machine without a card. What it loads runs in an actor. No engine knows Ray, and no stage knows an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch

    from flashvideo_ray.engines.weights import Source
    from flashvideo_ray.settings import PreviewSettings, RefineSettings

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

    height: int | None
    """Pixels, as they come out: what was asked for, floored to what the model can make. None, and so with the next
    three: as it is given."""
    width: int | None
    num_frames: int | None
    fps: float | None
    """None for stage 1: the model does not say."""
    prompt_prefix: str = ""
    """Is put before each prompt."""
    max_tokens: int | None = None
    """Of a prompt and its prefix; what is longer is cut. None: not known, or it reads no prompt."""
    default_negative: str | None = None
    """What is encoded for a row without a negative prompt; None: nothing."""
    latent_space: str | None = None
    """Of the preview latents that stage 1 makes or stage 2 takes: they fit where both name the same. Elsewhere frames
    are handed over, and so where it is None."""
    text_space: str | None = None
    """Of the embeddings that it takes: stages that name the same share one encoder, stage 1's. None: it reads texts
    itself, or none."""


@dataclass(frozen=True)
class Text:
    """What a model is told of one candidate, and what a text encoder has made of it, if one has."""

    prompt: str
    negative_prompt: str | None = None
    embeds: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """By name, as `TextModel.encode` gave them: of the prompt."""
    negative_embeds: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Likewise of the negative prompt, or of what takes its place."""


class Vocabulary(Protocol):
    """The words of a model that knows only some."""

    examples: Sequence[str]
    """Prompts such as it was trained on."""

    def unknown_words(self, prompt: str) -> list[str]:
        """Those of a prompt that it does not know, in lower case, each once."""


class TextModel(Protocol):
    """A text encoder that is loaded."""

    def encode(self, text: str, prefix: str = "") -> Mapping[str, torch.Tensor]:
        """What is made of a text, by name, on the CPU. Raises NonFiniteError."""


class PreviewModel(Protocol):
    """Stage 1 that is loaded."""

    device_name: str

    def sample(self, text: Text, seed: int, told: StepTold) -> tuple[torch.Tensor | np.ndarray, str | None]:
        """Latents on the CPU, in the space that the description names, or frames as `decode` gives them where it names
        none; and a note if they came otherwise than asked.

        Raises NonFiniteError.
        """

    def decode(self, latents: torch.Tensor) -> tuple[np.ndarray, str | None]:
        """RGB uint8 `[frames, height, width, 3]`, and a note likewise. Raises NonFiniteError."""


class RefineModel(Protocol):
    """Stage 2 that is loaded."""

    device_name: str

    def refine(
        self, preview: torch.Tensor | np.ndarray, text: Text, seed: int, told: StepTold
    ) -> tuple[np.ndarray, str | None]:
        """RGB uint8 `[frames, height, width, 3]`, and a note if they came otherwise than asked.

        A preview is latents of the space that the description names, or RGB uint8 frames likewise. Raises
        NonFiniteError.
        """


class Engine(Protocol):
    """One stage's model."""

    vocabulary: Vocabulary | None
    """None where it was trained on language at large."""

    def resolved(self) -> PreviewSettings | RefineSettings:
        """Its settings, with what the model states in the place of every null; a hub model with its commit.

        Raises ModelNotFoundError.
        """

    def describe(self) -> Description:
        """See Description. Raises ModelNotFoundError."""

    def problems(self) -> list[str]:
        """One line for each setting that it cannot do, with its key. Raises ModelNotFoundError."""

    def refusal(self, num_frames: int | None, height: int | None, width: int | None) -> str | None:
        """Why frames of such previews are none that it takes as stage 2, or None. What is None is not known."""

    def on_negative_prompts(self) -> str | None:
        """What becomes of negative prompts, in words, where they do not do what one expects of them."""

    def source(self) -> Source | None:
        """Where its weights are from; None where it has none. Raises ModelNotFoundError."""

    def fingerprint(self) -> str:
        """A hex digest of its weights and configuration: equal content, equal digest. Raises ModelNotFoundError."""

    def text_fingerprint(self) -> str:
        """Likewise of the text encoder, where it is not among those."""

    def verify(self, fingerprint: str) -> None:
        """Raise WeightsError unless the weights that this machine has are those of the fingerprint."""

    def networks(self) -> Mapping[str, Any] | None:
        """What `models.costs` can count, by these names: configurations of `transformer` and `vae`, `tokens` of a text
        and `evaluations` of the transformer in a step. None: what it costs is not known. Raises ModelNotFoundError.
        """

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, the end among them, uncut."""

    def load_text(self) -> TextModel:
        """Load the text encoder onto this process's device."""

    def load_preview(self) -> PreviewModel:
        """Load stage 1 likewise."""

    def load_refine(self) -> RefineModel:
        """Load stage 2 likewise."""
