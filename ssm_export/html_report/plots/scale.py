"""Scales of axes: where a value stands between 0 and 1, and the ticks that people count in."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from ssm_export.html_report import numbers

_STEPS: Final = (1.0, 2.0, 5.0)
_FEW_DECADES: Final = 1.7
"""Up to so many decades an axis has ticks at 1, 2 and 5, beyond at powers of ten alone."""
_MOST_DECADES: Final = 6
_PLAIN: Final = range(-3, 5)
"""Powers of ten that an axis may write out, where all of its ticks can be."""
_LINEAR_TICKS: Final = 5


@dataclass(frozen=True)
class Tick:
    """A tick: where, and what is written there."""

    value: float
    label: str


class Scale(Protocol):
    """An axis of values from ``low`` to ``high``."""

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...

    def at(self, value: float) -> float:
        """Where a value stands, 0 at ``low`` and 1 at ``high``; values beyond stand at the end."""
        ...

    def ticks(self) -> tuple[Tick, ...]:
        """The ticks, all within the axis."""
        ...


@dataclass(frozen=True)
class Linear:
    """Equal distances for equal differences."""

    low: float
    high: float
    whole: bool = False

    def at(self, value: float) -> float:
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)

    def ticks(self) -> tuple[Tick, ...]:
        step = _step((self.high - self.low) / _LINEAR_TICKS, self.whole)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        return tuple(
            Tick(index * step, _plain(index * step, decimals, step))
            for index in range(first, last + 1)
        )


@dataclass(frozen=True)
class Log:
    """Equal distances for equal ratios."""

    low: float
    high: float

    def at(self, value: float) -> float:
        if value <= self.low:
            return 0.0
        return min(math.log(value / self.low) / math.log(self.high / self.low), 1.0)

    def ticks(self) -> tuple[Tick, ...]:
        low, high = math.log10(self.low), math.log10(self.high)
        if high - low <= _FEW_DECADES:
            found = [
                mantissa * 10.0**exponent
                for exponent in range(math.floor(low), math.ceil(high) + 1)
                for mantissa in _STEPS
            ]
            inside = [value for value in found if self._holds(value)]
            return tuple(Tick(value, _short(value)) for value in inside)
        exponents = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
        every = -(-len(exponents) // _MOST_DECADES)
        plain = exponents[0] >= _PLAIN.start and exponents[-1] < _PLAIN.stop
        return tuple(
            Tick(10.0**exponent, f"{10.0**exponent:g}" if plain else numbers.decade(exponent))
            for exponent in exponents[::every]
        )

    def _holds(self, value: float) -> bool:
        return self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)


@dataclass(frozen=True)
class WithZero:
    """A logarithmic scale with a 0, which it has no place for: at its foot, set apart."""

    log: Log
    apart: float = 0.12
    """The share of the axis between 0 and the rest."""

    @property
    def low(self) -> float:
        return 0.0

    @property
    def high(self) -> float:
        return self.log.high

    def at(self, value: float) -> float:
        return 0.0 if value <= 0 else self.apart + (1 - self.apart) * self.log.at(value)

    def ticks(self) -> tuple[Tick, ...]:
        return (Tick(0.0, "0"), *self.log.ticks())


def linear(values: Iterable[float], *, zero: bool = False, whole: bool = False) -> Linear:
    """A linear scale around some values, from a tick to a tick.

    Args:
        values: what has to fit; not-finite ones are left out.
        zero: begin at 0.
        whole: ticks are whole numbers.
    """
    found = [value for value in values if math.isfinite(value)]
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    low = min(low, 0.0) if zero else low
    if high == low:
        low, high = (low, low + 1) if zero or whole else (low - abs(low or 1) / 2, low + 1)
    step = _step((high - low) / _LINEAR_TICKS, whole)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Linear(first * step, max(last, first + 1) * step, whole)


def log(values: Iterable[float]) -> Log:
    """A logarithmic scale around some values, from 1, 2 or 5 times a power of ten to another.

    Values that are not above 0, or not finite, are left out; they stand at an end of the axis.
    """
    found = [value for value in values if math.isfinite(value) and value > 0]
    low, high = (min(found), max(found)) if found else (0.1, 1.0)
    low, high = _below(low), _above(high)
    return Log(low, high) if high > low else Log(low / 2, high * 2)


def _step(rough: float, whole: bool) -> float:
    scale = 10.0 ** math.floor(math.log10(rough))
    mantissa = next((m for m in (*_STEPS, 10.0) if m * scale >= rough * (1 - 1e-9)), 10.0)
    return max(mantissa * scale, 1.0) if whole else mantissa * scale


def _below(value: float) -> float:
    scale = 10.0 ** math.floor(math.log10(value) + 1e-12)
    return max(m for m in _STEPS if m * scale <= value * (1 + 1e-9)) * scale


def _above(value: float) -> float:
    scale = 10.0 ** math.floor(math.log10(value) + 1e-12)
    return min(m for m in (*_STEPS, 10.0) if m * scale >= value * (1 - 1e-9)) * scale


def _plain(value: float, decimals: int, step: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1e4 and step >= abs(value) / 100:  # three digits tell the ticks apart
        return _prefixed(value)
    if decimals > 3 and step >= abs(value) / 1e4:
        mantissa, _, exponent = f"{value:.6e}".partition("e")
        return f"{float(mantissa):g}·{numbers.decade(int(exponent))}"
    return f"{value:.{decimals}f}"


def _short(value: float) -> str:
    if 1e-3 * (1 - 1e-9) <= value < 1e4 * (1 - 1e-9):
        return f"{value:.4g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    mantissa = round(value / 10.0**exponent)
    power = numbers.decade(exponent)
    return power if mantissa == 1 else f"{mantissa}·{power}"


def _prefixed(value: float) -> str:
    """A tick with a decimal prefix and no zeros at its end: ``2.5 G``."""
    digits, _, letter = numbers.prefixed(value).partition(" ")
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return f"{digits} {letter}".rstrip()
