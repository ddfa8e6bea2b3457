"""How much people would like the pictures: a linear head on CLIP's view of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from flashvideo_ray.errors import InputError
from flashvideo_ray.scorers._frames import spread
from flashvideo_ray.scorers._vision import Vision

if TYPE_CHECKING:
    from torch import Tensor


class Aesthetic:
    """The rating that the head gives to CLIP's unit vector of a frame, mean over the frames.

    - `aesthetic`: about 1 to 10 for LAION's heads. LAION-Aesthetics kept pictures above 7 of the first head
      (aesthetic-predictor, MIT); NVIDIA's and others' filters use the second (improved-aesthetic-predictor).

    Both are linear: one layer, or several without anything between them, which is the same. No head is on a hub in a
    form that transformers loads: download `sa_0_4_vit_l_14_linear.pth` or `sac+logos+ava1-l14-linearMSE.pth` from the
    repositories of these names and give its path. A head with activations between its layers is read wrongly.

    Args:
        head: .safetensors file or PyTorch state dict of linear layers, first to last.
        model: folder or hub id of the CLIP that the head was trained on.
        frames: how many frames are looked at, evenly spaced.
        batch: frames that the model sees at once.
        dtype: float32, bfloat16 or float16.
    """

    names: ClassVar[tuple[str, ...]] = ("aesthetic",)

    def __init__(
        self,
        head: str,
        model: str = "openai/clip-vit-large-patch14",
        frames: int = 8,
        batch: int = 16,
        dtype: str = "float32",
    ) -> None:
        self.weight, self.bias = load_head(head)
        self.vision = Vision("CLIPModel", model, dtype, batch)
        width = self.vision.model.config.projection_dim
        if len(self.weight) != width:
            raise InputError(f"{head}: made for embeddings of {len(self.weight)} numbers, {model!r} gives {width}")
        self.frames = frames

    def __call__(self, frames: NDArray[np.uint8], prompt: str) -> dict[str, float]:
        """Measure RGB uint8 `[frames, height, width, 3]`."""
        import torch.nn.functional as F

        chosen = spread(frames, self.frames)
        clip = self.vision.model
        embeds = self.vision.each(chosen, lambda inputs: clip.get_image_features(**inputs).pooler_output)
        return {"aesthetic": float((F.normalize(embeds, dim=-1) @ self.weight + self.bias).mean())}


def load_head(path: str) -> tuple[Tensor, Tensor]:
    """A chain of linear layers as one: weight `[width]` and bias `[]`, float32.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    import torch
    from safetensors.torch import load_file

    try:
        state = load_file(path) if Path(path).suffix == ".safetensors" else torch.load(path, weights_only=True)
        # A linear chain folds from its end: w3 (w2 (w1 x + b1) + b2) + b3.
        weight, bias = torch.ones(1, 1), torch.zeros(1)
        for name in reversed([name for name in state if name.endswith("weight")]):
            bias = bias + weight @ state[name.removesuffix("weight") + "bias"].float()
            weight = weight @ state[name].float()
    except Exception as error:  # torch.load raises whatever the bytes make it
        raise InputError(f"{path}: no aesthetic head of linear layers: {error}") from error
    return weight[0], bias[0]
