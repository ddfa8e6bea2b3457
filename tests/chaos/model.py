"""The stand-in model: it writes down each of its calls, takes its time, and fails at prompts that it knows."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import random
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from diffusers import AutoencoderKLCogVideoX, ModelMixin  # noqa: F401  see `faulty_network`
from diffusers.configuration_utils import register_to_config
from faulty_network import FaultyTransformer

from flashvideo_ray import FlashVideoPreviewPipeline, FlashVideoRefinePipeline

STEPS = {"preview": 4, "refine": 2}
_TELLING = 1e-3  # two prompts differ by more in the sums of their embeddings, by which the networks know them
_RUNGS = 3  # in how many ways an actor tries to decode, from the last that it needed (`engines.memory_ladder`)
_exhausted = {"decodes": 0, "found": 0}  # decodes of this process that will find no memory, and that found none
_once: set[float] = set()  # prompts of this process for which a decode found no memory


class WatchedTransformer(FaultyTransformer):
    """A network that appends a line to a log when a sampling begins and when it ends."""

    __module__ = "chaos.hook"  # what `model_index.json` names

    @register_to_config
    def __init__(
        self,
        stage: str = "preview",
        log: str = "",
        seconds: float = 0.0,
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
        super().__init__(
            triggers=triggers,
            faults=faults,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            time_embed_dim=time_embed_dim,
            text_embed_dim=text_embed_dim,
            num_layers=num_layers,
            size_embedding=size_embedding,
            ref_step_embedding=ref_step_embedding,
        )
        self._fate = Fate(Path(log).parent, stage)
        self._fate.loads()
        self._steps_left = 0
        self._number = 0.0
        self._decodes = 0  # which will find no memory, when the sampling has ended

    def project_text(self, embeds: torch.Tensor) -> torch.Tensor:
        number = embeds.double().sum().item()
        if number:  # the unconditional embedding is all zeros
            self._fate.calls()
            self._number, self._steps_left = number, STEPS[self.config.stage]
            _exhausted["decodes"] = self._decodes = 0
            self._write("begin")
        return super().project_text(embeds)

    def fail(self, fault: str, tokens: torch.Tensor) -> torch.Tensor:
        if fault.startswith("memory"):
            # Its own decodes and no more: the next one's preview is decoded before anything tells it apart.
            always = max(1, _RUNGS - _exhausted["found"])
            self._decodes = always if fault != "memory" else int(self._number not in _once)
            _once.add(self._number)
            return tokens
        return super().fail(fault, tokens)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        time.sleep(self.config.seconds / STEPS[self.config.stage])
        result = super().forward(*args, **kwargs)
        self._steps_left -= 1
        if self._steps_left == 0:
            self._write("end")
            _exhausted["decodes"] = self._decodes
        return result

    def _write(self, event: str) -> None:
        """A line of the log is the name of an empty file: it can be written where no file may grow."""
        line = f"{time.time():.6f} {self.config.stage} {event} {self._number:.6f} {os.getpid()}"
        os.close(os.open(Path(self.config.log) / line, os.O_WRONLY | os.O_CREAT))


class AlikeError(RuntimeError):
    """What each call raises that is told to fail."""


class Fate:
    """How the stand-in is to fail from now on, whatever the prompt: files in a folder, written by the harness.

    `{stage}-load-die-*` and `{stage}-load-raise-*` are each good for one load: the process is killed, or the
    constructor raises. `{stage}-load-die-on` and `{stage}-call-raise-on` hold the id of a node, or `everywhere`.
    """

    def __init__(self, folder: Path, stage: str):
        self.folder, self.stage = folder, stage

    def loads(self) -> None:
        if self._is_here("load-die-on") or self._drawn("load-die-"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._drawn("load-raise-"):
            raise RuntimeError("this load was told to fail")

    def calls(self) -> None:
        if self._is_here("call-raise-on"):
            raise AlikeError("this call was told to fail")

    def tell(self, what: str, where: str = "") -> Path:
        """Let it fail so; the fault is over when the file is gone."""
        path = self.folder / f"{self.stage}-{what}"
        path.write_text(where)
        return path

    def _is_here(self, what: str) -> bool:
        path = self.folder / f"{self.stage}-{what}"
        where = path.read_text() if path.exists() else ""
        return where == "everywhere" or (bool(where) and where == ray.get_runtime_context().get_node_id())

    def _drawn(self, what: str) -> bool:
        for path in self.folder.glob(f"{self.stage}-{what}[0-9]*"):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
                return True
        return False


class ScarceVAE(AutoencoderKLCogVideoX):
    """A VAE that asks for more memory than there is where the network says so."""

    __module__ = "chaos.hook"

    @functools.wraps(AutoencoderKLCogVideoX.__init__)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.decoder.register_forward_pre_hook(self._ask)

    @staticmethod
    def _ask(*_: object) -> None:
        if _exhausted["decodes"]:
            _exhausted["decodes"] -= 1
            _exhausted["found"] += 1
            bytearray(1 << 60)


class Lot:
    """A scorer that draws lots: a number in [0, 1) that depends on the prompt alone."""

    names = ("lot",)

    def __call__(self, frames: np.ndarray, prompt: str) -> dict[str, float]:
        return {"lot": lot(prompt)}


def lot(prompt: str) -> float:
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:6], "big") / 2**48


@dataclass(frozen=True)
class Call:
    """One sampling, from its first line in the log to its last."""

    stage: str
    prompt: str
    pid: int
    begun: float
    ended: float | None


class StandIn:
    """A saved stand-in model, the prompts for it, and the log of its calls.

    `faults` are drawn among the prompts that come to the stage concerned: (stage, fault) for each.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        *,
        seconds: Mapping[str, float],
        faults: Sequence[tuple[str, str]] = (),
        rejected: float = 0.4,
        seed: int = 0,
    ):
        from tiny import save_model

        self.folder, self.log = folder / "model", folder / "calls"
        self.log.mkdir(parents=True)
        self.fates = {stage: Fate(folder, stage) for stage in STEPS}
        self.rejected = rejected
        save_model(self.folder)
        pipes = {
            "preview": FlashVideoPreviewPipeline.from_pretrained(self.folder / "preview"),
            "refine": FlashVideoRefinePipeline.from_pretrained(self.folder / "refine"),
        }
        self._numbers: dict[str, dict[str, float]] = {"preview": {}, "refine": {}}
        self.prompts = self._distinct(pipes["preview"], pipes["refine"].config.prompt_prefix, count)
        self.faults = self._draw(faults, random.Random(seed))
        for stage, pipe in pipes.items():
            own = [(prompt, fault) for prompt, (where, fault) in self.faults.items() if where == stage]
            sound = pipe.transformer
            watched = WatchedTransformer(
                stage=stage,
                log=str(self.log),
                seconds=seconds[stage],
                triggers=tuple(self._numbers[stage][prompt] for prompt, _ in own),
                faults=tuple(fault for _, fault in own),
                size_embedding=sound.config.size_embedding,
                ref_step_embedding=sound.config.ref_step_embedding,
            )
            watched.load_state_dict(sound.state_dict())
            pipe.register_modules(transformer=watched)
            if stage == "refine":
                vae = ScarceVAE.from_config(pipe.vae.config)
                vae.load_state_dict(pipe.vae.state_dict())
                pipe.register_modules(vae=vae)
            pipe.save_pretrained(self.folder / stage)

    def survives(self, prompt: str) -> bool:
        return lot(prompt) >= self.rejected

    def expected(self, prompt: str) -> str:
        """How a candidate ends, whatever else happens."""
        stage, fault = self.faults.get(prompt, ("", ""))
        if fault not in ("", "memory") and (stage == "preview" or self.survives(prompt)):
            return "failed"
        return "rendered" if self.survives(prompt) else "rejected"

    def calls(self, stage: str) -> list[Call]:
        """All samplings of a stage so far, in the order of their beginnings."""
        known = self._numbers[stage]
        open_: dict[str, Call] = {}  # by process: the last line of the log may be of any
        calls: list[Call] = []
        for line in sorted(os.listdir(self.log), key=lambda line: float(line.split()[0])):
            at, where, event, number, pid = line.split()
            if where != stage:
                continue
            if event == "begin":
                prompt = min(known, key=lambda prompt: abs(known[prompt] - float(number)))
                open_[pid] = Call(stage, prompt, int(pid), float(at), None)
            else:
                begun = open_.pop(pid)
                calls.append(Call(stage, begun.prompt, begun.pid, begun.begun, float(at)))
        return sorted([*calls, *open_.values()], key=lambda call: call.begun)

    def _distinct(self, pipe: FlashVideoPreviewPipeline, prefix: str, count: int) -> list[str]:
        found: list[str] = []
        for prompt in _sentences():
            embeds = {"preview": pipe.encode_prompt(prompt), "refine": pipe.encode_prompt(prompt, prefix=prefix)}
            sums = {stage: values.double().sum().item() for stage, values in embeds.items()}
            known = self._numbers
            if all(abs(sums[stage] - other) > _TELLING for stage in sums for other in known[stage].values()):
                for stage, number in sums.items():
                    known[stage][prompt] = number
                found.append(prompt)
            if len(found) == count:
                return found
        raise ValueError(f"{len(found)} prompts can be told apart, not {count}")

    def _draw(self, faults: Sequence[tuple[str, str]], rng: random.Random) -> dict[str, tuple[str, str]]:
        drawn: dict[str, tuple[str, str]] = {}
        for stage, fault in faults:
            can = [p for p in self.prompts if p not in drawn and (stage == "preview" or self.survives(p))]
            drawn[rng.choice(can)] = (stage, fault)
        return drawn


def _sentences() -> Iterator[str]:
    words = itertools.product(
        ("red", "blue", "green", "grey"),
        ("circle", "square", "star"),
        ("left", "right", "up", "down"),
        ("moves", "moves slowly"),
        ("over", "on"),
        ("sand", "water"),
        ("red", "blue", "green", "grey"),
    )
    sentences = [f"a {a} {b} {d} {c} {e} the {g} {f}" for a, b, c, d, e, f, g in words]
    random.Random(0).shuffle(sentences)
    return iter(sentences)
