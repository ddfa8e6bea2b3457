"""A card that is not there: tensors say that they are on it, know their shapes and types, and compute nothing.

PyTorch's fake tensors refuse what a card refuses (tensors of two devices in one operation), and here also operations of
mixed types. What is copied to the card, from it, and what waits for it, is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from flashvideo_ray.models.transformer import rotary_embedding

CARD = torch.device("cuda:0")
_ONE_TYPE = {"addmm", "baddbmm", "bmm", "convolution", "mm", "native_group_norm", "native_layer_norm"}


@dataclass(frozen=True)
class Copy:
    """From one device to another."""

    source: str
    target: str
    dtype: torch.dtype
    elements: int
    pinned: bool


@dataclass
class Card(TorchDispatchMode):
    """What happened on it."""

    copies: list[Copy] = field(default_factory=list)
    waits: int = 0
    """Values that the host asked for, and streams that it waited for."""

    def __post_init__(self) -> None:
        super().__init__()
        self._pinned: set[int] = set()

    def off(self) -> list[Copy]:
        """Copies to the host."""
        return [copy for copy in self.copies if copy.target == "cpu"]

    def noted(self, source: torch.Tensor, target: torch.Tensor) -> None:
        if source.device != target.device:
            pinned = id(target) in self._pinned
            self.copies.append(Copy(source.device.type, target.device.type, source.dtype, source.numel(), pinned))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name == "_local_scalar_dense":  # a value; any will do
            value = args[0]
            self.waits += value.device == CARD
            return True if value.dtype == torch.bool else 500.0 if value.is_floating_point() else 0
        if name in _ONE_TYPE and len(found := {arg.dtype for arg in args if isinstance(arg, torch.Tensor)}) > 1:
            raise TypeError(f"{name} of {found}")
        result = func(*args, **kwargs)
        if name == "_to_copy":
            self.noted(args[0], result)
        if name == "empty" and kwargs.get("pin_memory"):
            self._pinned.add(id(result))
        return result


class _Indexing(TorchFunctionMode):
    """What PyTorch's C++ does for a card only where it is built for one."""

    def __init__(self, card: Card):
        super().__init__()
        self._card = card

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__:
            return _part(*args)
        if func is torch.Tensor.__setitem__:
            return self._put(_part(*args[:2]), args[2])
        if func is torch.Tensor.copy_:
            return self._put(*args[:2])
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError as error:
            if "not linked with support for cuda" not in str(error):
                raise
        with_meta = tree_map(_on("meta"), (args, kwargs or {}))
        return tree_map(_on(CARD), func(*with_meta[0], **with_meta[1]))

    def _put(self, target: torch.Tensor, value: Any) -> torch.Tensor:
        if isinstance(value, torch.Tensor):
            assert torch.broadcast_shapes(target.shape, value.shape) == target.shape
            self._card.noted(value, target)
        return target


def _on(device: Any) -> Any:
    def moved(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.device.type == "cpu":
            return value
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)

    return moved


def _part(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    parts, dim = index if isinstance(index, tuple) else (index,), 0
    for number, part in enumerate(parts):
        if part is Ellipsis:
            dim = tensor.ndim - sum(each is not None for each in parts[number + 1 :])
        elif part is None:
            tensor, dim = tensor.unsqueeze(dim), dim + 1
        elif isinstance(part, slice):
            tensor, dim = torch.ops.aten.slice(tensor, dim, part.start, part.stop, part.step or 1), dim + 1
        elif isinstance(part, torch.Tensor) and part.ndim:
            tensor, dim = tensor.index_select(dim, part), dim + 1
        else:
            tensor = tensor.select(dim, 0)
    return tensor


@contextmanager
def pretended_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    """Within it tensors may be made on CARD."""
    card = Card()

    class Stream:
        def synchronize(self) -> None:
            card.waits += 1

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    rotary_embedding.cache_clear()
    with FakeTensorMode(), _Indexing(card), card:
        yield card
    rotary_embedding.cache_clear()


def put_on_card(network: torch.nn.Module, dtype: torch.dtype) -> None:
    """Replace the weights of a network, in place, by ones of that type on the card."""
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                made = torch.empty(weight.shape, dtype=dtype, device=CARD)
                module._parameters[name] = torch.nn.Parameter(made, requires_grad=False)
        assert not [buffer for buffer in module._buffers.values() if buffer is not None]
