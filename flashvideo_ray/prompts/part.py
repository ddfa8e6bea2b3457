"""A part of the prompts: by a filter over their columns, or by their ids."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Self

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flashvideo_ray.expressions.filters import Filter
from flashvideo_ray.expressions.rules import RuleError
from flashvideo_ray.prompts.rows import SHOWN, PromptError


@dataclass(frozen=True)
class Part:
    """Which prompts are to be taken: those that a filter holds for, or those with these ids."""

    text: str
    filter: Filter | None = None
    ids: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `--only`: a condition such as `mood == 'calm'`; or ids, with commas between them or one a line of @FILE.

        Raises RuleError for a condition that cannot be read, PromptError for ids that cannot.
        """
        if text.startswith("@"):
            return cls(text, ids=_ids_of(text[1:]))
        try:
            tree: ast.AST | None = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            tree = None
        is_condition = isinstance(tree, ast.Compare | ast.BoolOp) or (
            isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Not)
        )
        if is_condition or (tree is None and any(mark in text for mark in "=<>'\"")):
            return cls(text, filter=Filter.parse(text))
        return cls(text, ids=_given([*text.split(",")], text))

    def of(self, prompts: pa.Table, url: str) -> NDArray[np.bool_]:
        """Whether each of the checked rows is in it. Raises PromptError if an id is not there, or if none is in it."""
        if self.filter is not None:
            try:
                chosen = self.filter.over(prompts)
            except RuleError as error:
                raise PromptError(f"{url}: --only: {error}") from None
        else:
            chosen = pc.is_in(prompts["id"], pa.array(self.ids, pa.string()))
            asked = pa.array(self.ids, pa.string())
            unknown = asked.filter(pc.invert(pc.is_in(asked, prompts["id"].combine_chunks()))).to_pylist()
            if unknown:
                more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
                shown = ", ".join(repr(name) for name in unknown[:SHOWN])
                raise PromptError(
                    f"{url}: --only: no prompt has the id {shown}{more}; write ids as the prompts have them, "
                    "or a condition such as mood == 'calm'"
                )
        mask = np.asarray(chosen.to_numpy(zero_copy_only=False) if isinstance(chosen, pa.Array) else chosen.to_numpy())
        if not mask.any():
            raise PromptError(f"{url}: --only {self.text}: this holds for none of {len(mask):,} prompts")
        return mask.astype(bool)


def _ids_of(url: str) -> tuple[str, ...]:
    try:
        with fsspec.open(url, "r", encoding="utf-8-sig") as file:
            return _given(file.read().split("\n"), f"@{url}")
    except PromptError:
        raise
    except Exception as error:  # each file system has its own
        raise PromptError(f"--only @{url}: cannot be read: {type(error).__name__}: {error}") from None


def _given(words: list[str], text: str) -> tuple[str, ...]:
    ids = tuple(dict.fromkeys(word.strip() for word in words if word.strip()))
    if not ids:
        raise PromptError(f"--only {text}: holds no id")
    return ids
