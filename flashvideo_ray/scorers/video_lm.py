"""Questions to a vision-language model that it answers with yes or no."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flashvideo_ray.errors import InputError
from flashvideo_ray.scorers._frames import spread
from flashvideo_ray.scorers._vision import from_pretrained, load_model

if TYPE_CHECKING:
    from torch import Tensor

_FRAMES = "These are frames of one video, in order. "
QUESTIONS = {
    "follows": _FRAMES + 'Does the video show "{prompt}"? Please answer yes or no.',
    "motion": _FRAMES
    + "Does something move from frame to frame, and does it move the way it would in reality? "
    + "Please answer yes or no.",
    "clean": _FRAMES
    + "Is the video free of visual defects, such as distorted bodies or objects, things that appear or vanish, "
    + "flicker and noise? Please answer yes or no.",
}


class VideoLM:
    """The model's probability of "yes", of "yes" and "no": one forward pass a question (VQAScore, Lin et al., 2024).

    - `vlm_follows`: 0 to 1, whether the video shows what the prompt says. The prompt is read whole, however long.
    - `vlm_motion`: 0 to 1, whether it moves, and believably.
    - `vlm_clean`: 0 to 1, whether it is free of artefacts.

    Compare the numbers of one model and one wording: where its "yes" begins is a habit of the model. In bfloat16 a
    logit has two or three digits, and many clips score exactly alike: float32 ranks better.

    Any instruction-tuned model of AutoModelForImageTextToText that takes several pictures will do, but not one that
    thinks before it answers. The default, HuggingFaceTB/SmolVLM-Instruct (2.2 B parameters), is Apache-2.0. Models
    whose processors read videos too (Qwen-VL, SmolVLM2, InternVL, LLaVA-OneVision) need torchvision, in the build that
    goes with the installed torch.

    Args:
        model: folder or hub id.
        questions: other texts for `follows`, `motion`, `clean`; `{prompt}` stands for the prompt.
        frames: how many frames are shown, evenly spaced.
        dtype: float32, bfloat16 or float16.
    """

    names: ClassVar[tuple[str, ...]] = ("vlm_follows", "vlm_motion", "vlm_clean")

    def __init__(
        self,
        model: str = "HuggingFaceTB/SmolVLM-Instruct",
        questions: Mapping[str, str] | None = None,
        frames: int = 8,
        dtype: str = "float32",
    ) -> None:
        unknown = set(questions or {}) - set(QUESTIONS)
        if unknown:
            raise InputError(f"no question is called {', '.join(sorted(unknown))}; there are {', '.join(QUESTIONS)}")
        self.questions = {**QUESTIONS, **(questions or {})}
        self.frames = frames
        self.processor = from_pretrained("AutoProcessor", model)
        if not getattr(self.processor, "chat_template", None):
            raise InputError(f"{model!r} has no chat template: it cannot be asked; take an instruction-tuned model")
        images = self.processor.image_processor
        if hasattr(images, "do_image_splitting"):
            images.do_image_splitting = False  # tiles are for reading documents, and cost 17 times the tokens
        self.yes = answers(self.processor.tokenizer, "yes")
        self.no = answers(self.processor.tokenizer, "no")
        self.model = load_model("AutoModelForImageTextToText", model, dtype)

    def __call__(self, frames: NDArray[np.uint8], prompt: str) -> dict[str, float]:
        """Measure RGB uint8 `[frames, height, width, 3]`."""
        pictures = [Image.fromarray(frame) for frame in spread(frames, self.frames)]
        return {
            f"vlm_{name}": self._yes(pictures, question.replace("{prompt}", prompt))
            for name, question in self.questions.items()
        }

    def _yes(self, pictures: list[Image.Image], question: str) -> float:
        """P(yes) / (P(yes) + P(no)) of the answer's first token."""
        logits = self._answer(pictures, question)
        both = logits[self.yes].logsumexp(0), logits[self.no].logsumexp(0)
        return float((both[0] - both[1]).sigmoid())

    def _answer(self, pictures: list[Image.Image], question: str) -> Tensor:
        """Logits `[vocabulary]` of the answer's first token."""
        import torch

        content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
        content.append({"type": "text", "text": question})
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)
        with torch.inference_mode():
            logits: Tensor = self.model(**inputs, logits_to_keep=1).logits[0, -1]
        return logits.double().cpu()


def answers(tokenizer: Any, word: str) -> list[int]:
    """The tokens that spell `word` alone, in lower and upper case, with and without a space before it.

    Raises:
        InputError: the tokenizer has none.
    """
    spellings = [space + case for space in ("", " ") for case in (word, word.capitalize(), word.upper())]
    ids = [tokenizer(spelling, add_special_tokens=False).input_ids for spelling in spellings]
    found = sorted({one[0] for one in ids if len(one) == 1} - {tokenizer.unk_token_id})
    if not found:
        raise InputError(f"the model's tokenizer has no token for {word!r}: it cannot answer in one word")
    return found
