"""FlashVideo's two stages as diffusers models, schedulers and pipelines. Nothing here knows about Ray.

A model on disk is a folder with two ordinary diffusers pipelines in it::

    <model>/preview/    tokenizer, text_encoder, transformer, vae, scheduler: text -> low-resolution video
    <model>/refine/     transformer, vae, scheduler: low-resolution video -> the same video at high resolution

>>> preview = FlashVideoPreviewPipeline.from_pretrained("model/preview", dtype=torch.bfloat16)
>>> refine = FlashVideoRefinePipeline.from_pretrained(
...     "model/refine", dtype=torch.bfloat16, tokenizer=preview.tokenizer, text_encoder=preview.text_encoder
... )
>>> first = preview(prompt, generator=torch.Generator().manual_seed(0))
>>> final = refine(prompt, preview_latents=first.latents, generator=torch.Generator().manual_seed(1))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline_preview import FlashVideoPreviewPipeline
    from .pipeline_refine import FlashVideoRefinePipeline
    from .schedulers import FlashVideoDPMScheduler, FlashVideoFlowScheduler
    from .transformer import FlashVideoTransformer3DModel

_HOME = {
    "FlashVideoDPMScheduler": "schedulers",
    "FlashVideoFlowScheduler": "schedulers",
    "FlashVideoPreviewPipeline": "pipeline_preview",
    "FlashVideoRefinePipeline": "pipeline_refine",
    "FlashVideoTransformer3DModel": "transformer",
}

__all__ = [
    "FlashVideoDPMScheduler",
    "FlashVideoFlowScheduler",
    "FlashVideoPreviewPipeline",
    "FlashVideoRefinePipeline",
    "FlashVideoTransformer3DModel",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
