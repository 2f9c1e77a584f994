"""Curves and points over two axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from ssm_export.html_report.markup import Markup, element
from ssm_export.html_report.plots import frame, labels, scale
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
            zero = any(value == 0 for value in values)
            beyond = [value * factor for value in values if value for factor in self.margin]
            made = scale.log([*values, *beyond])
            return scale.WithZero(made) if zero else made
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
    parts += [frame.rule(box, rule.value, vertical=rule.vertical) for rule in rules]
    for one in series:
        parts += _drawn(box, one)
    parts += _names(box, series, rules)
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


def _places(box: Box, one: Series) -> list[tuple[float, float]]:
    return [
        (box.across(point.x), box.top if point.y is None else box.up(point.y))
        for point in one.points
    ]


def _runs(box: Box, one: Series) -> list[list[tuple[float, float]]]:
    """The lines of a series. On a logarithmic axis none leads to a 0, which is infinitely far."""
    if not one.curve:
        return []
    runs: list[list[tuple[float, float]]] = [[]]
    apart = isinstance(box.y, scale.WithZero)
    for point, place in zip(one.points, _places(box, one), strict=True):
        if apart and point.y == 0:
            runs.append([])
        else:
            runs[-1].append(place)
    return [run for run in runs if len(run) > 1]


def _drawn(box: Box, one: Series) -> list[Markup]:
    dashed = " dashed" if one.dashed else ""
    classes = f"curve s{one.colour % frame.COLOURS}{dashed}"
    parts = [element("path", d=frame.path(run), class_=classes) for run in _runs(box, one)]
    if one.marks:
        parts += [
            frame.mark(*place, one.colour, point.title, hollow=one.hollow)
            for point, place in zip(one.points, _places(box, one), strict=True)
        ]
    return parts


def _names(box: Box, series: Sequence[Series], rules: Sequence[Rule]) -> list[Markup]:
    """The names of points and rules, on top of no mark, line or other name where there is room."""
    ground = labels.Ground(box)
    names = [labels.along(box, r.value, r.name, vertical=r.vertical) for r in rules]
    for one in series:
        for run in _runs(box, one):
            ground.add_path(run)
        places = _places(box, one) if one.marks else []
        for place in places:
            ground.add_mark(*place)
        pairs = zip(places, one.labels, strict=False)
        names += [labels.beside(*place, words) for place, words in pairs if words]
    for rule in rules:
        ground.add_path(frame.ends(box, rule.value, vertical=rule.vertical))
    return ground.put(names)


def whole_ticks(low: int, high: int, most: int = 9) -> list[scale.Tick]:
    """Ticks at whole numbers, at most so many."""
    step = max(1, math.ceil((high - low + 1) / most))
    return [scale.Tick(value, str(value)) for value in range(low, high + 1, step)]
