"""Which rows go into which shard: packed in one order up to a size, so that the same rows give the same shards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """One row to be packed: its key, its split and what it will take in a shard, in bytes."""

    key: str
    split: str
    bytes: int


def name(split: str, number: int, suffix: str) -> str:
    """The key of a shard, relative to DEST. Numbers begin at 0 in each split and have no gaps."""
    return f"data/{split}-{number:05d}.{suffix}"


def pack(items: Iterable[Item], limit: int, base: int, suffix: str, begin: Mapping[str, int]) -> dict[str, list[str]]:
    """Keys of rows by shard, split after split.

    Keys are digests: in their order the candidates of a prompt are spread over the shards, as a shuffle would do, and
    the order is the same each time. A shard takes at most `limit` bytes, `base` of which it takes by itself; a row
    that is larger has one of its own. `begin` says at which number each split goes on.
    """
    shards: dict[str, list[str]] = {}
    full: dict[str, int] = {}
    numbers = dict(begin)
    current: dict[str, list[str]] = {}
    for item in sorted(items, key=lambda item: (item.split, item.key)):
        if item.split not in current or full[item.split] + item.bytes > limit:
            number = numbers.get(item.split, 0)
            numbers[item.split] = number + 1
            current[item.split] = shards[name(item.split, number, suffix)] = []
            full[item.split] = base
        current[item.split].append(item.key)
        full[item.split] += item.bytes
    return shards
