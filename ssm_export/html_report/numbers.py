"""Numbers with units as the page shows them."""

from __future__ import annotations

import math
from typing import Final

NONE: Final = "–"
"""Stands where there is no number."""
_SUPERSCRIPTS: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_PREFIXES: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_SPACE: Final = "\N{NARROW NO-BREAK SPACE}"


def significant(value: float, digits: int = 3) -> str:
    """So many significant digits, without an exponent: ``0.0123``, ``4.56``, ``12 300``."""
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    return f"{rounded:,.{max(decimals, 0)}f}".replace(",", _SPACE)


def power(value: float) -> str:
    """A small number with a power of ten: ``2.9·10⁻¹²``; ``0`` as it is."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e4:
        return significant(value, 2)
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}·10{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def decade(exponent: int) -> str:
    """A power of ten as the tick of an axis: ``10⁻⁶``."""
    return f"10{str(exponent).translate(_SUPERSCRIPTS)}"


def error(value: float | None) -> str:
    """An error; None stands for one that is not finite."""
    return "not finite" if value is None else power(value)


def milliseconds(value: float | None) -> str:
    """Milliseconds with their unit; microseconds below a tenth of one."""
    if value is None:
        return NONE
    return f"{significant(value * 1e3)} µs" if value < 0.1 else f"{significant(value)} ms"


def size(count: float | None) -> str:
    """Bytes in decimal units: ``3.97 MB``."""
    return NONE if count is None else f"{prefixed(count)}B"


def prefixed(value: float) -> str:
    """A number with a decimal prefix, ready for its unit: ``3.97 M``."""
    for scale, letter in _PREFIXES:
        if abs(value) >= scale:
            digits = significant(value / scale) if letter else f"{value:.3g}"
            return f"{digits} {letter}"
    return f"{value:.3g} "


def count(value: float | None) -> str:
    """A whole number with thin spaces between thousands."""
    return NONE if value is None else f"{value:,.0f}".replace(",", _SPACE)


def rate(value: float | None) -> str:
    """Tokens per second; three digits at least, never an exponent."""
    if value is None:
        return NONE
    return count(value) if value >= 100 else significant(value)


def percent(share: float | None, digits: int = 3) -> str:
    """A share of one as a percentage."""
    return NONE if share is None else f"{significant(100 * share, digits)} %"
