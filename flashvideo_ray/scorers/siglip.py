"""Whether a clip shows what its prompt says: SigLIP."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from flashvideo_ray.scorers._frames import spread
from flashvideo_ray.scorers._text import Splitter
from flashvideo_ray.scorers._vision import Vision, from_pretrained


class Siglip:
    """SigLIP's probability that frames and prompt belong together (Zhai et al., 2023).

    - `siglip`: 0 to 1, the sigmoid of the model's logit, scale and bias included, mean over frames and pieces before
      the sigmoid. The model learned it against tens of thousands of other captions: 0.01 can be a good match of a long
      prompt. Compare it among candidates of one prompt.
    - `siglip_pieces`: in how many pieces the prompt was read, as for `clip`: the model reads 64 tokens.

    The default, google/siglip2-base-patch16-224, is Apache-2.0.

    Args:
        model: folder or hub id of a SigLIP or SigLIP 2.
        frames: how many frames are looked at, evenly spaced.
        batch: frames that the model sees at once.
        dtype: float32, bfloat16 or float16.
    """

    names: ClassVar[tuple[str, ...]] = ("siglip", "siglip_pieces")

    def __init__(
        self,
        model: str = "google/siglip2-base-patch16-224",
        frames: int = 8,
        batch: int = 16,
        dtype: str = "float32",
    ) -> None:
        self.vision = Vision("AutoModel", model, dtype, batch)
        self.tokenizer = from_pretrained("AutoTokenizer", model)
        self.limit = self.vision.model.config.text_config.max_position_embeddings
        self.split = Splitter(self.tokenizer, self.limit)
        self.frames = frames

    def __call__(self, frames: NDArray[np.uint8], prompt: str) -> dict[str, float]:
        """Measure RGB uint8 `[frames, height, width, 3]`."""
        import torch
        import torch.nn.functional as F

        siglip = self.vision.model
        chosen = spread(frames, self.frames)
        images = self.vision.each(chosen, lambda inputs: siglip.get_image_features(**inputs).pooler_output)
        texts, shares = self.split(prompt)
        # Padded to the full length, as it was trained: the padding is part of the text to it.
        tokens = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.limit, return_tensors="pt"
        )
        with torch.inference_mode():
            prompts = siglip.get_text_features(input_ids=tokens.input_ids.to(siglip.device)).pooler_output.float().cpu()
            cosines = F.normalize(images, dim=-1) @ F.normalize(prompts, dim=-1).T
            logits = cosines.double() * siglip.logit_scale.double().exp().cpu() + siglip.logit_bias.double().cpu()
            probability = (logits.mean(0) @ torch.from_numpy(shares)).sigmoid()
        return {"siglip": float(probability), "siglip_pieces": float(len(texts))}
