"""FlashVideo (arXiv 2502.05179) as a distributed batch rendering pipeline on Ray.

>>> from flashvideo_ray import Settings, render
>>> render("prompts.parquet", "s3://bucket/run1", Settings.load("flashvideo-1080p"))

The model classes can be used alone, as any diffusers pipeline is:

>>> from flashvideo_ray import FlashVideoPreviewPipeline
>>> preview = FlashVideoPreviewPipeline.from_pretrained("weights/preview")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flashvideo_ray.versions import OWN_VERSION

if TYPE_CHECKING:
    from flashvideo_ray.graph.pipeline import RunResult, preview, refine, render
    from flashvideo_ray.models import (
        FlashVideoDPMScheduler,
        FlashVideoFlowScheduler,
        FlashVideoPreviewPipeline,
        FlashVideoRefinePipeline,
        FlashVideoTransformer3DModel,
    )
    from flashvideo_ray.settings import Settings

__version__ = OWN_VERSION

# Loaded on first use: `import flashvideo_ray` must not cost the seconds that torch and Ray take, and reading a
# ledger in a notebook needs neither.
_HOME = {
    "FlashVideoDPMScheduler": "models",
    "FlashVideoFlowScheduler": "models",
    "FlashVideoPreviewPipeline": "models",
    "FlashVideoRefinePipeline": "models",
    "FlashVideoTransformer3DModel": "models",
    "RunResult": "graph.pipeline",
    "Settings": "settings",
    "preview": "graph.pipeline",
    "refine": "graph.pipeline",
    "render": "graph.pipeline",
}

__all__ = [
    "FlashVideoDPMScheduler",
    "FlashVideoFlowScheduler",
    "FlashVideoPreviewPipeline",
    "FlashVideoRefinePipeline",
    "FlashVideoTransformer3DModel",
    "RunResult",
    "Settings",
    "preview",
    "refine",
    "render",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
