"""Rules as people write them: expressions over scores, read without `eval` and computed on whole columns at once."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flashvideo_ray.errors import InputError

MAX_LENGTH = 500
MAX_NODES = 100
_LARGEST = 1e300
_SHOWN = 80

Column = NDArray[np.float64]
_ARITHMETIC: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: lambda a, b: np.where(b == 0, np.nan, np.divide(a, b)),
}
_COMPARISON: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
}


class RuleError(InputError):
    """A rule that cannot be read. The message shows the expression and what is allowed."""


def syntax_tree(text: str, what: str, example: str) -> ast.expr:
    """The parts of an expression, whatever they are.

    Raises RuleError if it is longer than 500 characters, has more than 100 parts, or is no expression; `what` and
    `example` are for its message.
    """
    if len(text) > MAX_LENGTH:
        raise RuleError(f"{what} of {len(text)} characters; at most {MAX_LENGTH} are read")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise RuleError(f"cannot read the {what} {text!r}; write it like: {example}") from None
    count = sum(1 for _ in ast.walk(tree))
    if count > MAX_NODES:
        raise RuleError(f"{what} with {count} parts; at most {MAX_NODES} are read")
    return tree


@dataclass(frozen=True)
class Expression:
    """Comparisons, and/or/not, + - * /, numbers and score names. Nothing else parses."""

    text: str
    tree: ast.expr
    names: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an expression.

        Raises RuleError if it is longer than 500 characters, has more than 100 parts, or holds anything but the above.
        """
        tree = syntax_tree(text, "rule", "motion >= 0.5 and flicker < 2")
        nodes = list(ast.walk(tree))
        for node in nodes:
            _refuse_unless_allowed(node, text)
        for node in nodes:
            _refuse_without_a_value(node, text)
        return cls(text.strip(), tree, frozenset(node.id for node in nodes if isinstance(node, ast.Name)))


class Requirement(Expression):
    """A condition, such as `motion >= 0.5 and not black > 0`."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """As `Expression.parse`; a number is no condition and raises RuleError too."""
        found = super().parse(text)
        if not _is_condition(found.tree):
            raise RuleError(f"the requirement {text!r} is a number, not a condition; compare it with something")
        return found

    def over(self, scores: Mapping[str, Column]) -> NDArray[np.bool_]:
        """Whether it holds, for each row of the columns. Raises KeyError for a score that is missing.

        A comparison with what has no value (a division by zero) is neither true nor false, nor is its opposite; a
        requirement that rests on one does not hold.
        """
        with np.errstate(all="ignore"):
            return np.asarray(_truth(self.tree, scores)[0])

    def holds(self, scores: Mapping[str, Any]) -> bool:
        """Whether the scores of one preview meet it."""
        return bool(self.over(scores))


class Rank(Expression):
    """A number to compare candidates by, such as `alignment + 0.1 * motion`; the greater, the better."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """As `Expression.parse`; a condition is no number and raises RuleError too."""
        found = super().parse(text)
        if not _is_number(found.tree):
            raise RuleError(f"the rank {text!r} is a condition, not a number; write it like: alignment + 0.1 * motion")
        if not found.names:
            raise RuleError(f"the rank {text!r} is the same for all; write it like: alignment + 0.1 * motion")
        return found

    def over(self, scores: Mapping[str, Column]) -> Column:
        """Its value for each row of the columns; NaN where it divides by zero. Raises KeyError for a missing score."""
        with np.errstate(all="ignore"):
            return np.asarray(_value(self.tree, scores))


def check_names(rules: Iterable[Expression], known: Iterable[str]) -> None:
    """Raise RuleError if a rule uses a score that no configured scorer gives."""
    known = sorted(known)
    for rule in rules:
        unknown = sorted(rule.names - set(known))
        if unknown:
            raise RuleError(
                f"the rule {rule.text!r} uses {', '.join(unknown)}, "
                f"but the scorers of this run give {', '.join(known) or 'no scores'}"
            )


def _refuse_unless_allowed(node: ast.AST, text: str) -> None:
    if isinstance(node, ast.Constant):
        if isinstance(node.value, int | float) and not isinstance(node.value, bool):
            if abs(node.value) > _LARGEST:
                raise RuleError(f"the rule {text[:_SHOWN]!r} holds a number that is too large")
            return
        raise RuleError(f"the rule {text!r} holds {node.value!r}; only numbers are allowed")
    allowed = (
        ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.BinOp, ast.Compare, ast.Name, ast.Load,
        *_ARITHMETIC, *_COMPARISON,
    )  # fmt: skip
    if not isinstance(node, allowed):
        raise RuleError(
            f"the rule {text!r} holds {type(node).__name__}; "
            "allowed are score names, numbers, + - * /, comparisons, and / or / not"
        )


def _is_condition(node: ast.AST) -> bool:
    """Conditions of conditions, and comparisons of numbers: `motion > (flicker > 1)` means nothing to anybody."""
    match node:
        case ast.BoolOp(values=values):
            return all(_is_condition(value) for value in values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return _is_condition(operand)
        case ast.Compare(left=left, comparators=comparators):
            return all(_is_number(operand) for operand in (left, *comparators))
    return False


def _is_number(node: ast.AST) -> bool:
    match node:
        case ast.Constant() | ast.Name():
            return True
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _is_number(operand)
        case ast.BinOp(left=left, right=right):
            return _is_number(left) and _is_number(right)
    return False


def _refuse_without_a_value(node: ast.AST, text: str) -> None:
    """A part that has no value whatever the scores are: it would reject everything, or rank nothing."""
    divisor = node.right if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) else None
    if divisor is not None and _is_constant(divisor) and _value(divisor, {}) == 0:
        raise RuleError(f"the rule {text!r} divides by zero")
    if isinstance(node, ast.BinOp) and _is_constant(node):
        with np.errstate(all="ignore"):
            if not math.isfinite(_value(node, {})):
                raise RuleError(f"the rule {text!r} holds a number that is too large")


def _is_constant(node: ast.AST) -> bool:
    return _is_number(node) and not any(isinstance(part, ast.Name) for part in ast.walk(node))


def _value(node: ast.AST, scores: Mapping[str, Column]) -> Any:
    """A number for each row."""
    match node:
        case ast.Constant(value=value):
            return np.float64(value)  # type: ignore[arg-type]
        case ast.Name(id=name):
            return scores[name]
        case ast.UnaryOp(operand=operand):
            return np.negative(_value(operand, scores))
        case ast.BinOp(left=left, op=op, right=right):
            return _ARITHMETIC[type(op)](_value(left, scores), _value(right, scores))
    raise AssertionError(f"unreachable: {node}")  # parse() let nothing else through


def _truth(node: ast.AST, scores: Mapping[str, Column]) -> tuple[Any, Any]:
    """For each row whether it is true and whether it is false: neither, where a number in it has no value."""
    match node:
        case ast.UnaryOp(operand=operand):
            true, false = _truth(operand, scores)
            return false, true
        case ast.BoolOp(op=op, values=values):
            true, false = _truth(values[0], scores)
            for value in values[1:]:
                also_true, also_false = _truth(value, scores)
                if isinstance(op, ast.And):
                    true, false = true & also_true, false | also_false
                else:
                    true, false = true | also_true, false & also_false
            return true, false
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            operands = [_value(operand, scores) for operand in (left, *comparators)]
            known: Any = ~np.any([np.isnan(operand) for operand in np.broadcast_arrays(*operands)], axis=0)
            holds: Any = np.True_
            for a, comparison, b in zip(operands, ops, operands[1:], strict=False):
                holds = np.logical_and(holds, _COMPARISON[type(comparison)](a, b))
            return known & holds, known & ~holds
    raise AssertionError(f"unreachable: {node}")  # parse() let nothing else through
