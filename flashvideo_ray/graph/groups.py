"""The candidates of a prompt that wait for one another, to be judged together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class _Group:
    """Candidates of one prompt: those judged before, those that came, and the one that came last."""

    context: list[dict[str, Any]]
    rows: dict[str, dict[str, Any]]
    last: str | None = None


class Groups:
    """By prompt id: the candidates that came, beside those that this job does not make (`context`)."""

    def __init__(self, context: Mapping[str, list[dict[str, Any]]] | None = None):
        self._context = context or {}
        self._groups: dict[str, _Group] = {}

    def gather(self, row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """See StageEvents."""
        group = self._groups.get(row["id"])
        if group is None:
            group = self._groups[row["id"]] = _Group(self._context.get(row["id"], []), {})
        group.rows[row["clip_id"]] = dict(row)
        if group.last is None and len(group.rows) + len(group.context) >= row["group"]:
            group.last = row["clip_id"]
        return [*group.context, *group.rows.values()] if group.last == row["clip_id"] else None

    def forget(self, prompts: Sequence[str]) -> None:
        """Nobody will ask about the groups of these prompts again."""
        for prompt in prompts:
            self._groups.pop(prompt, None)
