"""HTML and SVG as text that escapes whatever it is given, so nothing of a bundle becomes markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Final, Union

_VOID: Final = frozenset({"meta", "br", "hr", "wbr"})
_CONTROL: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
"""Characters that a page may not hold, and surrogates that UTF-8 cannot write."""


class Markup(str):
    """Text that is markup already; only :func:`element`, :func:`text` and :func:`join` make it."""

    __slots__ = ()


Child = Union[str, int, "Markup", None]


def text(value: object) -> Markup:
    """Any value as text of the page: markup stays, everything else is escaped."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(value)), quote=True))


def join(parts: Iterable[Child], between: str = "") -> Markup:
    """Parts one after the other; None is nothing."""
    return Markup(between.join(text(part) for part in parts if part is not None))


def element(name: str, /, *children: Child, **attributes: object) -> Markup:
    """``<name …>children</name>``.

    Args:
        name: of the element.
        children: inside it; a string is escaped unless it is :class:`Markup`, None is nothing.
        attributes: a trailing underscore is dropped and others become hyphens, so ``class_`` and
            ``aria_label`` can be written; None leaves the attribute out, a float is written with
            two decimals.
    """
    written = "".join(
        f' {_attribute(key)}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-") if key != "viewBox" else key


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return text(value)
