"""Whether a clip shows what its prompt says: CLIP."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from flashvideo_ray.scorers._frames import check, spread
from flashvideo_ray.scorers._text import Splitter
from flashvideo_ray.scorers._vision import Vision, from_pretrained, quiet

_Similarities = Callable[[NDArray[np.uint8], list[str]], list[float]]


class Clip:
    """Cosine similarity of frames and prompt, mean over both: CLIPScore (Hessel et al., 2021) without its factor 2.5.

    - `alignment`: -1 to 1. The scale is the model's: compare it among candidates of one prompt, or set a threshold per
      model. OpenAI's models give about 0.2 to 0.35 for what fits. It tells what is there from what is not, and little
      more: a gate for clips that miss their subject, not a measure of how good they are.
    - `alignment_pieces`: in how many pieces the prompt was read.

    CLIP reads 77 tokens and transformers cuts the rest off. Here a longer prompt is split between sentences, else
    clauses, else words, into as few pieces as go, and `alignment` is the mean of their similarities, each by its share
    of the tokens. A piece tells less than a whole, so prompts of several pieces score lower: do not compare prompts
    across a change of `alignment_pieces`.

    The default model is the tiny one of this package that knows the nano world alone (24 tokens; it looks at a contact
    sheet of four frames and so sees motion). For real clips name one, such as openai/clip-vit-base-patch32 (MIT).

    Args:
        model: `nano`, or folder or hub id of a CLIP.
        frames: how many frames are looked at, evenly spaced; 4 for `nano`.
        batch: frames that the model sees at once.
        dtype: float32, bfloat16 or float16; float32 for `nano`.
    """

    names: ClassVar[tuple[str, ...]] = ("alignment", "alignment_pieces")

    def __init__(self, model: str = "nano", frames: int = 8, batch: int = 16, dtype: str = "float32") -> None:
        if model == "nano":
            self.split, self.similarities = _nano()
        else:
            self.split, self.similarities = _hub(model, frames, batch, dtype)

    def __call__(self, frames: NDArray[np.uint8], prompt: str) -> dict[str, float]:
        """Measure RGB uint8 `[frames, height, width, 3]`."""
        check(frames)
        texts, shares = self.split(prompt)
        alignment = float(shares @ np.array(self.similarities(frames, texts)))
        return {"alignment": alignment, "alignment_pieces": float(len(texts))}


def _nano() -> tuple[Splitter, _Similarities]:
    """The packaged CLIP: one picture a clip."""
    import torch

    from flashvideo_ray.nano.clip import NanoClip

    quiet()
    clip = NanoClip()

    def similarities(frames: NDArray[np.uint8], texts: list[str]) -> list[float]:
        pictures = torch.from_numpy(spread(frames, 4)).permute(0, 3, 1, 2) / 255
        found: list[float] = clip(pictures.expand(len(texts), -1, -1, -1, -1), texts).tolist()
        return found

    return Splitter(clip.tokenizer, clip.model.config.text_config.max_position_embeddings), similarities


def _hub(model: str, count: int, batch: int, dtype: str) -> tuple[Splitter, _Similarities]:
    """A CLIP as transformers saves it: one picture a frame."""
    import torch
    import torch.nn.functional as F

    vision = Vision("CLIPModel", model, dtype, batch)
    clip = vision.model
    tokenizer = from_pretrained("AutoTokenizer", model)
    limit = clip.config.text_config.max_position_embeddings

    def similarities(frames: NDArray[np.uint8], texts: list[str]) -> list[float]:
        images = vision.each(spread(frames, count), lambda inputs: clip.get_image_features(**inputs).pooler_output)
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt").to(clip.device)
        with torch.inference_mode():
            prompts = clip.get_text_features(**tokens).pooler_output.float().cpu()
        cosines = F.normalize(images, dim=-1) @ F.normalize(prompts, dim=-1).T
        found: list[float] = cosines.mean(0).tolist()
        return found

    return Splitter(tokenizer, limit), similarities
