"""Noise that does not depend on the device."""

from collections.abc import Sequence

import torch

Generators = torch.Generator | list[torch.Generator] | None


def draw_noise(shape: Sequence[int], generator: Generators, device: torch.device | str) -> torch.Tensor:
    """Draw standard normal float32 noise of `shape` `[batch, ...]` on the CPU and move it to `device`.

    With a list of generators, one for each sample, a sample's noise does not depend on what else is in the batch.
    Without a generator, torch's global CPU generator is used. A generator of another device draws there.
    """
    if isinstance(generator, list):
        if len(generator) != shape[0]:
            raise ValueError(f"{len(generator)} generators for a batch of {shape[0]}")
        return torch.cat([draw_noise([1, *shape[1:]], one, device) for one in generator])
    drawn_on = generator.device if generator is not None else "cpu"
    return torch.randn(tuple(shape), generator=generator, device=drawn_on, dtype=torch.float32).to(device)


def draw_noises(count: int, shape: Sequence[int], generator: Generators) -> torch.Tensor:
    """Draw the noise of `count` steps, one after the other: `[count, *shape]` float32 on the CPU."""
    noises = torch.empty(count, *shape)
    for noise in noises:
        noise.copy_(draw_noise(shape, generator, "cpu"))
    return noises
