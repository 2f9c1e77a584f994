"""Plots of one line per row, its name above it: shares of a gate, bars, boxes, stacked sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ssm_export.html_report.markup import Markup, element
from ssm_export.html_report.plots import frame, scale
from ssm_export.html_report.plots.frame import Box, Key

_ROW: Final = 34.0
_BAR: Final = 12.0
_SIDE: Final = 8.0
_VALUES: Final = 66.0
"""Room for the values, right of the box, at least."""
_BOLD: Final = 8.0
"""A bold letter's width at the size of a phone."""
_NAME_ROOM: Final = 320.0
_GREY: Final = 4
_PARTS: Final = (
    ("¼ to ¾", "soft"),
    ("least to most", "line"),
    ("median", "median"),
    ("90, 99 %", "tick"),
)
"""What a distribution is drawn of, with its look in the legend."""


@dataclass(frozen=True)
class Bar:
    """One row: its name, its value (None is not finite), the value in words, and a tooltip."""

    name: str
    value: float | None
    shown: str
    title: str
    colour: int = 0


@dataclass(frozen=True)
class Spread:
    """One row of a distribution: the values at the quantiles 0, ¼, ½, ¾, 0.9, 0.99 and 1.

    A quantile that is not known is None.
    """

    name: str
    quantiles: tuple[float | None, ...]
    shown: str
    title: str
    colour: int = 0


@dataclass(frozen=True)
class Part:
    """One part of a stacked row."""

    name: str
    value: float
    title: str
    colour: int
    predicted: bool = False


@dataclass(frozen=True)
class Stack:
    """One stacked row: its name, its parts from the left, and their sum in words."""

    name: str
    parts: tuple[Part, ...]
    shown: str


def shares(label: str, title: str, bars: Sequence[Bar]) -> Markup:
    """Values as shares of a gate at 1, on a logarithmic axis: beyond the gate is failed."""
    known = [bar.value for bar in bars if bar.value is not None]
    box = _box(scale.log([*known, 1.0, 2.0]), [bar.shown for bar in bars])
    gate = box.across(1.0)
    beyond = element(
        "rect",
        x=gate,
        y=box.top,
        width=box.left + box.width - gate,
        height=box.height,
        class_="beyond",
    )
    parts = [beyond, _axis(box, title)]
    parts.append(frame.line(gate, box.top, gate, box.top + box.height, "rule"))
    parts.append(frame.label(gate - 5, box.top - 6, "gate", "end", "rule-name"))
    for index, bar in enumerate(bars):
        y = _row(box, index)
        at = box.left + box.width if bar.value is None else box.across(bar.value)
        failed = bar.value is None or bar.value > 1
        parts.append(_named(box, y, bar.name, bar.shown))
        parts.append(frame.line(box.left, y, at, y, f"stem s{5 if failed else bar.colour}"))
        parts.append(frame.mark(at, y, 5 if failed else bar.colour, bar.title))
    return frame.drawing(frame.below_axes(box), label, *parts)


def bars(
    label: str, title: str, rows: Sequence[Bar], rule: tuple[float, str] | None = None
) -> Markup:
    """Bars from 0; negative values go to the left."""
    known = [bar.value for bar in rows if bar.value is not None]
    values = [*known, *([rule[0]] if rule else [])]
    box = _box(scale.linear(values, zero=True), [row.shown for row in rows])
    parts = [_axis(box, title)]
    zero = box.across(0.0)
    for index, bar in enumerate(rows):
        y = _row(box, index)
        end = box.left + box.width if bar.value is None else box.across(bar.value)
        parts.append(_named(box, y, bar.name, bar.shown))
        parts.append(_rect(min(zero, end), y, abs(end - zero), f"bar s{bar.colour}", bar.title))
    if rule:
        at = box.across(rule[0])
        parts.append(frame.line(at, box.top, at, box.top + box.height, "rule"))
        side, offset = ("end", -5) if box.x.at(rule[0]) > 0.4 else ("start", 5)
        parts.append(frame.label(at + offset, box.top - 6, rule[1], side, "rule-name"))
    return frame.drawing(frame.below_axes(box), label, *parts)


def spreads(
    label: str, title: str, rows: Sequence[Spread], kinds: Sequence[tuple[str, int]] = ()
) -> Markup:
    """Distributions: a box from the first quartile to the third, whiskers from least to most, the
    median, and ticks at 0.9 and 0.99. ``kinds`` says in the legend what each colour is."""
    values = [value for row in rows for value in row.quantiles if value is not None]
    wide = max(values) > 4 * min(values) > 0
    x = scale.log(values) if wide else scale.linear(values)
    box = _box(x, [row.shown for row in rows])
    parts = [_axis(box, title)]
    for index, row in enumerate(rows):
        y = _row(box, index)
        parts.append(_named(box, y, row.name, row.shown))
        parts.append(_spread(box, y, row))
    keys = [Key(name, colour, "area") for name, colour in kinds]
    keys += [Key(name, _GREY, look) for name, look in _PARTS]
    drawn, end = frame.legend(keys, frame.below_axes(box))
    return frame.drawing(end, label, *parts, drawn)


def stacks(
    label: str, title: str, rows: Sequence[Stack], rule: tuple[float, str] | None = None
) -> Markup:
    """Sums of parts, beginning at 0; parts that are predicted are hatched by their outline."""
    totals = [sum(part.value for part in row.parts) for row in rows]
    x = scale.linear([*totals, *([rule[0]] if rule else [])], zero=True)
    box = _box(x, [row.shown for row in rows])
    parts = [_axis(box, title)]
    for index, row in enumerate(rows):
        y, start = _row(box, index), 0.0
        parts.append(_named(box, y, row.name, row.shown))
        for part in row.parts:
            left, right = box.across(start), box.across(start + part.value)
            look = " predicted" if part.predicted else ""
            width = max(right - left, 0.6)
            parts.append(_rect(left, y, width, f"bar s{part.colour}{look}", part.title))
            start += part.value
    if rule:
        at = box.across(rule[0])
        parts.append(frame.line(at, box.top, at, box.top + box.height, "rule"))
        parts.append(frame.label(at - 5, box.top - 6, rule[1], "end", "rule-name"))
    names: dict[str, Key] = {}
    for row in rows:
        for part in row.parts:
            names.setdefault(part.name, Key(part.name, part.colour, "area"))
    drawn, end = frame.legend(list(names.values()), frame.below_axes(box))
    return frame.drawing(end, label, *parts, drawn)


def _box(x: scale.Scale, shown: Sequence[str]) -> Box:
    """A box with a line for each row, and room for the longest value beside it."""
    values = max(_VALUES, _BOLD * max(map(len, shown), default=0) + 10)
    width = frame.WIDTH - _SIDE - values
    return Box(x, scale.Linear(0, 1), left=_SIDE, width=width, height=_ROW * len(shown) + 4)


def _row(box: Box, index: int) -> float:
    """The middle of a row's bar."""
    return box.top + _ROW * index + 24


def _axis(box: Box, title: str) -> Markup:
    bottom = box.top + box.height
    parts = [frame.line(box.left, bottom, box.left + box.width, bottom, "axis")]
    for tick in box.x.ticks():
        x = box.across(tick.value)
        parts.append(frame.line(x, box.top, x, bottom, "grid"))
        parts.append(frame.label(x, bottom + 17, tick.label, "middle"))
    parts.append(frame.label(box.left + box.width, bottom + 36, title, "end", "axis-title"))
    return element("g", *parts, class_="axes", aria_hidden="true")


def _named(box: Box, y: float, name: str, shown: str) -> Markup:
    return element(
        "g",
        frame.label(box.left, y - 11, frame.shortened(name, _NAME_ROOM), "start", "row-name"),
        frame.label(frame.WIDTH - 2, y + 4, shown, "end", "row-value"),
    )


def _rect(x: float, y: float, width: float, class_: str, title: str) -> Markup:
    return element(
        "rect",
        element("title", title),
        x=x,
        y=y - _BAR / 2 + 1,
        width=max(width, 0.8),
        height=_BAR,
        class_=f"mark {class_}",
    )


def _spread(box: Box, y: float, row: Spread) -> Markup:
    least, first, median, third, ninety, ninety_nine, most = (
        None if value is None or not math.isfinite(value) else box.across(value)
        for value in row.quantiles
    )
    colour = f"s{row.colour}"
    parts: list[Markup] = [element("title", row.title)]
    known = [at for at in (least, median, ninety, ninety_nine, most) if at is not None]
    if known:
        parts.append(frame.line(min(known), y, max(known), y, f"whisker {colour}"))
    if first is not None and third is not None:
        parts.append(
            element(
                "rect",
                x=first,
                y=y - _BAR / 2,
                width=max(third - first, 1.5),
                height=_BAR,
                class_=f"bar soft {colour}",
            )
        )
    for at, half in ((ninety, 4.0), (ninety_nine, 4.0), (median, 8.0)):
        if at is not None:
            kind = "median" if half > 5 else "whisker"
            parts.append(frame.line(at, y - half, at, y + half, f"{kind} {colour}"))
    # A band that can be pointed at, where the drawn lines are a hair wide.
    hit = (min(known), max(known)) if known else (box.left, box.left)
    parts.append(
        element(
            "rect",
            x=hit[0] - 3,
            y=y - 10,
            width=hit[1] - hit[0] + 6,
            height=20.0,
            class_="hit",
        )
    )
    return element("g", *parts, class_="mark spread")
