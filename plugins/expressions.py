"""Integer expressions over the sizes of a call, the same in Python and in the plugin library.

A launch plan is made before the batch and the length are known, so its grids, its integer
arguments and its workspace are expressions over ``B``, ``T`` and what else is symbolic. They are
stored as postfix tokens, such as ``T 64 cdiv B mul``, which C++ evaluates with a stack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Union

Operand = Union["Expr", int]

OPERATIONS: Final[Mapping[str, Callable[[int, int], int]]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a // b,
    "cdiv": lambda a, b: -(-a // b),
    "min": min,
    "max": max,
    "lt": lambda a, b: int(a < b),
    "le": lambda a, b: int(a <= b),
    "eq": lambda a, b: int(a == b),
    "and": lambda a, b: int(bool(a) and bool(b)),
}
"""Binary operations on 64-bit integers. Divisors are positive, and so is what is divided."""


@dataclass(frozen=True)
class Expr:
    """An integer expression in postfix form."""

    tokens: tuple[str | int, ...]

    def __add__(self, other: Operand) -> Expr:
        return _binary("add", self, other)

    def __radd__(self, other: Operand) -> Expr:
        return _binary("add", other, self)

    def __sub__(self, other: Operand) -> Expr:
        return _binary("sub", self, other)

    def __rsub__(self, other: Operand) -> Expr:
        return _binary("sub", other, self)

    def __mul__(self, other: Operand) -> Expr:
        return _binary("mul", self, other)

    def __rmul__(self, other: Operand) -> Expr:
        return _binary("mul", other, self)

    def __floordiv__(self, other: Operand) -> Expr:
        return _binary("div", self, other)

    def __lt__(self, other: Operand) -> Expr:
        return _binary("lt", self, other)

    def __le__(self, other: Operand) -> Expr:
        return _binary("le", self, other)

    def equals(self, other: Operand) -> Expr:
        """1 where both are equal, else 0 (``==`` compares the expressions themselves)."""
        return _binary("eq", self, other)

    def also(self, other: Operand) -> Expr:
        """1 where both are not 0."""
        return _binary("and", self, other)

    def value(self, sizes: Mapping[str, int]) -> int:
        """The value where every symbol has a size.

        Raises:
            KeyError: a symbol has none.
        """
        stack: list[int] = []
        for token in self.tokens:
            if isinstance(token, int):
                stack.append(token)
            elif token in OPERATIONS:
                right, left = stack.pop(), stack.pop()
                stack.append(OPERATIONS[token](left, right))
            else:
                stack.append(sizes[token])
        (result,) = stack
        return result

    def __str__(self) -> str:
        return " ".join(map(str, self.tokens))


def symbol(name: str) -> Expr:
    """The size called ``name``."""
    return Expr((name,))


def constant(value: Operand) -> Expr:
    """An integer as an expression; an expression stays what it is."""
    return value if isinstance(value, Expr) else Expr((int(value),))


def cdiv(a: Operand, b: Operand) -> Expr:
    """``a / b`` rounded up."""
    return _binary("cdiv", a, b)


def minimum(a: Operand, b: Operand) -> Expr:
    """The smaller one."""
    return _binary("min", a, b)


def maximum(a: Operand, b: Operand) -> Expr:
    """The larger one."""
    return _binary("max", a, b)


def parse(text: str) -> Expr:
    """The expression of postfix tokens."""
    return Expr(tuple(int(t) if t.lstrip("-").isdigit() else t for t in text.split()))


def _binary(operation: str, a: Operand, b: Operand) -> Expr:
    left, right = constant(a), constant(b)
    if len(left.tokens) == len(right.tokens) == 1:
        x, y = left.tokens[0], right.tokens[0]
        if isinstance(x, int) and isinstance(y, int):
            return constant(OPERATIONS[operation](x, y))
    return Expr((*left.tokens, *right.tokens, operation))
