"""Names and layout of the official FlashVideo checkpoints, and how each of our tensors is made from them.

The networks were trained with SwissArmyTransformer: queries, keys and values are one matrix, the modulation of video
and text is one matrix, and stage 1 carries its LoRA beside the weights it was trained on. A `Recipe` says for one
tensor of ours which official tensors it takes and what it does with them.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Tensors = Mapping[str, torch.Tensor]

PREFIX = "model.diffusion_model."
"""Of every key of the networks; the rest of this module leaves it out."""

UNUSED = re.compile(
    r"conditioner\..*|first_stage_model\..*|loss.*|transformer\.(position|word)_embeddings\.weight"
    r"|mixins\.pos_embed\.freqs_(sin|cos)"
)
"""Keys that a checkpoint may hold and inference does not read; the official loader drops them too."""

VIDEO_ATTENTION_TEXT_ATTENTION = (0, 1, 2, 6, 7, 8)
VIDEO_MLP_TEXT_MLP = (3, 4, 5, 9, 10, 11)
"""Which of the 12 blocks of a modulation matrix belong to `norm1` (attention) and to `norm2` (feed-forward)."""


@dataclass(frozen=True)
class Recipe:
    """How one tensor is made: the official keys it needs, and the function of those tensors."""

    sources: tuple[str, ...]
    make: Callable[[Tensors], torch.Tensor]


def copy(key: str) -> Recipe:
    """Take a tensor as it is."""
    return Recipe((key,), lambda tensors: tensors[key])


def row_block(tensor: torch.Tensor, index: int, of: int) -> torch.Tensor:
    """Return one of `of` equal blocks of rows."""
    if len(tensor) % of:
        raise ValueError(f"{len(tensor)} rows cannot be cut into {of} blocks")
    rows = len(tensor) // of
    return tensor[index * rows : (index + 1) * rows]


def linear(
    target: str, name: str, keys: Iterable[str], blocks: tuple[int, ...] = (0,), of: int = 1, partitions: int = 1
) -> dict[str, Recipe]:
    """Return the recipes of a linear layer from some row blocks of an official one, its LoRA merged in float32.

    A layer with a LoRA is stored as `original` and, for each of `partitions` equal parts of its rows, factors
    `matrix_A` `[rank, in]` and `matrix_B` `[rows, rank]`. Merged: W + B A / rank (alpha is 1).

    Args:
        target: name of our layer.
        name: name of the official layer.
        keys: all keys of the checkpoint, to see whether this layer has a LoRA.
        blocks: which row blocks, in our order.
        of: number of row blocks in the official layer.
        partitions: parts with LoRA factors of their own: 3 for query, key and value.
    """
    has_lora = any(key.startswith((f"{name}.original.", f"{name}.matrix_")) for key in keys)
    stem = f"{name}.original" if has_lora else name
    used = sorted({block * partitions // of for block in blocks}) if has_lora else []
    factors = tuple(f"{name}.matrix_{letter}.{part}" for part in used for letter in "AB")

    def weight(tensors: Tensors) -> torch.Tensor:
        merged = []
        for block in blocks:
            rows = row_block(tensors[f"{stem}.weight"], block, of)
            if has_lora:
                part, inner = divmod(block, of // partitions)
                a, b = tensors[f"{name}.matrix_A.{part}"].float(), tensors[f"{name}.matrix_B.{part}"].float()
                rows = rows.float() + row_block(b, inner, of // partitions) @ a / len(a)
            merged.append(rows)
        return torch.cat(merged)

    def bias(tensors: Tensors) -> torch.Tensor:
        return torch.cat([row_block(tensors[f"{stem}.bias"], block, of) for block in blocks])

    return {
        f"{target}.weight": Recipe((f"{stem}.weight", *factors), weight),
        f"{target}.bias": Recipe((f"{stem}.bias",), bias),
    }


def size(tensors: Tensors, default: int, *places: tuple[str, int]) -> int:
    """Return the length of the first axis (key, axis) that exists.

    The default, from the released networks, only serves to name what is missing from a checkpoint without any.
    """
    for key, axis in places:
        if key in tensors and tensors[key].ndim > axis:
            return tensors[key].shape[axis]
    return default


def count(tensors: Tensors, pattern: str) -> int:
    """Return how many members a numbered series of keys has; the group of `pattern` is the number."""
    return max((int(match[1]) for key in tensors if (match := re.match(pattern, key))), default=-1) + 1


def transformer_config(tensors: Tensors, stage: int) -> dict[str, int | bool]:
    """Read the arguments of `FlashVideoTransformer3DModel` off the shapes of a checkpoint."""
    proj, qk_norm = "mixins.patch_embed.proj.weight", "mixins.adaln_layer.{}_layernorm_list.0.weight"
    width = size(tensors, 3072, ("transformer.final_layernorm.weight", 0), (proj, 0))
    head_dim = size(tensors, 64, (qk_norm.format("query"), 0), (qk_norm.format("key"), 0))
    if not head_dim or width % head_dim:
        raise ValueError(f"a width of {width} is not a multiple of the head size {head_dim}")
    return {
        "num_attention_heads": width // head_dim,
        "attention_head_dim": head_dim,
        "in_channels": size(tensors, 16, (proj, 1)),
        "num_layers": count(tensors, r"transformer\.layers\.(\d+)\."),
        "patch_size": size(tensors, 2, (proj, 2)),
        "time_embed_dim": size(tensors, 512, ("time_embed.2.weight", 0), ("time_embed.0.weight", 0)),
        "text_embed_dim": size(tensors, 4096, ("mixins.patch_embed.text_proj.weight", 1)),
        "size_embedding": stage == 2,
        "ref_step_embedding": stage == 2,
    }


def transformer_recipes(keys: Iterable[str], num_layers: int, stage: int) -> dict[str, Recipe]:
    """Return a recipe for every tensor of `FlashVideoTransformer3DModel`."""
    keys = list(keys)
    recipes: dict[str, Recipe] = {}

    def same(target: str, name: str) -> None:
        recipes.update({f"{target}.{part}": copy(f"{name}.{part}") for part in ("weight", "bias")})

    def embedding(target: str, name: str) -> None:
        same(f"{target}.linear_1", f"{name}.0")
        same(f"{target}.linear_2", f"{name}.2")

    same("patch_embed.proj", "mixins.patch_embed.proj")
    same("patch_embed.text_proj", "mixins.patch_embed.text_proj")
    embedding("time_embedding", "time_embed")
    if stage == 2:
        embedding("time_size_embedding", "time_size_embedding")
        embedding("ref_step_time_embedding", "ref_step_time_embedding")
    for i in range(num_layers):
        block, layer = f"transformer_blocks.{i}", f"transformer.layers.{i}"
        modulation, qkv = f"mixins.adaln_layer.adaLN_modulations.{i}.1", f"{layer}.attention.query_key_value"
        same(f"{block}.norm1.norm", f"{layer}.input_layernorm")
        recipes |= linear(f"{block}.norm1.linear", modulation, keys, VIDEO_ATTENTION_TEXT_ATTENTION, 12)
        same(f"{block}.attn1.norm_q", f"mixins.adaln_layer.query_layernorm_list.{i}")
        same(f"{block}.attn1.norm_k", f"mixins.adaln_layer.key_layernorm_list.{i}")
        for part, letter in enumerate("qkv"):
            recipes |= linear(f"{block}.attn1.to_{letter}", qkv, keys, (part,), 3, partitions=3)
        recipes |= linear(f"{block}.attn1.to_out.0", f"{layer}.attention.dense", keys)
        same(f"{block}.norm2.norm", f"{layer}.post_attention_layernorm")
        recipes |= linear(f"{block}.norm2.linear", modulation, keys, VIDEO_MLP_TEXT_MLP, 12)
        same(f"{block}.ff.net.0.proj", f"{layer}.mlp.dense_h_to_4h")
        same(f"{block}.ff.net.2", f"{layer}.mlp.dense_4h_to_h")
    same("norm_final", "transformer.final_layernorm")
    same("norm_out.norm", "mixins.final_layer.norm_final")
    same("norm_out.linear", "mixins.final_layer.adaLN_modulation.1")
    same("proj_out", "mixins.final_layer.linear")
    return recipes


def vae_config(tensors: Tensors) -> dict[str, Any]:
    """Read the arguments of `AutoencoderKLCogVideoX` off the shapes of a checkpoint.

    The temporal ratio (4) and the number of groups (32) leave no trace in the shapes; they are what diffusers assumes.
    """
    levels = count(tensors, r"encoder\.down\.(\d+)\.")
    first = "encoder.down.{}.block.0.{}"
    return {
        "block_out_channels": tuple(
            size(tensors, 128, (first.format(level, "norm2.weight"), 0), (first.format(level, "conv1.conv.weight"), 0))
            for level in range(levels)
        ),
        "layers_per_block": count(tensors, r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": size(tensors, 16, ("decoder.conv_in.conv.weight", 1)),
        "in_channels": size(tensors, 3, ("encoder.conv_in.conv.weight", 1)),
        "out_channels": size(tensors, 3, ("decoder.conv_out.conv.weight", 0)),
        "down_block_types": ("CogVideoXDownBlock3D",) * levels,
        "up_block_types": ("CogVideoXUpBlock3D",) * levels,
    }


def vae_recipes(targets: Iterable[str], levels: int) -> dict[str, Recipe]:
    """Return a recipe for every tensor of `AutoencoderKLCogVideoX`, given their names and the number of levels."""

    def official(target: str) -> str:
        name = re.sub(r"down_blocks\.(\d+)\.", r"down.\1.", target)
        name = re.sub(r"up_blocks\.(\d+)\.", lambda match: f"up.{levels - 1 - int(match[1])}.", name)
        name = re.sub(r"mid_block\.resnets\.(\d+)\.", lambda match: f"mid.block_{int(match[1]) + 1}.", name)
        name = re.sub(r"\bresnets\.(\d+)\.", r"block.\1.", name)
        name = re.sub(r"\b(down|up)samplers\.0\.", r"\1sample.", name)
        return name.replace("conv_shortcut", "nin_shortcut")

    return {target: copy(official(target)) for target in targets}
