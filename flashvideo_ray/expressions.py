"""Rules as people write them: expressions over scores, read without `eval` and computed on whole columns at once."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flashvideo_ray.errors import InputError

MAX_LENGTH = 500
MAX_NODES = 100

Column = NDArray[np.float64]
_ARITHMETIC: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    # Compares false with everything, so that a requirement about it does not hold.
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
        if len(text) > MAX_LENGTH:
            raise RuleError(f"rule of {len(text)} characters; at most {MAX_LENGTH} are read")
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise RuleError(f"cannot read the rule {text!r}; write it like: motion >= 0.5 and flicker < 2") from None
        nodes = list(ast.walk(tree))
        if len(nodes) > MAX_NODES:
            raise RuleError(f"rule with {len(nodes)} parts; at most {MAX_NODES} are read")
        for node in nodes:
            _refuse_unless_allowed(node, text)
        return cls(text.strip(), tree, frozenset(node.id for node in nodes if isinstance(node, ast.Name)))

    def over(self, scores: Mapping[str, Column]) -> NDArray[Any]:
        """Its value for each row of the columns. Raises KeyError for a score that is missing."""
        with np.errstate(all="ignore"):
            return np.asarray(_evaluate(self.tree, scores))


class Requirement(Expression):
    """A condition, such as `motion >= 0.5 and not black > 0`."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """As `Expression.parse`; a number is no condition and raises RuleError too."""
        found = super().parse(text)
        if not _is_condition(found.tree):
            raise RuleError(f"the requirement {text!r} is a number, not a condition; compare it with something")
        return found

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
        return found


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


def _is_condition(node: ast.expr) -> bool:
    """Conditions of conditions, and comparisons of numbers: `motion > (flicker > 1)` means nothing to anybody."""
    match node:
        case ast.BoolOp(values=values):
            return all(_is_condition(value) for value in values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return _is_condition(operand)
        case ast.Compare(left=left, comparators=comparators):
            return all(_is_number(operand) for operand in (left, *comparators))
    return False


def _is_number(node: ast.expr) -> bool:
    match node:
        case ast.Constant() | ast.Name():
            return True
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _is_number(operand)
        case ast.BinOp(left=left, right=right):
            return _is_number(left) and _is_number(right)
    return False


def _evaluate(node: ast.expr, scores: Mapping[str, Column]) -> Any:
    match node:
        case ast.Constant(value=value):
            return float(value)  # type: ignore[arg-type]
        case ast.Name(id=name):
            return scores[name]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return np.logical_not(_evaluate(operand, scores))
        case ast.UnaryOp(operand=operand):
            return np.negative(_evaluate(operand, scores))
        case ast.BinOp(left=left, op=op, right=right):
            return _ARITHMETIC[type(op)](_evaluate(left, scores), _evaluate(right, scores))
        case ast.BoolOp(op=op, values=values):
            combine = np.logical_and if isinstance(op, ast.And) else np.logical_or
            result = _evaluate(values[0], scores)
            for other in values[1:]:
                result = combine(result, _evaluate(other, scores))
            return result
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            operands = [_evaluate(operand, scores) for operand in (left, *comparators)]
            compared = np.True_
            for a, comparison, b in zip(operands, ops, operands[1:], strict=False):
                compared = np.logical_and(compared, _COMPARISON[type(comparison)](a, b))
            return compared
    raise AssertionError(f"unreachable: {node}")  # parse() let nothing else through
