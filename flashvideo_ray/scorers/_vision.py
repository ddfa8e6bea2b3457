"""Models of transformers that look at frames: loading them, and feeding them. torch is imported on first use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flashvideo_ray.errors import InputError
from flashvideo_ray.scorers._frames import spread

if TYPE_CHECKING:
    from torch import Tensor


def from_pretrained(kind: str, model: str, **options: Any) -> Any:
    """`transformers.<kind>.from_pretrained(model)`, of a folder or a hub id.

    Raises:
        InputError: there is no such model, or it is of another kind.
    """
    import transformers

    quiet()
    try:
        return getattr(transformers, kind).from_pretrained(model, **options)
    except (OSError, ValueError, ImportError) as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise InputError(
            f"cannot load {model!r} as {kind}: {reason} (give a folder as transformers saves it, or a hub id)"
        ) from error


def quiet() -> None:
    """No progress bars of loading: they would stand in the middle of a job's own progress."""
    import transformers.utils.logging

    transformers.utils.logging.disable_progress_bar()


def load_model(kind: str, model: str, dtype: str) -> Any:
    """A model for inference, on the GPU if this process has one.

    A stage hides all GPUs from an actor that was given none, so what is visible may be used.

    Raises:
        InputError: as `from_pretrained`, or weights are missing, which transformers would fill with random numbers.
    """
    import torch

    if dtype not in ("float32", "bfloat16", "float16"):
        raise InputError(f"dtype must be float32, bfloat16 or float16, not {dtype!r}")
    loaded, report = from_pretrained(kind, model, dtype=getattr(torch, dtype), output_loading_info=True)
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise InputError(f"{model!r} is no {kind}: it has no weights for {missing}")
    return loaded.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")


class Vision:
    """A model and its image processor.

    Args:
        kind: name of its class in transformers.
        model: folder or hub id.
        dtype: float32, bfloat16 or float16.
        batch: frames that the model sees at once.
    """

    def __init__(self, kind: str, model: str, dtype: str, batch: int) -> None:
        if batch < 1:
            raise InputError(f"batch must be at least 1, not {batch}")
        self.model = load_model(kind, model, dtype)
        # Named, so that the numbers do not depend on whether torchvision is installed.
        self.processor = from_pretrained("AutoImageProcessor", model, backend="pil")
        self.batch = batch

    def each(self, frames: NDArray[np.uint8], read: Callable[[Any], Tensor]) -> Tensor:
        """`read(inputs)` of RGB uint8 `[frames, height, width, 3]`: a float32 row a frame, on the CPU."""
        import torch

        rows = []
        for first in range(0, len(frames), self.batch):
            some = list(frames[first : first + self.batch])
            inputs = self.processor(some, input_data_format="channels_last", return_tensors="pt")
            with torch.inference_mode():
                rows.append(read(inputs.to(self.model.device, self.model.dtype)).float().cpu())
        return torch.cat(rows)


class Classifier:
    """An image classifier: the highest probability of certain labels among the frames.

    Args:
        model: folder or hub id of an `AutoModelForImageClassification` whose labels exclude each other.
        labels: whose probabilities are added up; capitals do not matter.
        frames: how many frames are looked at.
        batch: as for `Vision`.
        dtype: as for `Vision`.
    """

    def __init__(self, model: str, labels: Iterable[str], frames: int, batch: int, dtype: str) -> None:
        self.vision = Vision("AutoModelForImageClassification", model, dtype, batch)
        known = {str(name).lower(): index for index, name in self.vision.model.config.id2label.items()}
        try:
            self.indices = [known[label.lower()] for label in labels]
        except KeyError as error:
            raise InputError(f"{model!r} has no label {error}; there are {', '.join(known)}") from None
        self.frames = frames

    def __call__(self, frames: NDArray[np.uint8]) -> float:
        """The probability, 0 to 1, in the worst of RGB uint8 `[frames, height, width, 3]`."""
        chosen = spread(frames, self.frames)
        logits = self.vision.each(chosen, lambda inputs: self.vision.model(**inputs).logits)
        return float(logits.double().softmax(-1)[:, self.indices].sum(-1).max())
