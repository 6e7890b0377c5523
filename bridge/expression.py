"""The threshold expression of an alert: parsed once, evaluated for a whole batch by numpy. Pure.

Grammar: Python's own for comparisons (chains too), `and`, `or`, `not`, `+ - * /`, parentheses, numbers, strings,
`true`/`false`, names of output fields and `field[index]`. Nothing else is reachable: no calls, no attributes.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_CONSTANTS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed condition.

    Attributes:
        text: as the user wrote it.
        names: the output fields it reads.
    """

    text: str
    names: frozenset[str]
    _root: ast.expr

    @classmethod
    def parse(cls, text: str) -> "Expression":
        """The condition in `text`.

        Raises:
            ValueError: what in it is not understood.
        """
        try:
            root = ast.parse(text.strip(), mode="eval").body
        except SyntaxError as error:
            raise ValueError(f"not a condition ({error.msg}); write for example: score >= 0.5") from None
        if not isinstance(root, ast.Compare | ast.BoolOp) and not (
            isinstance(root, ast.UnaryOp) and isinstance(root.op, ast.Not)
        ):
            raise ValueError("it must compare something; write for example: score >= 0.5")
        names: set[str] = set()
        _check(root, names)
        if not names:
            raise ValueError("it names no output field; write for example: score >= 0.5")
        return cls(text, frozenset(names), root)

    def evaluate(self, columns: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.bool_]:
        """One truth value for each row.

        Args:
            columns: output field -> array of shape (rows,) or (rows, n).

        Raises:
            ValueError: an operation the columns' types or shapes do not allow.
        """
        rows = len(next(iter(columns.values())))
        try:
            with np.errstate(all="ignore"):
                result = np.asarray(_evaluate(self._root, columns), dtype=bool)
            return np.broadcast_to(result, (rows,))
        except (TypeError, ValueError, IndexError) as error:
            raise ValueError(f"the condition {self.text!r} cannot be evaluated: {error}") from None


def _check(node: ast.expr, names: set[str]) -> None:
    match node:
        case ast.Compare(left, ops, comparators) if all(type(op) in _COMPARE for op in ops):
            children: list[ast.expr] = [left, *comparators]
        case ast.BoolOp(_, values):
            children = values
        case ast.UnaryOp(ast.Not() | ast.USub() | ast.UAdd(), operand):
            children = [operand]
        case ast.BinOp(left, op, right) if type(op) in _ARITHMETIC:
            children = [left, right]
        case ast.Constant(int() | float() | str()):
            children = []
        case ast.Name(name):
            children = []
            if name not in _CONSTANTS:
                names.add(name)
        case ast.Subscript(ast.Name() as base, ast.Constant(int())):
            children = [base]
        case _:
            raise ValueError(f"{ast.unparse(node)!r} is not allowed in a condition")
    for child in children:
        _check(child, names)


def _evaluate(node: ast.expr, columns: Mapping[str, npt.NDArray[Any]]) -> Any:
    match node:
        case ast.Compare(left, ops, comparators):
            values = [_evaluate(item, columns) for item in (left, *comparators)]
            pairs = zip(ops, values, values[1:], strict=False)
            return reduce(np.logical_and, [_COMPARE[type(op)](a, b) for op, a, b in pairs])
        case ast.BoolOp(op, operands):
            combine = np.logical_and if isinstance(op, ast.And) else np.logical_or
            return reduce(combine, [_evaluate(item, columns) for item in operands])
        case ast.UnaryOp(ast.Not(), operand):
            return np.logical_not(_evaluate(operand, columns))
        case ast.UnaryOp(ast.USub(), operand):
            return -_evaluate(operand, columns)
        case ast.UnaryOp(_, operand):
            return _evaluate(operand, columns)
        case ast.BinOp(left, op, right):
            return _ARITHMETIC[type(op)](_evaluate(left, columns), _evaluate(right, columns))
        case ast.Name(name):
            return _CONSTANTS[name] if name in _CONSTANTS else columns[name]
        case ast.Subscript(ast.Name(name), ast.Constant(int(index))):
            return columns[name][:, index]
        case ast.Constant(value):
            return value.encode() if isinstance(value, str) else value  # string tensors hold bytes
        case _:  # pragma: no cover - _check let nothing else through
            raise AssertionError(ast.dump(node))
