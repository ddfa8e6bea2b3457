"""A run by several jobs at once: each takes a share of the prompts, with a claim of its own, into one ledger."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.errors import InputError
from flashvideo_ray.prompts import digest

MOST = 10_000


class ShardError(InputError):
    """A share of the prompts that cannot be."""


@dataclass(frozen=True)
class Shard:
    """Share `number` of `count`, from 1 on.

    A prompt's share follows from its id and `count` alone: other prompts that come or go, and their order, move none.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `--shard 3/8`. Raises ShardError."""
        found = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text, re.ASCII)
        if found is None or not 1 <= int(found[1]) <= int(found[2]) <= MOST:
            raise ShardError(f"--shard {text}: write the job's number and how many there are, such as 3/8 (of 1 to 8)")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def name(self) -> str:
        """As part of an object's name."""
        return f"shard-{self.number}-of-{self.count}"

    def holds(self, rows: pa.Table) -> pa.ChunkedArray:
        """Of each row, prompt or candidate, whether it is of this share."""
        ids = pc.unique(rows["id"])
        own = [name for name in ids.to_pylist() if int(digest("shard", name)[:15], 16) % self.count == self.number - 1]
        return pc.is_in(rows["id"], pa.array(own, pa.string()))

    def of(self, rows: pa.Table) -> pa.Table:
        """The rows that are of this share."""
        return rows.filter(self.holds(rows))

    def part_of(self, whole: int) -> int:
        """What of a number falls to this share: those of all shares are that number together."""
        return whole * self.number // self.count - whole * (self.number - 1) // self.count
