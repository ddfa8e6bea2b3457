"""A network that fails on request, for tests of what becomes of the candidate that it was shown."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from diffusers import ModelMixin  # noqa: F401  diffusers looks for the base class in the component's own module
from diffusers.configuration_utils import register_to_config

from flashvideo_ray import FlashVideoTransformer3DModel


class FaultyTransformer(FlashVideoTransformer3DModel):
    """A network that raises, gives NaN, hangs or kills its process at a prompt that it knows by its embedding's sum.

    On a node with BROKEN_BY in its environment its first call breaks the node: it names a file whose presence keeps
    the network from loading, and the call makes it and kills its process. On a node with FAILING every call raises and
    leaves a file in the folder that it names. On a node with PATIENT a call waits until all files that it names are
    there: as slow as a sound node can be. Each call on a node with BEGUN makes the file that it names.
    """

    __module__ = "faulty"  # what `model_index.json` names

    @register_to_config
    def __init__(
        self,
        triggers: tuple[float, ...] = (),
        faults: tuple[str, ...] = (),
        num_attention_heads: int = 2,
        attention_head_dim: int = 16,
        in_channels: int = 4,
        time_embed_dim: int = 16,
        text_embed_dim: int = 32,
        num_layers: int = 2,
        size_embedding: bool = False,
        ref_step_embedding: bool = False,
    ) -> None:
        if Path(os.environ.get("BROKEN_BY", "/absent")).exists():
            raise OSError("the card has fallen off the bus")
        super().__init__(
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            time_embed_dim=time_embed_dim,
            text_embed_dim=text_embed_dim,
            num_layers=num_layers,
            size_embedding=size_embedding,
            ref_step_embedding=ref_step_embedding,
        )

    def project_text(self, embeds: torch.Tensor) -> torch.Tensor:
        if "BEGUN" in os.environ:
            Path(os.environ["BEGUN"]).touch()
        if "BROKEN_BY" in os.environ:
            Path(os.environ["BROKEN_BY"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if "FAILING" in os.environ:
            folder = Path(os.environ["FAILING"])
            (folder / f"failed-{len([*folder.glob('failed-*')])}").touch()
            raise RuntimeError("an illegal memory access was encountered")
        while not all(Path(path).exists() for path in os.environ.get("PATIENT", "/").split(os.pathsep)):
            time.sleep(0.1)
        tokens = super().project_text(embeds)
        for trigger, fault in zip(self.config.triggers, self.config.faults, strict=True):
            if abs(embeds.double().sum().item() - trigger) < 1e-4:
                return self.fail(fault, tokens)
        return tokens

    def fail(self, fault: str, tokens: torch.Tensor) -> torch.Tensor:
        if fault == "raise":
            raise RuntimeError("this prompt is more than the network can take")
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hang":
            time.sleep(3600)
        return tokens * float("nan")
