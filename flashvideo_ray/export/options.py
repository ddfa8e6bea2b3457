"""What an export is told: checked before anything is read or written."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from flashvideo_ray.errors import InputError

Format = Literal["webdataset", "hf", "parquet", "jsonl", "preference"]
Media = Literal["clips", "previews"]
EMBEDS: frozenset[Format] = frozenset({"webdataset", "hf", "preference"})  # media are in the shards
SUFFIX: Mapping[Format, str] = {
    "webdataset": "tar",
    "hf": "parquet",
    "parquet": "parquet",
    "jsonl": "jsonl",
    "preference": "parquet",
}
SHARD_BYTES = 256_000_000
_HASH_DIGITS = 12  # of sha256, in hex: 48 bits
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
_SPLIT = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class ExportError(InputError):
    """An export that cannot be made. The message says what to change."""


class Options(BaseModel):
    """What decides the content of a dataset: its recipe, one for its life, and what only its card says.

    `where` is an expression over the columns of a candidate; `splits` are names with their shares, which add up to 1.
    The last four are of `preference`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Format
    media_of: Media = "clips"
    copy_media: bool = False
    where: str | None = None
    caption: str = "prompt"
    splits: dict[str, float] = Field(default_factory=lambda: {"train": 1.0})
    shard_bytes: int = Field(default=SHARD_BYTES, ge=1)
    rank: str | None = None
    least_margin: float = Field(default=0.0, ge=0)
    pairs_a_prompt: int = Field(default=1, ge=1)
    license: str | None = None

    def check(self) -> None:
        """Raise ExportError for options that do not go together."""
        if self.copy_media and self.embeds:
            raise ExportError(f"--media: the shards of {self.format} hold the media already; leave it out")
        if self.format != "preference" and (self.rank is not None or self.least_margin or self.pairs_a_prompt != 1):
            raise ExportError("--rank, --least-margin and --pairs-a-prompt are for --format preference alone")

    @property
    def has_media(self) -> bool:
        """Whether DEST holds videos: in its shards, or copied beside them."""
        return self.copy_media or self.embeds

    @property
    def embeds(self) -> bool:
        """Whether its shards hold them."""
        return self.format in EMBEDS

    def recipe(self, source: str) -> dict[str, Any]:
        """What DEST remembers, and refuses to change."""
        kept = self.model_dump(exclude={"license"})
        if self.format != "preference":
            kept = {name: kept[name] for name in kept if name not in ("rank", "least_margin", "pairs_a_prompt")}
        return {"source": source, **kept}


def parse_splits(text: str) -> dict[str, float]:
    """`train=.9,val=.1` as shares by name. Raises ExportError."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, equals, share = (word.strip() for word in part.partition("="))
        try:
            value = float(share) if equals else math.nan
        except ValueError:
            value = math.nan
        if name == "all":
            raise ExportError(f"--split {text}: readers call all splits together `all`; give it another name")
        if not _SPLIT.fullmatch(name) or not 0 < value <= 1 or name in shares:
            raise ExportError(f"--split {text}: write names with shares that add up to 1, such as train=0.9,val=0.1")
        shares[name] = value
    if not math.isclose(sum(shares.values()), 1.0, abs_tol=1e-6):
        raise ExportError(f"--split {text}: the shares add up to {sum(shares.values()):g}, not to 1")
    return shares


def parse_bytes(text: str) -> int:
    """`256MB`, `1GiB` or a number as bytes. Raises ExportError."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*([KMG]I?)?B?\s*", text.upper())
    try:
        size = int(float(found[1]) * _UNITS[found[2] or ""]) if found else 0
    except ValueError:
        size = 0
    if size < 1:
        raise ExportError(f"--shard-size {text}: write a size such as 256MB or 1GiB")
    return size


def split_of(prompt: str, splits: Mapping[str, float]) -> str:
    """The split of a prompt, by a hash of its text: always the same, whatever else is in the run.

    The text alone decides, so that neither an id nor a negative prompt brings one text into two splits.
    """
    digest = hashlib.sha256(f"split/{prompt}".encode()).hexdigest()[:_HASH_DIGITS]
    place, edge = int(digest, 16) / 16**_HASH_DIGITS, 0.0
    for name, share in splits.items():
        edge += share
        if place < edge:
            return name
    return [*splits][-1]  # the shares add up to a little less than 1
