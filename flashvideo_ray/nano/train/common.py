"""What every part's training shares: the optimiser, the schedule, averaged weights, checkpoints and curves."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards the nearest orthogonal matrix; batched over leading dimensions, bfloat16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: updates of equal size in all directions (Jordan et al., 2024), rms `0.2 * lr`-scaled.

    For hidden matrices and convolutions; matrices of equal shape are stacked, so that a step is a few large products.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                buffer = state["momentum"]
                buffer.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(buffer, group["momentum"]).flatten(1)
                shapes.setdefault((update.shape[0], update.shape[1]), []).append((parameter, update))
            for (rows, columns), members in shapes.items():
                updates = orthogonalize(torch.stack([update for _, update in members]))
                scale = 0.2 * math.sqrt(max(rows, columns))
                for (parameter, _), update in zip(members, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["decay"])
                    parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)


class Optimizers:
    """Muon for hidden matrices, AdamW for the rest, under one learning-rate factor."""

    def __init__(self, hidden: Sequence[nn.Parameter], rest: Sequence[nn.Parameter], lrs: tuple[float, float]) -> None:
        self.all: list[torch.optim.Optimizer] = []
        if hidden:
            self.all.append(Muon(hidden, lrs[0]))
        self.all.append(torch.optim.AdamW(rest, lrs[1], betas=(0.9, 0.98), weight_decay=0.0))
        self.base = [group["lr"] for optimizer in self.all for group in optimizer.param_groups]

    def step(self, factor: float, clip: float = 1.0) -> float:
        """One update with the learning rates times `factor`; returns the gradient's norm."""
        groups = [group for optimizer in self.all for group in optimizer.param_groups]
        norm = nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], clip)
        for group, lr in zip(groups, self.base, strict=True):
            group["lr"] = lr * factor
        for optimizer in self.all:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def state_dict(self) -> list[Any]:
        """The state of each optimiser."""
        return [optimizer.state_dict() for optimizer in self.all]

    def load_state_dict(self, states: list[Any]) -> None:
        """Continue from `state_dict`."""
        for optimizer, state in zip(self.all, states, strict=True):
            optimizer.load_state_dict(state)


def cosine(step: int, total: int, warmup: int = 50, floor: float = 0.02) -> float:
    """Learning-rate factor: a linear warm-up, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


class Average:
    """Exponentially averaged weights; young averages forget faster."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        self.weights = {name: value.detach().clone().float() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights as they are after a step into the average."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        for name, value in model.state_dict().items():
            self.weights[name].lerp_(value.float(), 1 - decay)


class Run:
    """One part's folder: `checkpoint.pt` (replaced atomically), `curve.jsonl`, and the clock of CPU seconds."""

    def __init__(self, folder: str | Path, every: float = 120.0) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.every, self.saved = every, time.monotonic()
        self.cpu_before, self.cpu_start = 0.0, time.process_time()

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds spent on this part, over all its sessions."""
        return self.cpu_before + time.process_time() - self.cpu_start

    def due(self) -> bool:
        """True if the last checkpoint is old."""
        return time.monotonic() - self.saved > self.every

    def save(self, **state: Any) -> None:
        """Write a checkpoint; a kill leaves the old or the new one."""
        part = self.folder / "checkpoint.part"
        torch.save({**state, "cpu_seconds": self.cpu_seconds}, part)
        os.replace(part, self.folder / "checkpoint.pt")
        self.saved = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, or None at the first start."""
        file = self.folder / "checkpoint.pt"
        if not file.is_file():
            return None
        state = torch.load(file, weights_only=False)
        self.cpu_before = state["cpu_seconds"]
        return state

    def log(self, **values: Any) -> None:
        """Append a line to the curve and print it."""
        row = {k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}
        row["cpu_seconds"] = round(self.cpu_seconds, 1)
        with open(self.folder / "curve.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        print(self.folder.name, json.dumps(row), flush=True)


class Training:
    """One part's way from its last checkpoint, or its beginning, to its averaged weights.

    `model` is what the optimisers see, `averaged` the part of it that is kept: often the same. `first` is the step that
    it begins with.
    """

    def __init__(self, folder: Path, model: nn.Module, averaged: nn.Module, optimizers: Optimizers, decay: float):
        self.model, self.averaged, self.optimizers = model, averaged, optimizers
        self.average, self.run = Average(averaged, decay), Run(folder)
        self.first = 0
        if state := self.run.load():
            model.load_state_dict(state["model"])
            self.average.weights, self.average.count = state["average"], state["count"]
            optimizers.load_state_dict(state["optimizers"])
            self.first = state["step"]

    def steps(self, stop: int) -> Iterator[int]:
        """The steps that are left before `stop`. Checkpoints are written on the way and at the end."""
        for step in range(self.first, stop):
            yield step
            if self.run.due():
                self._save(step + 1)
        self._save(max(self.first, stop))

    def update(self, factor: float, clip: float = 1.0) -> None:
        """One step of the optimisers with the gradients there are, and of the average."""
        self.optimizers.step(factor, clip)
        self.average.update(self.averaged)

    def result(self) -> Any:
        """The averaged weights, in the part that is kept."""
        self.averaged.load_state_dict(self.average.weights)
        return self.averaged.eval()

    def _save(self, step: int) -> None:
        self.run.save(
            model=self.model.state_dict(),
            average=self.average.weights,
            count=self.average.count,
            optimizers=self.optimizers.state_dict(),
            step=step,
        )
