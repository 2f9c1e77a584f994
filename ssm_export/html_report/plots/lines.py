"""Curves and points over two axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Final

from ssm_export.html_report.markup import Markup, element
from ssm_export.html_report.plots import frame, scale
from ssm_export.html_report.plots.frame import Box, Key

_MARGIN: Final = (1 / 1.25, 1.25)
"""So no point lies on the frame."""


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        title: with the unit.
        log: logarithmic.
        whole: its ticks are whole numbers.
        zero: it begins at 0.
        margin: factors that a logarithmic axis goes beyond its least and its greatest value.
    """

    title: str
    log: bool = False
    whole: bool = False
    zero: bool = False
    margin: tuple[float, ...] = ()

    def around(self, values: Sequence[float]) -> scale.Scale:
        """The scale that holds some values."""
        if self.log:
            beyond = [value * factor for value in values if value for factor in self.margin]
            return scale.log([*values, *beyond])
        return scale.linear(values, zero=self.zero, whole=self.whole)


@dataclass(frozen=True)
class Point:
    """A point and its tooltip. A y of None is not finite: it stands at the top."""

    x: float
    y: float | None
    title: str


@dataclass(frozen=True)
class Series:
    """Points of one kind.

    Attributes:
        name: in the legend.
        points: from left to right.
        colour: index of colour and shape.
        curve: whether a line goes through the points.
        marks: whether the points are marked; a limit has a line alone.
        dashed: the line.
        hollow: the marks: what is predicted and was not measured.
        labels: what stands beside the points, as many as there are.
    """

    name: str
    points: tuple[Point, ...]
    colour: int
    curve: bool = True
    marks: bool = True
    dashed: bool = False
    hollow: bool = False
    labels: tuple[str, ...] = ()

    @property
    def look(self) -> str:
        """What stands for it in the legend."""
        if not self.marks:
            return "dashed" if self.dashed else "line"
        return "hollow" if self.hollow else "mark"


@dataclass(frozen=True)
class Rule:
    """A line at a value, with its name; across the plot, or upright."""

    value: float
    name: str
    vertical: bool = False


def lines(
    label: str,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    rules: Sequence[Rule] = (),
    x_names: Sequence[scale.Tick] = (),
) -> Markup:
    """A plot of series over two axes.

    Args:
        label: what the plot shows, in words.
        x, y: its axes; they hold every point and every rule.
        series: at least one with a point.
        rules: lines at values.
        x_names: ticks of the x axis that are names, in place of numbers.
    """
    across = [point.x for one in series for point in one.points]
    across += [rule.value for rule in rules if rule.vertical]
    up = [point.y for one in series for point in one.points if point.y is not None]
    up += [rule.value for rule in rules if not rule.vertical]
    x_scale: scale.Scale = x.around(across)
    if x_names:
        x_scale = Named(
            min(t.value for t in x_names), max(t.value for t in x_names), tuple(x_names)
        )
    box = Box(x_scale, replace(y, margin=_MARGIN).around(up))
    parts = [frame.axes(box, x.title, y.title)]
    parts += [frame.rule(box, rule.value, rule.name, vertical=rule.vertical) for rule in rules]
    for one in series:
        parts += _drawn(box, one)
    parts += _labels(box, series)
    keys = [Key(one.name, one.colour, one.look) for one in series]
    drawn, end = frame.legend(keys, frame.below_axes(box))
    return frame.drawing(end, label, *parts, drawn)


@dataclass(frozen=True)
class Named:
    """A scale whose ticks have names; a little room on both sides."""

    low: float
    high: float
    names: tuple[scale.Tick, ...]

    def at(self, value: float) -> float:
        room = max(self.high - self.low, 1.0) * 0.03
        return (value - self.low + room) / (self.high - self.low + 2 * room)

    def ticks(self) -> tuple[scale.Tick, ...]:
        return self.names


def _drawn(box: Box, one: Series) -> list[Markup]:
    places = [
        (box.across(point.x), box.top if point.y is None else box.up(point.y))
        for point in one.points
    ]
    parts: list[Markup] = []
    if one.curve and len(places) > 1:
        dashed = " dashed" if one.dashed else ""
        classes = f"curve s{one.colour % frame.COLOURS}{dashed}"
        parts.append(element("path", d=frame.path(places), class_=classes))
    if one.marks:
        parts += [
            frame.mark(*place, one.colour, point.title, hollow=one.hollow)
            for point, place in zip(one.points, places, strict=True)
        ]
    return parts


_LETTER, _LINE, _MARK = 6.6, 13.0, 5.0
"""Width and height of a letter, and half of a mark, in the units of a drawing."""


def _labels(box: Box, series: Sequence[Series]) -> list[Markup]:
    """What stands beside points, where it covers no mark and no other label if there is such a
    place: above or below, to the right or to the left, and then further away."""
    marked = [
        (box.across(point.x), box.top if point.y is None else box.up(point.y), words)
        for one in series
        if one.marks
        for point, words in zip_longest(one.points, one.labels[: len(one.points)], fillvalue="")
        if isinstance(point, Point)
    ]
    taken = [(x - _MARK, y - _MARK, x + _MARK, y + _MARK) for x, y, _ in marked]
    parts = []
    for x, y, words in marked:
        if not words:
            continue
        places = []
        for down in (-6.0, 14.0, -6.0 - _LINE, 14.0 + _LINE):
            for side, left in (("start", x + 8), ("end", x - 8 - _LETTER * len(words))):
                rectangle = (left, y + down - _LINE + 3, left + _LETTER * len(words), y + down + 3)
                places.append((rectangle, side, down))
        inside = [p for p in places if box.left <= p[0][0] and p[0][2] <= box.left + box.width]
        free = [p for p in inside if not any(_overlap(p[0], other) for other in taken)]
        rectangle, side, down = (free or inside or places)[0]
        taken.append(rectangle)
        at = x + 8 if side == "start" else x - 8
        parts.append(frame.label(at, y + down, words, side, "point-name"))
    return parts


_Rectangle = tuple[float, float, float, float]


def _overlap(one: _Rectangle, other: _Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def whole_ticks(low: int, high: int, most: int = 9) -> list[scale.Tick]:
    """Ticks at whole numbers, at most so many."""
    step = max(1, math.ceil((high - low + 1) / most))
    return [scale.Tick(value, str(value)) for value in range(low, high + 1, step)]
