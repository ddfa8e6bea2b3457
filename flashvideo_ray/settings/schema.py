"""The models of settings: frozen, closed, and validated at the edge."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from flashvideo_ray.settings import reading
from flashvideo_ray.settings.kinds import (
    Candidates,
    Frozen,
    Integer,
    NonNegative,
    Options,
    Pixels,
    Positive,
    Real,
    Seconds,
    Stage,
    Steps,
)
from flashvideo_ray.settings.pools import Pools

Dtype = Literal["float32", "bfloat16", "float16"]
Metadata = Literal["full", "minimal"]
GuidanceBatching = Literal["together", "apart"]


class PromptColumns(Frozen):
    """What the columns of PROMPTS are called, where it is something else."""

    prompt: Annotated[str, Field(min_length=1)] | None = None
    id: Annotated[str, Field(min_length=1)] | None = None
    seed: Annotated[str, Field(min_length=1)] | None = None
    negative_prompt: Annotated[str, Field(min_length=1)] | None = None
    preview_url: Annotated[str, Field(min_length=1)] | None = None

    @property
    def named(self) -> dict[str, str]:
        """Those that are called something else, by what they are."""
        return {field: name for field, name in self if name is not None}


class PromptSettings(Frozen):
    """How prompts are read, and what becomes of those that would give the same clips (same text, same seeds)."""

    columns: PromptColumns = PromptColumns()
    duplicates: Literal["refuse", "drop", "seed"] = Field(
        "refuse", description="`drop` keeps the first of them, `seed` gives each of the others a seed of its own"
    )


class TextSettings(Frozen):
    """How prompts are encoded, once for both stages."""

    dtype: Dtype = "float32"


class CacheSettings(Frozen):
    """A cache that reuses parts of one step in the next, and diffusers' options of it."""

    name: Literal["first_block", "mag", "pyramid_attention"]
    options: dict[str, Any] = Field({})


class OptimizeSettings(Frozen):
    """What makes a network faster or smaller, and changes its pixels a little. What would do nothing is refused."""

    compile: bool = Field(
        False, description="compile the transformer's blocks; the first clip of an actor takes longer"
    )
    attention: str | None = Field(None, description="diffusers' name of an attention kernel; null: PyTorch's own")
    cache: CacheSettings | None = None
    quantization: Literal["fp8"] | None = Field(None, description="fp8: the blocks' matrices are kept in 8 bits")


class AdapterSettings(Frozen):
    """A LoRA that is merged into the transformer, so much of it."""

    path: str = Field(description="a .safetensors file that every node of the stage sees")
    weight: float = 1.0


class PreviewSettings(Frozen):
    """Stage 1: text to low-resolution latents (arXiv 2502.05179, section 3.2), or to frames by any other pipeline."""

    model: str = Field(
        "nano",
        description="`nano`, a folder (of this package or any text-to-video pipeline of diffusers), or a hub id "
        "(`org/name` or `org/name@revision`); `existing` where the prompts have a column `preview_url`",
    )
    dtype: Dtype = "float32"
    vae_dtype: Dtype | None = Field(None, description="null: the same as dtype")
    height: Pixels | None = None
    width: Pixels | None = None
    num_frames: Positive | None = None
    resample: bool = Field(
        False, description="whether previews that exist are brought to this size and length, and to `video.fps`"
    )
    num_inference_steps: Steps | None = None
    guidance_scale: NonNegative | None = None
    guidance_batching: GuidanceBatching = "together"
    call: Options = Field({}, description="further arguments of a diffusers pipeline's call, as its signature has them")
    optimize: OptimizeSettings = OptimizeSettings()
    adapters: tuple[AdapterSettings, ...] = ()


class RefineSettings(Frozen):
    """Stage 2: preview to a high-resolution clip, by flow matching (arXiv 2502.05179, section 3.3) or otherwise."""

    model: str = Field(
        "nano",
        description="`nano`, a folder (of this package or any video-to-video pipeline of diffusers), a hub id, or "
        "`none`: the preview is the clip",
    )
    dtype: Dtype = "float32"
    vae_dtype: Dtype | None = Field(None, description="null: the same as dtype")
    height: Pixels | None = None
    width: Pixels | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: NonNegative | None = None
    noise_step: Annotated[Integer, Field(ge=0, le=999)] | None = None
    guidance_batching: GuidanceBatching = "together"
    encode_chunk_frames: Positive | None = Field(None, description="16 is the reference; fewer need less memory")
    encode_tiles: tuple[Positive, Positive] | None = Field(None, description="rows, columns; more need less memory")
    decode_tiling: Literal["none", "reference", "blend"] | None = None
    decode_tiles: tuple[Positive, Positive] | None = Field(None, description="rows, columns; more need less memory")
    call: Options = Field({}, description="further arguments of a diffusers pipeline's call, as its signature has them")
    optimize: OptimizeSettings = OptimizeSettings()
    adapters: tuple[AdapterSettings, ...] = ()


class ScorerSettings(Frozen):
    """One scorer: a short name (`motion`) or a dotted path to a class, and its options."""

    name: str
    options: Options = Field({})
    pool: Literal["score", "rate"] = Field(
        "score",
        description="`rate` is the pool for scorers with large models; it only sees what the others let through",
    )


class ScoreSettings(Frozen):
    """Which numbers are measured on a preview, in this order."""

    scorers: tuple[ScorerSettings, ...] = tuple(
        ScorerSettings(name=name) for name in ("motion", "flicker", "sharpness", "exposure", "sanity")
    )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that score, in their order: `score`, and `rate` if a scorer asks for its pool."""
        return ("score", "rate") if any(spec.pool == "rate" for spec in self.scorers) else ("score",)

    @field_validator("scorers", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """`[motion, {name: flicker}]`: a bare name stands for a scorer without options."""
        if isinstance(value, Sequence) and not isinstance(value, str):
            return tuple({"name": item} if isinstance(item, str) else item for item in value)
        return value


class SelectSettings(Frozen):
    """Which previews are worth refining. Rules are expressions over scores, such as `motion >= 0.5`."""

    require: tuple[str, ...] = Field((), description="conditions; all must hold")
    percentiles: dict[str, Annotated[Real, Field(gt=0, lt=100)]] = Field(
        {}, description="`{alignment: 50}` rejects what is below the run's median; decided when all previews are there"
    )
    rank: str | None = Field(None, description="a number to compare candidates by, such as `alignment + 0.1 * motion`")
    keep: Positive | None = Field(None, description="how many candidates of a prompt survive, the best by rank")
    draw: Annotated[Candidates, Field(ge=0)] = Field(
        0, description="further candidates for a prompt none of whose candidates survived"
    )
    duplicates: Annotated[Integer, Field(ge=0, le=24)] | None = Field(
        None, description="of previews whose `hash` differs in at most so many bits of 48, only the best survives"
    )
    duplicates_within: Literal["prompt", "run"] = "prompt"
    missing: Literal["reject", "keep", "fail"] = Field(
        "reject", description="what becomes of a preview without a score that a rule needs"
    )
    audit: Annotated[Real, Field(ge=0, le=1)] = Field(
        0.0, description="share of the rejected that is refined all the same, to measure what selection is worth"
    )

    @field_validator("require", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("require")
    @classmethod
    def _conditions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        from flashvideo_ray.expressions.rules import Requirement

        for text in value:
            Requirement.parse(text)
        return value

    @field_validator("percentiles")
    @classmethod
    def _scores(cls, value: dict[str, float]) -> dict[str, float]:
        for name in value:
            if not name.isidentifier():
                raise ValueError(f"{name!r} is not the name of a score; a percentile is of one score, not of a rule")
        return value

    @field_validator("rank")
    @classmethod
    def _number(cls, value: str | None) -> str | None:
        from flashvideo_ray.expressions.rules import Rank

        if value is not None:
            Rank.parse(value)
        return value

    @property
    def compares_candidates(self) -> bool:
        """Whether a preview can only be judged beside the others of its prompt."""
        return self.keep is not None or self.duplicates is not None

    @property
    def needs_whole_run(self) -> bool:
        """Whether a preview can only be judged when all the others are there."""
        return bool(self.percentiles) or (self.duplicates is not None and self.duplicates_within == "run")


class VideoSettings(Frozen):
    """How MP4s are written (H.264, yuv420p, bt709). A lower crf is larger and better."""

    preview_crf: Annotated[Integer, Field(ge=0, le=51)] = 23
    clip_crf: Annotated[Integer, Field(ge=0, le=51)] = 18
    codec: Literal["libx264", "h264_nvenc"] = Field(
        "libx264", description="of clips; NVENC needs a card that has it, and a clip_crf above 0"
    )
    encoder_preset: str | None = Field(None, description="the codec's own speed preset; null: its default")
    fps: Annotated[Real, Field(gt=0, le=1000)] | None = Field(
        None, description="frames a second of previews and clips; null: as the model says"
    )
    metadata: Metadata = Field(
        "full", description="what MP4s tell of themselves; minimal: neither prompt nor seed; may be changed at any time"
    )

    @model_validator(mode="after")
    def _quality_is_aimed_at(self) -> Self:
        if self.codec == "h264_nvenc" and not self.clip_crf:
            raise ValueError("clip_crf 0 is lossless with libx264 and no target at all with h264_nvenc: give 1 to 51")
        return self


class CredentialSettings(Frozen):
    """With what clips are signed (C2PA). Named here, and never held: files in PEM, or `env:NAME` for a variable."""

    certificate: str = Field(description="the certificate and those that it leads to, itself first")
    key: str | None = Field(None, description="its private key, without a pass phrase")
    signer: str | None = Field(None, description="in the place of a key: dotted path of a function, bytes to signature")
    timestamp_authority: str | None = Field(None, description="its URL (RFC 3161)")
    trust: str | None = Field(None, description="what `verify` trusts; null: the last certificate of `certificate`")
    previews: bool = Field(False, description="whether previews are signed, too")

    @field_validator("certificate", "key", "trust")
    @classmethod
    def _place(cls, value: str | None) -> str | None:
        """Absolute: actors work in folders of their own."""
        if value is None or value.startswith("env:"):
            return value
        if "\n" in value or "-----" in value:
            raise ValueError(
                "is the path of a file in PEM, or env:NAME for a variable that holds it; not the PEM itself"
            )
        return os.path.abspath(os.path.expanduser(value))

    @field_validator("timestamp_authority")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("is a URL that begins with http:// or https://")
        return value

    @model_validator(mode="after")
    def _one_way_to_sign(self) -> Self:
        if (self.key is None) == (self.signer is None):
            raise ValueError("needs a key or a signer, and one of them alone")
        return self


class LedgerSettings(Frozen):
    """How often finished rows become durable (by rows or by seconds), and how long a silent job keeps its run."""

    flush_rows: Positive = 256
    flush_seconds: Seconds = 5.0
    lease_seconds: Annotated[Seconds, Field(ge=1)] = Field(
        60.0, description="after which a job that died frees its run"
    )


class DevicePrice(Frozen):
    """Money for one card (or, for `cpu`, one core) for one hour."""

    on_demand: NonNegative
    spot: NonNegative | None = Field(None, description="null: the on-demand price")


class Prices(Frozen):
    """What cards cost. A key is part of a device's name as the ledger has it: `H100`, `L40S`, `cpu`."""

    currency: str = "USD"
    devices: dict[str, DevicePrice] = Field({})


class NotifySettings(Frozen):
    """Who is told when a job ends, stands still, fails or has nearly spent its budget. May be changed at any time."""

    url: str | None = Field(None, description="JSON is posted there; `env:NAME` for a variable that holds it")
    command: str | None = Field(None, description="or a shell command that gets the JSON on its standard input")
    stall_seconds: Seconds = Field(1800.0, description="without a call that ends; then it is a stall")
    failure_rate: Annotated[Real, Field(ge=0, le=1)] = Field(
        0.2, description="share of this job's candidates that failed, once 20 have ended"
    )
    budget_share: Annotated[Real, Field(gt=0, le=1)] = Field(0.9, description="of `--budget` that is spent")

    @field_validator("url")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://", "env:")):
            raise ValueError("is a URL that begins with http:// or https://, or env:NAME")
        return value

    @model_validator(mode="after")
    def _somebody_is_told(self) -> Self:
        if (self.url is None) == (self.command is None):
            raise ValueError("needs a url or a command, and one of them alone")
        return self


class Settings(Frozen):
    """Everything that one run is told."""

    seed: Annotated[Integer, Field(ge=0, lt=2**63)] = 0
    candidates: Annotated[Candidates, Field(gt=0)] = Field(
        1, description="candidates for each prompt, each with a seed of its own"
    )
    prompts: PromptSettings = PromptSettings()
    text: TextSettings = TextSettings()
    preview: PreviewSettings = PreviewSettings()
    score: ScoreSettings = ScoreSettings()
    select: SelectSettings = SelectSettings()
    refine: RefineSettings = RefineSettings()
    video: VideoSettings = VideoSettings()
    credentials: CredentialSettings | None = Field(None, description="null: clips have the plain mark alone")
    pools: Pools = Pools()
    ledger: LedgerSettings = LedgerSettings()
    keep: tuple[Literal["latents", "previews"], ...] = Field(
        ("latents", "previews"),
        description="what stays of candidates that are rendered or rejected, beside their clips",
    )
    prices: Prices = Prices()
    max_attempts: Positive = Field(3, description="times a candidate may kill the process of a stage before it fails")
    placement_patience_seconds: NonNegative | None = Field(
        None, description="how long a job waits for a node that a pool can run on; null: as long as it takes"
    )
    max_equal_failures: Positive = Field(
        10,
        description="in a row, of one stage and class of error; then its node is left out, or the job ends",
    )
    store_patience_seconds: NonNegative = Field(
        600.0, description="how long a run waits for a store, a timestamp authority or a KMS that is away"
    )
    progress_seconds: Seconds = Field(15.0, description="between progress lines in a job's log")
    log_format: Literal["text", "json"] = Field(
        "text", description="json: an object a line, with stage and clip_id where it is about a candidate"
    )
    notify: NotifySettings | None = Field(None, description="null: nobody is told")

    @classmethod
    def load(cls, source: str | Path | None = None, overrides: Sequence[str] = ()) -> Self:
        """Read a preset (`nano`, `flashvideo-1080p`) or a YAML file and apply `a.b=c` overrides.

        Raises SettingsError with one message that names every wrong key.
        """
        tree = reading.read(source) if source is not None else {}
        return cls.of_tree(tree, overrides, where=str(source) if source is not None else "settings")

    @classmethod
    def of_tree(cls, tree: Mapping[str, Any], overrides: Sequence[str] = (), where: str = "settings") -> Self:
        """Apply `a.b=c` overrides to a tree of plain values and validate it. Raises SettingsError."""
        changed = copy.deepcopy(dict(tree))
        for override in overrides:
            reading.apply(changed, override)
        try:
            return cls.model_validate(changed)
        except ValidationError as error:
            raise reading.explained(error, cls, where) from None

    def recipe(self) -> dict[str, Any]:
        """What decides pixels and scores, apart from weights: a run has exactly one. Plain JSON values."""
        tree = self.model_dump(mode="json", include={"seed", "candidates", "text", "score", "video"})
        del tree["video"]["metadata"]  # decides no pixel
        if self.video.fps is None:  # as in runs from before there was such a key
            del tree["video"]["fps"]
        return tree | {stage: _own_recipe(getattr(self, stage)) for stage in ("preview", "refine")}

    def stage1_recipe(self) -> dict[str, Any]:
        """What decides a preview's pixels, apart from prompt, seed and weights."""
        fps = {} if self.video.fps is None else {"fps": self.video.fps}  # some models are told
        return {"text": self.text.model_dump(mode="json"), "preview": _own_recipe(self.preview), **fps}


def _own_recipe(own: PreviewSettings | RefineSettings) -> dict[str, Any]:
    """A stage's settings without its weights (model, adapters), which stand in a recipe by their fingerprint.

    `optimize`, `call` and `resample` are left out where nothing is asked for: runs from before there were such keys
    have the same recipe.
    """
    tree = own.model_dump(mode="json", exclude={"model", "adapters"})
    if own.optimize == OptimizeSettings():
        del tree["optimize"]
    if not own.call:
        del tree["call"]
    if not tree.get("resample", True):
        del tree["resample"]
    return tree
