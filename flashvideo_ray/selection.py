"""Selection: scores of a preview in, a decision with its reason out. Pure functions, no Ray, no tensors."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from flashvideo_ray.errors import InputError

MAX_LENGTH = 500
MAX_NODES = 100

_ARITHMETIC: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISON: dict[type[ast.AST], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


class RuleError(InputError):
    """A requirement that cannot be read. The message shows the expression and what is allowed."""


@dataclass(frozen=True)
class Requirement:
    """A condition over scores: comparisons, and/or/not, + - * /, numbers and score names. Nothing else parses."""

    text: str
    tree: ast.expr
    names: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an expression such as `motion >= 0.5 and not black > 0`.

        Raises RuleError if it is longer than 500 characters, has more than 100 parts, or holds anything but the above.
        """
        if len(text) > MAX_LENGTH:
            raise RuleError(f"requirement of {len(text)} characters; at most {MAX_LENGTH} are read")
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise RuleError(
                f"cannot read the requirement {text!r}; write it like: motion >= 0.5 and flicker < 2"
            ) from None
        nodes = list(ast.walk(tree))
        if len(nodes) > MAX_NODES:
            raise RuleError(f"requirement with {len(nodes)} parts; at most {MAX_NODES} are read")
        for node in nodes:
            _refuse_unless_allowed(node, text)
        if not _is_condition(tree):
            raise RuleError(f"the requirement {text!r} is a number, not a condition; compare it with something")
        return cls(text.strip(), tree, frozenset(node.id for node in nodes if isinstance(node, ast.Name)))

    def holds(self, scores: Mapping[str, float]) -> bool:
        """Whether the scores meet it. Raises KeyError for a score that is missing."""
        return bool(_evaluate(self.tree, scores))


@dataclass(frozen=True)
class Decision:
    """Survivor or not, and why not."""

    survives: bool
    reason: str | None = None


def decide(scores: Mapping[str, float | None], requirements: Iterable[Requirement]) -> Decision:
    """Judge one preview: the first requirement that does not hold is the reason, with the numbers it saw.

    A score that a requirement needs and that is missing or not finite rejects the preview and says so.
    """
    for requirement in requirements:
        missing = [name for name in sorted(requirement.names) if not _finite(scores.get(name))]
        if missing:
            return Decision(False, f"{requirement.text}: no usable score {', '.join(missing)}")
        numbers = {name: float(scores[name]) for name in requirement.names}  # type: ignore[arg-type]
        if not requirement.holds(numbers):
            seen = ", ".join(f"{name} = {numbers[name]:.4g}" for name in sorted(numbers))
            return Decision(False, f"{requirement.text} ({seen})" if seen else requirement.text)
    return Decision(True)


def check_names(requirements: Iterable[Requirement], known: Iterable[str]) -> None:
    """Raise RuleError if a requirement uses a score that no configured scorer gives."""
    known = sorted(known)
    for requirement in requirements:
        unknown = sorted(requirement.names - set(known))
        if unknown:
            raise RuleError(
                f"the requirement {requirement.text!r} uses {', '.join(unknown)}, "
                f"but the scorers of this run give {', '.join(known) or 'no scores'}"
            )


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _refuse_unless_allowed(node: ast.AST, text: str) -> None:
    if isinstance(node, ast.Constant):
        if isinstance(node.value, int | float) and not isinstance(node.value, bool):
            return
        raise RuleError(f"the requirement {text!r} holds {node.value!r}; only numbers are allowed")
    allowed = (
        ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.BinOp, ast.Compare, ast.Name, ast.Load,
        *_ARITHMETIC, *_COMPARISON,
    )  # fmt: skip
    if not isinstance(node, allowed):
        raise RuleError(
            f"the requirement {text!r} holds {type(node).__name__}; "
            "allowed are score names, numbers, + - * /, comparisons, and / or / not"
        )


def _is_condition(node: ast.expr) -> bool:
    if isinstance(node, ast.BoolOp):
        return all(_is_condition(value) for value in node.values)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return _is_condition(node.operand)
    return isinstance(node, ast.Compare)


def _evaluate(node: ast.expr, scores: Mapping[str, float]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return scores[name]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _evaluate(operand, scores)
        case ast.UnaryOp(operand=operand):
            return -_evaluate(operand, scores)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _evaluate(left, scores), _evaluate(right, scores)
            if isinstance(op, ast.Div) and b == 0:
                return math.nan  # compares false with everything: the requirement does not hold
            return _ARITHMETIC[type(op)](a, b)
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_evaluate(value, scores) for value in values)
        case ast.BoolOp(values=values):
            return any(_evaluate(value, scores) for value in values)
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            operands = [_evaluate(operand, scores) for operand in (left, *comparators)]
            pairs = zip(operands, ops, operands[1:], strict=False)
            return all(_COMPARISON[type(op)](a, b) for a, op, b in pairs)
    raise AssertionError(f"unreachable: {node}")  # parse() let nothing else through
