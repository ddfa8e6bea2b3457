"""Read the official checkpoint files and match them with the networks they hold, before a byte is written."""

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX

from .official import (
    PREFIX,
    UNUSED,
    Recipe,
    Tensors,
    transformer_config,
    transformer_recipes,
    vae_config,
    vae_recipes,
)
from .transformer import FlashVideoTransformer3DModel

FILES = {"stage1": "stage1.pt", "stage2": "stage2.pt", "vae": "3d-vae.pt"}
LISTED = 40


class ConversionError(ValueError):
    """The checkpoints cannot be converted; the message says why and names every key concerned. Nothing was written."""


@dataclass(frozen=True)
class Component:
    """A network to be written: empty, on the meta device, with the recipe of each of its tensors."""

    model: Any
    recipes: Mapping[str, Recipe]
    tensors: Tensors

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(tensor.numel() for tensor in self.model.state_dict().values())

    def make(self, target: str, dtype: torch.dtype) -> torch.Tensor:
        """Make one tensor of the network."""
        return self.recipes[target].make(self.tensors).to(dtype).contiguous()


def read_components(checkpoints: Path) -> tuple[Component, Component, Component]:
    """Map the three files and match their keys and shapes with the networks they describe."""
    absent = [name for name in FILES.values() if not (checkpoints / name).is_file()]
    if absent:
        raise ConversionError(f"{checkpoints} has no {', '.join(absent)}")
    components, problems = {}, []
    for name, file in FILES.items():
        try:
            if name == "vae":
                components[name] = read_vae(load_tensors(checkpoints / file, "state_dict"))
            else:
                stage = 1 if name == "stage1" else 2
                components[name] = read_transformer(load_tensors(checkpoints / file, "module"), stage)
        except ConversionError as error:
            problems.append(f"{file}: {error}")
    if problems:
        raise ConversionError("; ".join(problems))
    return components["stage1"], components["stage2"], components["vae"]


def load_tensors(path: Path, entry: str) -> dict[str, torch.Tensor]:
    """Map the tensors under `entry` of a PyTorch file into memory. Code in the file is never run."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, OSError, AttributeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConversionError(f"not a PyTorch file of weights ({reason[0]})") from error
    tensors = content.get(entry) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not tensors:
        raise ConversionError(f"has no weights under {entry!r}")
    others = [key for key, value in tensors.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ConversionError(f"not tensors: {listing(others)}")
    return {key: value for key, value in tensors.items() if not UNUSED.fullmatch(key.removeprefix(PREFIX))}


def read_transformer(tensors: dict[str, torch.Tensor], stage: int) -> Component:
    """Match the tensors of one stage with its transformer."""
    foreign = [key for key in tensors if not key.startswith(PREFIX)]
    if foreign:
        raise ConversionError(f"unknown keys: {listing(foreign)}")
    tensors = {key.removeprefix(PREFIX): value for key, value in tensors.items()}
    model, config = empty(FlashVideoTransformer3DModel, transformer_config, tensors, stage)
    recipes = transformer_recipes(tensors, config["num_layers"], stage)
    return check(Component(model, recipes, tensors), f"after {PREFIX!r}, ")


def read_vae(tensors: dict[str, torch.Tensor]) -> Component:
    """Match the tensors of the VAE with diffusers' class."""
    model, config = empty(AutoencoderKLCogVideoX, vae_config, tensors)
    return check(Component(model, vae_recipes(model.state_dict(), len(config["block_out_channels"])), tensors))


def empty(model_class: Any, read_config: Any, *args: Any) -> tuple[Any, dict[str, Any]]:
    """Build a network without memory for its weights from what a function reads off the checkpoint's shapes."""
    try:
        config = read_config(*args)
        with torch.device("meta"):
            return model_class(**config), config
    except (ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ConversionError(f"the shapes describe no network ({error})") from error


def check(component: Component, note: str = "") -> Component:
    """Compare keys both ways and every shape; the recipes run on the meta device, which costs nothing."""
    needed = {source for recipe in component.recipes.values() for source in recipe.sources}
    problems = []
    if missing := sorted(needed - component.tensors.keys()):
        problems.append(f"{note}missing keys: {listing(missing)}")
    if unknown := sorted(component.tensors.keys() - needed):
        problems.append(f"{note}unknown keys: {listing(unknown)}")
    meta = {key: value.to("meta") for key, value in component.tensors.items()}
    wrong = [key for key, value in component.tensors.items() if key in needed and not value.is_floating_point()]
    wrong = [f"{key} is {component.tensors[key].dtype}" for key in wrong]
    for target, expected in component.model.state_dict().items():
        recipe = component.recipes[target]
        if not meta.keys() >= set(recipe.sources):
            continue
        shapes = ", ".join(f"{key} {list(meta[key].shape)}" for key in recipe.sources)
        try:
            made = recipe.make(meta).shape
        except (ValueError, RuntimeError):
            wrong.append(f"{shapes} cannot make {target} {list(expected.shape)}")
            continue
        if made != expected.shape:
            wrong.append(f"{shapes} should make {target} {list(expected.shape)}")
    if wrong:
        problems.append(f"{note}wrong shape or type: {listing(wrong)}")
    if problems:
        raise ConversionError("; ".join(problems))
    return component


def listing(names: list[str]) -> str:
    """Join names for a message, and count those beyond the first forty."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
