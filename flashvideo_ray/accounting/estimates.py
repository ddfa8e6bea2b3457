"""What the settings' networks cost: operations of a candidate and of a clip, memory of a card, time of a text.

By calculation: `models.costs` counts what the networks compute at the settings' sizes. Where the model is not on this
machine, the released networks stand in for it. Where `card` has a measured number, that is taken, and said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flashvideo_ray import engines
from flashvideo_ray.accounting.card import Card
from flashvideo_ray.engines import weights
from flashvideo_ray.errors import InputError
from flashvideo_ray.models import costs
from flashvideo_ray.settings import Settings

_RELEASED_PREVIEW = {"height": 256, "width": 480, "num_frames": 49, "num_inference_steps": 51}
_RELEASED_REFINE = {"height": 1072, "width": 1920, "num_inference_steps": 5}
_TEXT_TOKENS = 226
_TEXT_CARD_SECONDS = 0.05
"""Of a text on a card: it reads 9.5 GB of weights once and computes 2.2 TFLOP. An H100 took half of it."""
_TEXT_CORE_SECONDS = 10.7
"""Of a text on one core with AVX-512 in bfloat16: one of the encoder's 24 layers was timed, by processor time."""
_STAGES: tuple[weights.ModelStage, ...] = ("preview", "refine")

# Each step needs less memory than the one before and changes the picture, or the time, a little more.
_LADDER: dict[str, tuple[dict[str, Any], ...]] = {
    "preview": (
        {"preview.guidance_batching": "apart"},
        {"pools.preview.offload": "model"},
    ),
    "refine": (
        {"refine.guidance_batching": "apart"},
        {"pools.refine.offload": "model"},
        {"refine.encode_tiles": [1, 2], "refine.decode_tiles": [2, 2]},
        {"refine.encode_tiles": [2, 2]},
        {"refine.encode_chunk_frames": 8, "refine.decode_tiles": [4, 4]},
    ),
}


class NotKnownError(InputError):
    """What a model costs cannot be calculated. The message says whose."""


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of the transformers, with the second evaluation that guidance takes."""

    preview: float
    """Of one candidate's stage 1."""
    refine: float
    """Of one clip's stage 2."""
    single: float
    """Of the stage-1 network if it drew the clip at its full size, in as many steps."""
    released: bool
    """Whether the released networks stand in for a model that is not here."""


@dataclass(frozen=True)
class Fit:
    """Whether a stage fits a card, and what would make it."""

    stage: str  # or several that share a card, joined by " + "
    card_gib: float
    needed_gib: float
    remedy: dict[str, Any] | None  # settings that make it fit, where it does not; None: none that are known
    remedy_gib: float | None
    source: str  # of what is needed: "estimated", or where it was measured

    @property
    def fits(self) -> bool:
        """By the estimate."""
        return self.needed_gib <= self.card_gib


def operations(settings: Settings) -> Operations:
    """The operations of stage 1, stage 2 and of a single stage, at these sizes and steps.

    Raises ModelNotFoundError, NotKnownError.
    """
    stages, released = _with_configs(settings)
    size = {stage: _latents(found, stages["preview"]["num_frames"]) for stage, found in stages.items()}
    first, second = stages["preview"], stages["refine"]

    def run(network: dict[str, Any], of: str) -> float:
        calls = network["num_inference_steps"] * network["evaluations"]
        return calls * costs.transformer_flops(network["transformer"], size[of], network["tokens"])

    return Operations(run(first, "preview"), run(second, "refine"), run(first, "refine"), released)


def known_operations(settings: Settings) -> Operations | None:
    """`operations`, or None where a model is not on this machine, or none of this package."""
    try:
        return operations(settings)
    except (weights.ModelNotFoundError, NotKnownError):
        return None


def not_known(settings: Settings, stages: Sequence[weights.ModelStage] = _STAGES) -> str | None:
    """Whose cost is not known, and why, in a sentence; None where it is known, or cannot be looked at here."""
    for stage in stages:
        try:
            _networks(settings, stage)
        except weights.ModelNotFoundError:
            continue
        except NotKnownError as error:
            return str(error)
    return None


def fit(settings: Settings, stages: Sequence[weights.ModelStage], card_gib: float, card: Card) -> Fit:
    """The peak memory of stages that share a card against it; where it is too much, settings that fit.

    Raises ModelNotFoundError, NotKnownError.
    """
    name = " + ".join(stages)
    needed, source = _peaks_gib(settings, stages, card)
    if needed <= card_gib:
        return Fit(name, card_gib, needed, None, None, source)
    for changes in _remedies(settings, stages):
        changed = Settings.of_tree(
            settings.model_dump(mode="json"), [f"{key}={value}" for key, value in changes.items()]
        )
        less, _ = _peaks_gib(changed, stages, card)
        if less <= card_gib:
            return Fit(name, card_gib, needed, changes, less, source)
    return Fit(name, card_gib, needed, None, None, source)


def text_seconds(settings: Settings, card: Card) -> dict[str, tuple[float, str]] | None:
    """Seconds of a prompt's texts on a `card` and on one `core`, and where each is from; None for other encoders."""
    if not is_released(settings):
        return None
    told = {"card": (_TEXT_CARD_SECONDS, "estimated"), "core": (_TEXT_CORE_SECONDS, "measured by a layer on one core")}
    for where in told:
        if (figure := card.text_seconds(where)) is not None:
            told[where] = (figure.value, f"measured beside {figure.card}" if where == "core" else _on(figure.card))
    return {where: (2 * seconds, source) for where, (seconds, source) in told.items()}  # a text for each stage


def _on(card: str) -> str:
    return f"measured on {card}"


def _remedies(settings: Settings, stages: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Changes of settings, from the smallest: each with those before it, without what is set already."""
    tree = settings.model_dump(mode="json")
    all_of: dict[str, Any] = {}
    for step in (step for stage in reversed(stages) for step in _LADDER[stage]):
        all_of |= step
        changes = {key: value for key, value in all_of.items() if _at(tree, key) not in (value, "group")}
        if changes:
            yield changes


def _at(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree[name]
    return tree


def _peaks_gib(settings: Settings, stages: Sequence[weights.ModelStage], card: Card) -> tuple[float, str]:
    peaks = [_peak_gib(settings, stage, card) for stage in stages]
    return sum(peak for peak, _ in peaks), ", ".join(dict.fromkeys(source for _, source in peaks))


def _peak_gib(settings: Settings, stage: weights.ModelStage, card: Card) -> tuple[float, str]:
    found = _with_configs(settings, [stage])[0]
    num_frames = found.get("preview", {}).get("num_frames") or _length(settings)
    own, pool = getattr(settings, stage), getattr(settings.pools, stage)
    common: dict[str, Any] = {
        **{name: found[stage][name] for name in ("height", "width", "num_inference_steps")},
        "num_frames": num_frames,
        "guidance_batching": own.guidance_batching,
        "dtype": getattr(torch, own.dtype),
        "vae_dtype": getattr(torch, own.vae_dtype or own.dtype),
        # Group offload keeps less on the card than model offload, whose estimate is the larger one.
        "offload": "none" if pool.offload == "none" else "model",
        "quantization": own.optimize.quantization,
    }
    if stage == "refine":
        common["encode_chunk_frames"] = own.encode_chunk_frames or 16
        common["encode_tiles"] = own.encode_tiles or (1, 1)
        common["decode_tiles"] = (1, 1) if own.decode_tiling == "none" else own.decode_tiles or (1, 2)
    # As it is measured: in 16 bits, at the released sizes.
    half = common["dtype"].itemsize == common["vae_dtype"].itemsize == 2
    as_measured = half and pool.offload != "group" and is_released(settings)
    figure = card.peak_bytes(stage, common) if as_measured else None
    if figure is not None:
        return figure.value / costs.GIB, _on(figure.card)
    estimate: Any = costs.estimate_preview if stage == "preview" else costs.estimate_refine
    peak = estimate(found[stage]["transformer"], found[stage]["vae"], **common).peak_bytes
    return peak / costs.GIB, "estimated"


def _networks(settings: Settings, stage: weights.ModelStage) -> dict[str, Any]:
    found = engines.of(settings, stage).networks()
    if found is None:
        model = getattr(settings, stage).model
        raise NotKnownError(f"{stage}.model: what {model} costs is not known: it is no model of this package")
    return dict(found)


def _with_configs(
    settings: Settings, stages: Sequence[weights.ModelStage] = _STAGES
) -> tuple[dict[str, dict[str, Any]], bool]:
    """By stage: sizes, steps and the configurations of both networks; whether they are the released ones.

    Raises ModelNotFoundError, NotKnownError.
    """
    try:
        full, released = engines.with_model_defaults(settings), False
        configs = {stage: _networks(full, stage) for stage in stages}
    except weights.ModelNotFoundError:  # maybe that of the other stage
        if (unknown := not_known(settings, stages)) is not None:
            raise NotKnownError(unknown) from None
        if not is_released(settings, stages):
            raise
        full, released = settings, True
        configs = {
            stage: {
                "transformer": costs.RELEASED[stage],
                "vae": costs.RELEASED["vae"],
                "tokens": _TEXT_TOKENS,
                "evaluations": 2,
            }
            for stage in stages
        }
    defaults = {"preview": _RELEASED_PREVIEW, "refine": _RELEASED_REFINE}
    found: dict[str, dict[str, Any]] = {}
    for stage, own in configs.items():
        given = getattr(full, stage).model_dump()
        sizes = {name: given[name] or default for name, default in defaults[stage].items()}
        unit = 2 ** (len(own["vae"]["block_out_channels"]) - 1) * own["transformer"]["patch_size"]
        sizes |= {name: sizes[name] // unit * unit for name in ("height", "width")}
        found[stage] = {**own, **sizes}
    return found, released


def _length(settings: Settings) -> int:
    """Frames of a preview."""
    try:
        stated = engines.of(settings, "preview").describe().num_frames
    except weights.ModelNotFoundError:
        stated = settings.preview.num_frames
    return stated or _RELEASED_PREVIEW["num_frames"]


def is_released(settings: Settings, stages: Sequence[weights.ModelStage] = _STAGES) -> bool:
    """Whether the settings ask for the sizes that FlashVideo was published with: 49 frames, 270p to 1080p."""
    preview, refine = settings.preview, settings.refine
    sizes = {
        "preview": (preview.height in (256, 270), preview.width == 480, preview.num_frames == 49),
        "refine": (refine.height in (1072, 1080), refine.width == 1920),
    }
    ours = "nano" not in [getattr(settings, stage).model for stage in stages] and not_known(settings, stages) is None
    return ours and all(size for stage in stages for size in sizes[stage])


def _latents(stage: dict[str, Any], num_frames: int) -> tuple[int, int, int]:
    scale = 2 ** (len(stage["vae"]["block_out_channels"]) - 1)
    ratio = int(stage["vae"].get("temporal_compression_ratio", 4))
    return (num_frames - 1) // ratio + 1, stage["height"] // scale, stage["width"] // scale


def card_gib(accelerator_type: str | None) -> float | None:
    """The memory of a card by Ray's name of its type, or None where that is not known.

    It is what a process finds there, which is up to a twelfth less than the card is sold with: those are other
    gigabytes, and some check errors with a part of them.
    """
    return _CARDS.get(accelerator_type or "")


_CARDS: dict[str, float] = {
    "T4": 14.6, "V100": 15.8, "L4": 22, "A10G": 22, "L40S": 44.4, "A100": 39.4, "A100-40G": 39.4, "A100-80G": 79.1,
    "H100": 79.1, "H20": 95, "H200": 139.8, "B200": 178,
}  # fmt: skip
