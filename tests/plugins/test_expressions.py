"""Expressions over sizes: their values, their text, and that they grow where sizes grow."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssm_export_plugins.expressions import (
    Expr,
    cdiv,
    constant,
    maximum,
    minimum,
    parse,
    symbol,
)

Pair = tuple[Expr, str]
"""An expression, and the same in Python."""

LEAVES = st.one_of(
    st.integers(0, 1000).map(lambda n: (constant(n), str(n))),
    st.sampled_from("BT").map(lambda name: (symbol(name), name)),
)
POSITIVE = st.integers(1, 300)
GROWING = {
    "+": lambda a, b: (a[0] + b[0], f"({a[1]} + {b[1]})"),
    "*": lambda a, b: (a[0] * b[0], f"({a[1]} * {b[1]})"),
    "min": lambda a, b: (minimum(a[0], b[0]), f"min({a[1]}, {b[1]})"),
    "max": lambda a, b: (maximum(a[0], b[0]), f"max({a[1]}, {b[1]})"),
}
OTHERS = {
    "-": lambda a, b: (a[0] - b[0], f"({a[1]} - {b[1]})"),
    "<": lambda a, b: (a[0] < b[0], f"int({a[1]} < {b[1]})"),
    "<=": lambda a, b: (a[0] <= b[0], f"int({a[1]} <= {b[1]})"),
    "==": lambda a, b: (a[0].equals(b[0]), f"int({a[1]} == {b[1]})"),
    "and": lambda a, b: (a[0].also(b[0]), f"int({a[1]} != 0 and {b[1]} != 0)"),
}


def divided(a: Pair, by: int) -> Pair:
    return a[0] // by, f"({a[1]} // {by})"


def divided_up(a: Pair, by: int) -> Pair:
    return cdiv(a[0], by), f"ceil(Fraction({a[1]}, {by}))"


def trees(binary: dict) -> st.SearchStrategy[Pair]:
    def grow(inner: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
        choices = [st.builds(make, inner, inner) for make in binary.values()]
        choices += [st.builds(make, inner, POSITIVE) for make in (divided, divided_up)]
        return st.one_of(choices)

    return st.recursive(LEAVES, grow, max_leaves=12)


SIZES = st.integers(1, 100_000)


@given(trees(GROWING | OTHERS), SIZES, SIZES)
def test_the_value_is_python_s(pair: Pair, batch: int, time: int) -> None:
    expression, text = pair
    names = {"B": batch, "T": time, "ceil": math.ceil, "Fraction": Fraction}
    expected = eval(text, names)
    assert expression.value({"B": batch, "T": time}) == expected


@given(trees(GROWING | OTHERS))
def test_the_text_is_read_back(pair: Pair) -> None:
    expression = pair[0]
    assert parse(str(expression)) == expression
    assert hash(parse(str(expression))) == hash(expression)


@settings(max_examples=50)
@given(trees(GROWING), SIZES, SIZES, st.integers(0, 5000), st.integers(0, 5000))
def test_without_differences_and_comparisons_it_never_shrinks(
    pair: Pair, batch: int, time: int, more_batch: int, more_time: int
) -> None:
    small = pair[0].value({"B": batch, "T": time})
    large = pair[0].value({"B": batch + more_batch, "T": time + more_time})
    assert small <= large


def test_numbers_are_reckoned_at_once() -> None:
    assert cdiv(5120, 256) == constant(20)
    assert str(constant(3) - 7) == "-4"
    assert parse("-4").value({}) == -4
    assert str(cdiv(symbol("T"), 64) * symbol("B")) == "T 64 cdiv B mul"


def test_numbers_on_the_left() -> None:
    assert (2 + symbol("B")).value({"B": 5}) == 7
    assert (2 - symbol("B")).value({"B": 5}) == -3
    assert (2 * symbol("B")).value({"B": 5}) == 10


def test_a_symbol_without_a_size() -> None:
    with pytest.raises(KeyError, match="T"):
        (symbol("T") + symbol("B")).value({"B": 1})
