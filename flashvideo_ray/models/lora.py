"""Adapters (LoRA) for the transformers of both stages, in diffusers' way and from the official trainer's files.

diffusers' own files name layers as our transformer does (`transformer_blocks.0.attn1.to_q.lora_A.weight`), with or
without `transformer.` or peft's `base_model.model.` in front. Files of the official trainer (SwissArmyTransformer) hold
`matrix_A.0`, `matrix_B.0` for its own layers, with the queries, keys and values and both modulations in one matrix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.loaders.lora_pipeline import CogVideoXLoraLoaderMixin
from diffusers.utils import USE_PEFT_BACKEND
from torch import nn

from .official import PREFIX, VIDEO_ATTENTION_TEXT_ATTENTION, VIDEO_MLP_TEXT_MLP, row_block

TRANSFORMER = "transformer."
_SHOWN = 8
_FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<factor>[AB])\.weight")
_OFFICIAL = re.compile(r"(?P<layer>.+)\.matrix_(?P<factor>[AB])\.(?P<part>\d+)")
_ATTENTION = re.compile(r"transformer\.layers\.(\d+)\.attention\.(query_key_value|dense)")
_MODULATION = re.compile(r"mixins\.adaln_layer\.adaLN_modulations\.(\d+)\.1")


class AdapterError(ValueError):
    """An adapter that cannot be used. The message names its keys."""


class FlashVideoLoraLoaderMixin(CogVideoXLoraLoaderMixin):
    """`load_lora_weights`, `set_adapters`, `fuse_lora` and the like; see diffusers. Needs `peft`."""

    @classmethod
    def lora_state_dict(  # type: ignore[override]
        cls, pretrained_model_name_or_path_or_dict: Any, **kwargs: Any
    ) -> Any:
        """Read an adapter and give its tensors the names that our transformer has. Raises AdapterError."""
        with_metadata = kwargs.pop("return_lora_metadata", False)
        tensors, metadata = super().lora_state_dict(
            pretrained_model_name_or_path_or_dict, return_lora_metadata=True, **kwargs
        )
        tensors = adapter_tensors(tensors)
        return (tensors, metadata) if with_metadata else tensors

    def load_lora_weights(  # type: ignore[override]
        self, pretrained_model_name_or_path_or_dict: Any, *args: Any, **kwargs: Any
    ) -> None:
        """See diffusers. Raises AdapterError for one that does not fit, and ImportError without `peft`."""
        if not USE_PEFT_BACKEND:
            raise ImportError("adapters need peft: pip install 'flashvideo-ray[lora]'")
        tensors, metadata = self.lora_state_dict(
            pretrained_model_name_or_path_or_dict,
            return_lora_metadata=True,
            **{name: kwargs.pop(name) for name in ("weight_name", "subfolder", "revision") if name in kwargs},
        )
        check_adapter(tensors, self.transformer)  # type: ignore[attr-defined]
        self.load_lora_into_transformer(
            tensors,
            self.transformer,  # type: ignore[attr-defined]
            adapter_name=args[0] if args else kwargs.pop("adapter_name", None),
            metadata=metadata,
            _pipeline=self,
            **kwargs,
        )


def adapter_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An adapter's factors as `transformer.<layer>.lora_A.weight` `[rank, in]` and `.lora_B.weight` `[out, rank]`.

    Raises AdapterError for keys that are neither diffusers' nor the official trainer's.
    """
    renamed: dict[str, torch.Tensor] = {}
    unknown = []
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        if match := _OFFICIAL.fullmatch(name):
            found = _official_factor(match["layer"], match["factor"], int(match["part"]), tensor)
            renamed |= found
            if not found:
                unknown.append(key)
            continue
        name = name.removeprefix("base_model.model.").removeprefix(TRANSFORMER)
        if _FACTOR.fullmatch(name):
            renamed[TRANSFORMER + name] = tensor
        else:
            unknown.append(key)
    if unknown:
        raise AdapterError(f"unknown keys in the adapter: {_listing(unknown)}")
    if not renamed:
        raise AdapterError("the adapter is empty")
    return renamed


def check_adapter(tensors: Mapping[str, torch.Tensor], network: Any) -> None:
    """Raise AdapterError unless every factor has a layer of its shape and its counterpart. Meta tensors will do."""
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    problems = []
    for key, tensor in tensors.items():
        match = _FACTOR.fullmatch(key.removeprefix(TRANSFORMER))
        assert match is not None  # by adapter_tensors
        layer = layers.get(match["layer"]) or layers.get(f"{match['layer']}.base_layer")
        other = key.replace(f"lora_{match['factor']}", "lora_B" if match["factor"] == "A" else "lora_A")
        if layer is None:
            problems.append(f"{key}: the network has no such layer")
        elif other not in tensors:
            problems.append(f"{key}: without {other}")
        else:
            a, b = (tensors[key], tensors[other]) if match["factor"] == "A" else (tensors[other], tensors[key])
            if a.ndim != 2 or b.ndim != 2 or (b.shape[0], a.shape[1]) != (layer.out_features, layer.in_features):
                problems.append(f"{key} {list(tensor.shape)}: the layer is {[layer.out_features, layer.in_features]}")
            elif a.shape[0] != b.shape[1]:
                problems.append(f"{key} {list(tensor.shape)}: its rank is not that of {other}")
    if problems:
        raise AdapterError(f"the adapter does not fit: {_listing(problems)}")


def _official_factor(layer: str, factor: str, part: int, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """The factors that one official factor becomes. Its alpha is 1: B is divided by the rank, so that ours is 1 too."""
    targets: dict[str, torch.Tensor] = {}
    if match := _ATTENTION.fullmatch(layer):
        name = f"to_{'qkv'[part]}" if match[2] == "query_key_value" and part < 3 else "to_out.0"
        targets[f"transformer_blocks.{match[1]}.attn1.{name}"] = tensor
    elif match := _MODULATION.fullmatch(layer):
        # One matrix of 12 blocks of rows became two of 6: both have A, each its own rows of B.
        for norm, blocks in (("norm1", VIDEO_ATTENTION_TEXT_ATTENTION), ("norm2", VIDEO_MLP_TEXT_MLP)):
            rows = tensor if factor == "A" else torch.cat([row_block(tensor, block, 12) for block in blocks])
            targets[f"transformer_blocks.{match[1]}.{norm}.linear"] = rows
    return {
        f"{TRANSFORMER}{name}.lora_{factor}.weight": value if factor == "A" else value.float() / value.shape[1]
        for name, value in targets.items()
    }


def _listing(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
