"""Which rows of a table: expressions over columns of any kind, read without `eval` and computed on whole columns."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.expressions.rules import RuleError, syntax_tree

Kind = Literal["number", "text", "truth", "time", "nothing", "other"]
_EXAMPLE = "status == 'failed' and error_class in ('TimeoutError', 'OSError') or motion > 2 and note is not null"
_WORDS: dict[str, bool | None] = {"null": None, "true": True, "false": False}  # beside Python's own spelling
_ARITHMETIC: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: pc.add,
    ast.Sub: pc.subtract,
    ast.Mult: pc.multiply,
    ast.Div: lambda a, b: pc.divide(a, _number(pc.if_else(pc.equal(b, 0.0), None, b))),
}
_COMPARISON: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
}
_MEMBERSHIP = (ast.In, ast.NotIn)
_IDENTITY = (ast.Is, ast.IsNot)


@dataclass(frozen=True)
class Filter:
    """A condition on the rows of a table, such as `status == 'failed' and stage in ('preview', 'refine')`.

    Column names, numbers, texts in quotes, `true` and `false`; + - * /, comparisons, `in (…)`, `'text' in column`,
    `is null`, and / or / not. Nothing else parses.
    """

    text: str
    tree: ast.expr
    names: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a filter.

        Raises RuleError if it is longer than 500 characters, has more than 100 parts, or holds anything but the above.
        """
        tree = syntax_tree(text, "filter", _EXAMPLE)
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - set(_WORDS)
        found = cls(text.strip(), tree, frozenset(names))
        found._check(tree, condition=True)
        if not names:
            raise RuleError(f"the filter {text!r} is the same for all rows; write it like: {_EXAMPLE}")
        return found

    def check(self, columns: Iterable[str]) -> None:
        """Raise RuleError, with the nearest name, if it uses a column that is not among these."""
        known = sorted(columns)
        for name in sorted(self.names - set(known)):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise RuleError(f"the filter {self.text!r} uses {name}, which is no column here; {hint}")

    def over(self, table: pa.Table) -> pa.BooleanArray:
        """Whether it holds, for each row of the table.

        A comparison with what has no value (null, NaN, a division by zero) is neither true nor false, nor is its
        opposite; a filter that rests on one does not hold. A column of times is compared with a text such as
        `'2026-11-25'` or `'2026-11-25 14:30'` (UTC). Raises RuleError for a column that is not there, and for a
        comparison of what cannot be compared.
        """
        self.check(table.column_names)
        try:
            holds = self._truth(self.tree, table)
        except pa.ArrowException as error:
            raise RuleError(f"the filter {self.text!r} cannot be computed: {error}") from None
        holds = pc.fill_null(holds, False)
        return holds.combine_chunks() if isinstance(holds, pa.ChunkedArray) else holds

    def _refuse(self, why: str) -> RuleError:
        return RuleError(f"the filter {self.text!r} {why}")

    def _check(self, node: ast.AST, condition: bool) -> None:
        """Raise RuleError for a part that is not of the language, or not where a condition (a value) is needed."""
        match node:
            case ast.BoolOp(values=values) if condition:
                for value in values:
                    self._check(value, condition=True)
            case ast.UnaryOp(op=ast.Not(), operand=operand) if condition:
                self._check(operand, condition=True)
            case ast.Compare() if condition:
                for operator, a, b in _comparisons(node):
                    self._check_comparison(operator, a, b)
            case ast.Name(id=name) if name not in _WORDS:
                pass  # as a condition: a column of yes and no, which only the table tells
            case _ if condition:
                raise self._refuse(f"holds {ast.unparse(node)!r}, which is no condition; write it like: {_EXAMPLE}")
            case ast.Constant(value=value) if isinstance(value, bool | int | float | str):
                pass
            case ast.Name(id=name) if _WORDS[name] is not None:
                pass
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                self._check(operand, condition=False)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                self._check(left, condition=False)
                self._check(right, condition=False)
            case _ if _is_null(node):
                raise self._refuse("compares with null; write `is null` or `is not null`")
            case _:
                raise self._refuse(
                    f"holds {ast.unparse(node)!r}; allowed are columns, numbers, texts in quotes, + - * /, "
                    "comparisons, in (…), is null, and / or / not"
                )

    def _check_comparison(self, operator: ast.cmpop, a: ast.expr, b: ast.expr) -> None:
        self._check(a, condition=False)
        if isinstance(operator, _IDENTITY):
            if not _is_null(b):
                raise self._refuse("has `is` before something other than null; write == to compare")
        elif isinstance(operator, _MEMBERSHIP):
            for item in _items(b):
                self._check(item, condition=False)
        else:
            self._check(b, condition=False)

    def _truth(self, node: ast.AST, table: pa.Table) -> Any:
        """Whether it is true of each row; null where it is neither true nor false."""
        match node:
            case ast.UnaryOp(operand=operand):
                return pc.invert(self._truth(operand, table))
            case ast.BoolOp(op=op, values=values):
                join = pc.and_kleene if isinstance(op, ast.And) else pc.or_kleene
                return _folded(join, [self._truth(value, table) for value in values])
            case ast.Compare():
                parts = [self._compared(operator, a, b, table) for operator, a, b in _comparisons(node)]
                return _folded(pc.and_kleene, parts)
            case ast.Name(id=name):
                value = _plain(table[name])
                if _kind(value) not in ("truth", "nothing"):
                    raise self._refuse(
                        f"has {name} as a condition, which holds {value.type}; compare it with something"
                    )
                return value.cast(pa.bool_())
        raise AssertionError(f"unreachable: {node}")  # parse() let nothing else through

    def _compared(self, operator: ast.cmpop, a: ast.expr, b: ast.expr, table: pa.Table) -> Any:
        left = self._value(a, table)
        if isinstance(operator, _IDENTITY):
            found = left.is_null() if isinstance(left, pa.ChunkedArray) else _everywhere(not left.is_valid, table)
            return found if isinstance(operator, ast.Is) else pc.invert(found)
        if isinstance(operator, _MEMBERSHIP):
            if isinstance(b, ast.Name):
                found = self._holds(left, self._value(b, table))
            else:
                equals = [self._pair(ast.Eq, left, self._value(item, table)) for item in _items(b)]
                found = _folded(pc.or_kleene, equals)
            return found if isinstance(operator, ast.In) else pc.invert(found)
        return self._pair(type(operator), left, self._value(b, table))

    def _holds(self, part: Any, text: Any) -> Any:
        """`'cat' in prompt`"""
        if not isinstance(part, pa.Scalar) or _kind(part) != "text" or _kind(text) not in ("text", "nothing"):
            raise self._refuse(
                "has `in` before a column; write 'text' in COLUMN for a column of text, or COLUMN in (…)"
            )
        return pc.match_substring(text.cast(pa.string()), part.as_py())

    def _pair(self, comparison: type[ast.AST], a: Any, b: Any) -> Any:
        a, b = self._as_time(a, b), self._as_time(b, a)
        kinds = {_kind(a), _kind(b)} - {"nothing"}
        if len(kinds) > 1 or "other" in kinds:
            raise self._refuse(f"compares {_described(a)} with {_described(b)}; {_remedy(kinds)}")
        if len(kinds) == 0 or "nothing" in (_kind(a), _kind(b)):
            rows = next((len(value) for value in (a, b) if isinstance(value, pa.ChunkedArray)), 1)
            return pa.chunked_array([pa.nulls(rows, pa.bool_())])
        if kinds == {"number"} and a.type != b.type and not all(pa.types.is_integer(value.type) for value in (a, b)):
            a, b = _real(a), _real(b)
        return _COMPARISON[comparison](a, b)

    def _as_time(self, value: Any, other: Any) -> Any:
        """A text that is compared with times, as one of them."""
        if not (isinstance(value, pa.Scalar) and _kind(value) == "text" and _kind(other) == "time"):
            return value
        text, kind = value.as_py(), other.type
        zone = kind.tz if pa.types.is_timestamp(kind) else None
        for written in (text, f"{text}Z") if zone else (text,):
            with suppress(pa.ArrowInvalid):
                return pa.scalar(written).cast(pa.timestamp("us", zone) if pa.types.is_timestamp(kind) else kind)
        raise self._refuse(f"compares {other.type} with {text!r}, which is no time; write it like 2026-11-25 14:30")

    def _value(self, node: ast.AST, table: pa.Table) -> Any:
        """A scalar, or a value for each row."""
        match node:
            case ast.Constant(value=value):
                return _scalar(value)
            case ast.Name(id=name):
                return _scalar(_WORDS[name]) if name in _WORDS else _plain(table[name])
            case ast.UnaryOp(operand=operand):
                return pc.negate(self._numbers(operand, table))
            case ast.BinOp(left=left, op=op, right=right):
                return _number(_ARITHMETIC[type(op)](self._numbers(left, table), self._numbers(right, table)))
        raise AssertionError(f"unreachable: {node}")  # parse() let nothing else through

    def _numbers(self, node: ast.AST, table: pa.Table) -> Any:
        value = self._value(node, table)
        if _kind(value) not in ("number", "nothing"):
            raise self._refuse(f"computes with {_described(value)}; + - * / are for numbers")
        return _real(value)


def _comparisons(node: ast.Compare) -> Iterable[tuple[ast.cmpop, ast.expr, ast.expr]]:
    """`0 < a < 1` is two of them."""
    operands = [node.left, *node.comparators]
    return zip(node.ops, operands, operands[1:], strict=False)


def _items(node: ast.expr) -> list[ast.expr]:
    """What stands in the brackets after `in`; one thing may stand alone."""
    return [*node.elts] if isinstance(node, ast.Tuple | ast.List) else [node]


def _is_null(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value=None) | ast.Name(id="null"):
            return True
    return False


def _folded(join: Callable[[Any, Any], Any], parts: list[Any]) -> Any:
    result = parts[0]
    for part in parts[1:]:
        result = join(result, part)
    return result


def _everywhere(truth: bool, table: pa.Table) -> pa.ChunkedArray:
    return pa.chunked_array([pa.repeat(truth, table.num_rows)])


def _scalar(value: Any) -> pa.Scalar:
    is_large = isinstance(value, int) and not -(2**63) <= value < 2**63
    return pa.scalar(float(value) if is_large else value)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column with text as `string`, all but whole numbers as float64, and NaN as null."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        kind = pa.string()
    elif pa.types.is_decimal(kind) or pa.types.is_floating(kind):
        kind = pa.float64()
    column = column if kind == column.type else column.cast(kind)
    return _number(column) if pa.types.is_floating(kind) else column


def _number(value: Any) -> Any:
    """NaN and the infinite have no value."""
    return pc.if_else(pc.is_finite(value), value, pa.scalar(None, value.type))


def _real(value: Any) -> Any:
    """As Python would: a whole number of more than 53 bits loses its last ones."""
    return pc.cast(value, pa.float64(), safe=False)


def _kind(value: pa.Scalar | pa.ChunkedArray) -> Kind:
    kind = value.type
    if pa.types.is_null(kind):
        return "nothing"
    if pa.types.is_boolean(kind):
        return "truth"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    if pa.types.is_string(kind):
        return "text"
    return "time" if pa.types.is_timestamp(kind) or pa.types.is_date(kind) else "other"


def _described(value: pa.Scalar | pa.ChunkedArray) -> str:
    return repr(value.as_py()) if isinstance(value, pa.Scalar) else f"a column of {value.type}"


def _remedy(kinds: set[Kind]) -> str:
    if kinds == {"number", "text"}:
        return "texts stand in quotes, numbers do not"
    return "lists and the like can only be `is null`" if "other" in kinds else "both must be of one kind"
