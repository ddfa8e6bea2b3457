"""What `benchmarks/gpu.py` has measured on a card: what it knows, estimates need not guess.

The file is named by `plan --card`, or is `docs/gpu.json` of a checkout. What was tried on a CPU measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from flashvideo_ray.errors import InputError

_BESIDE_DOCS = Path(__file__).resolve().parents[2] / "docs" / "gpu.json"
_GIB = 1024**3
_STEPS = {"preview": 51, "refine": 5}  # of a whole call as it is measured


class CardError(InputError):
    """A file of measurements that cannot be read. The message says what to do."""


@dataclass(frozen=True)
class Figure:
    """One number, and the card that it was measured on."""

    value: float
    card: str


class Card:
    """The figures of such a file, each by what it is about; None for what was not measured."""

    def __init__(self, sections: Mapping[str, Any]):
        self._about: list[tuple[dict[str, Any], Figure]] = []
        for section in sections.values():
            if section["tiny"] or section["machine"]["driver"] == "none":
                continue
            for result in section["results"]:
                if result.get("about") and isinstance(result["value"], int | float):
                    self._about.append((result["about"], Figure(result["value"], section["machine"]["card"])))

    @classmethod
    def read(cls, file: Path | None = None) -> Self:
        """Read a file; without one that beside the docs, if there is one. Raises CardError."""
        if file is None:
            if not _BESIDE_DOCS.is_file():
                return cls({})
            file = _BESIDE_DOCS
        try:
            return cls(json.loads(file.read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CardError(f"{file}: not what benchmarks/gpu.py writes ({error!r}); run it again") from None

    def find(self, **about: Any) -> Figure | None:
        """The figure that is about this, and nothing else."""
        plain = json.loads(json.dumps(about))
        return next((figure for found, figure in self._about if found == plain), None)

    def seconds(self, stage: str, steps: int) -> Figure | None:
        """Of a whole call at the released size, with so many steps instead of those that were measured."""
        whole, step = self.find(stage=stage, what="whole"), self.find(stage=stage, what="step")
        if whole is None or step is None:
            return None
        return Figure(whole.value + (steps - _STEPS[stage]) * step.value, whole.card)

    def peak_bytes(self, stage: str, options: Mapping[str, Any]) -> Figure | None:
        """Most memory of a stage at the released size in 16 bits, with these options of `models.costs`."""
        found = self.find(stage=stage, what="peak", options=costs_options(stage, options))
        return None if found is None else Figure(found.value * _GIB, found.card)

    def text_seconds(self, where: str) -> Figure | None:
        """Of one text: on a `card`, or on one `core`."""
        return self.find(what="text", where=where)


def costs_options(stage: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `costs.estimate_preview` or `estimate_refine` in full, so that equal ones compare equal."""
    full: dict[str, Any] = {"guidance_batching": "together", "offload": "none", "quantization": None}
    if stage == "refine":
        full |= {"encode_chunk_frames": 16, "encode_tiles": (1, 1), "decode_tiles": (1, 2)}
    return full | {name: options[name] for name in full if options.get(name) is not None}
