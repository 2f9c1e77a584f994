"""The frame of a plot: its box, axes with ticks and titles, rules across it, and its legend.

Coordinates are those of the viewBox, whose width is that of a phone, so letters keep a readable
size there; a wide screen shows the plot larger. Colours are classes of the page's style sheet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ssm_export.html_report.markup import Markup, element, join
from ssm_export.html_report.plots.scale import Scale, WithZero

WIDTH: Final = 400.0
LEFT: Final = 54.0
RIGHT: Final = 16.0
TOP: Final = 26.0
PLOT_HEIGHT: Final = 200.0
_AXIS: Final = 44.0
_LEGEND_LINE: Final = 18.0
_LETTER: Final = 6.9
"""A letter's width, estimated; the page's fonts are those of the machine that shows it."""
SHAPES: Final = 4
"""How many marks look different in shape; colours repeat after :data:`COLOURS`."""
COLOURS: Final = 6


@dataclass(frozen=True)
class Key:
    """An entry of the legend: its name, colour, and what stands for it.

    ``look`` is ``mark``, ``hollow``, ``line``, ``dashed``, ``area``, ``soft`` (a pale area),
    ``median`` or ``tick`` (upright lines).
    """

    name: str
    colour: int
    look: str = "mark"


@dataclass(frozen=True)
class Box:
    """The rectangle inside the axes."""

    x: Scale
    y: Scale
    left: float = LEFT
    top: float = TOP
    width: float = WIDTH - LEFT - RIGHT
    height: float = PLOT_HEIGHT

    def across(self, value: float) -> float:
        """The x coordinate of a value."""
        return self.left + self.width * self.x.at(value)

    def up(self, value: float) -> float:
        """The y coordinate of a value."""
        return self.top + self.height * (1 - self.y.at(value))


def drawing(height: float, label: str, *parts: Markup) -> Markup:
    """An ``<svg>`` of the plots' width, with what it shows in words for those who cannot see it."""
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH:.0f} {height:.0f}",
        role="img",
        aria_label=label,
        class_="plot",
        preserveAspectRatio="xMidYMid meet",
    )


def axes(box: Box, x_title: str, y_title: str) -> Markup:
    """Grid, ticks and titles of both axes."""
    bottom = box.top + box.height
    parts: list[Markup] = []
    for tick in box.y.ticks():
        y = box.up(tick.value)
        parts.append(line(box.left, y, box.left + box.width, y, "grid"))
        parts.append(label(box.left - 7, y + 4, tick.label, "end"))
    if isinstance(box.y, WithZero):  # a gap in the axis: 0 is not one step below the rest
        y = box.top + box.height * (1 - box.y.apart / 2)
        parts.append(line(box.left, y, box.left + box.width, y, "grid gap"))
    for tick in box.x.ticks():
        x = box.across(tick.value)
        parts.append(line(x, box.top, x, bottom, "grid"))
        parts.append(label(x, bottom + 17, tick.label, "middle"))
    parts.append(line(box.left, bottom, box.left + box.width, bottom, "axis"))
    parts.append(label(2.0, 13.0, y_title, "start", "axis-title"))
    parts.append(label(box.left + box.width, bottom + 36, x_title, "end", "axis-title"))
    return element("g", *parts, class_="axes", aria_hidden="true")


def below_axes(box: Box) -> float:
    """Where what comes below the axis titles begins."""
    return box.top + box.height + _AXIS


def rule(box: Box, value: float, *, vertical: bool = False) -> Markup:
    """A line across the box at a value; a gate or a limit."""
    (x1, y1), (x2, y2) = ends(box, value, vertical=vertical)
    return line(x1, y1, x2, y2, "rule")


def ends(box: Box, value: float, *, vertical: bool) -> list[tuple[float, float]]:
    """Both ends of a line across the box at a value."""
    if vertical:
        x = box.across(value)
        return [(x, box.top), (x, box.top + box.height)]
    y = box.up(value)
    return [(box.left, y), (box.left + box.width, y)]


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def label(x: float, y: float, words: str, anchor: str, class_: str = "tick") -> Markup:
    """Words in the drawing."""
    return element("text", words, x=x, y=y, text_anchor=anchor, class_=class_)


def mark(x: float, y: float, colour: int, title: str, *, hollow: bool = False) -> Markup:
    """A data point: a shape of its series, with the numbers as its tooltip."""
    classes = f"mark s{colour % COLOURS}{' hollow' if hollow else ''}"
    return element("path", element("title", title), d=_shape(x, y, colour), class_=classes)


def _shape(x: float, y: float, colour: int, r: float = 4.2) -> str:
    kind = colour % SHAPES
    if kind == 0:  # a circle
        return f"M{x - r:.2f} {y:.2f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z"
    if kind == 1:  # a square
        s = r * 0.9
        return f"M{x - s:.2f} {y - s:.2f}h{2 * s:.2f}v{2 * s:.2f}h{-2 * s:.2f}Z"
    if kind == 2:  # a triangle
        return f"M{x:.2f} {y - r * 1.15:.2f}l{r * 1.15:.2f} {r * 2:.2f}h{-r * 2.3:.2f}Z"
    d = r * 1.25  # a diamond
    return f"M{x:.2f} {y - d:.2f}l{d:.2f} {d:.2f}l{-d:.2f} {d:.2f}l{-d:.2f} {-d:.2f}Z"


def legend(keys: Sequence[Key], top: float) -> tuple[Markup, float]:
    """The legend in as many lines as it needs, and where it ends."""
    parts: list[Markup] = []
    x, y = 4.0, top + 10
    for key in keys:
        width = 22 + _LETTER * len(key.name) + 14
        if x > 4 and x + width > WIDTH:
            x, y = 4.0, y + _LEGEND_LINE
        parts.append(_symbol(key, x + 8, y - 4))
        parts.append(label(x + 21, y, key.name, "start", "legend"))
        x += width
    if not keys:
        return join(()), top
    return element("g", *parts, class_="keys", aria_hidden="true"), y + 8


def _symbol(key: Key, x: float, y: float) -> Markup:
    colour = f"s{key.colour % COLOURS}"
    if key.look in ("line", "dashed"):
        return line(x - 8, y, x + 8, y, f"curve {colour} {key.look}")
    if key.look in ("area", "soft"):
        look = "area" if key.look == "area" else "area soft"
        return element("rect", x=x - 6, y=y - 5, width=12.0, height=10.0, class_=f"{look} {colour}")
    if key.look in ("median", "tick"):
        half, look = (7.0, "median") if key.look == "median" else (4.0, "whisker")
        return line(x, y - half, x, y + half, f"{look} {colour}")
    shape = f"key {colour}{' hollow' if key.look == 'hollow' else ''}"
    return element("path", d=_shape(x, y, key.colour), class_=shape)


def path(points: Iterable[tuple[float, float]]) -> str:
    """The ``d`` of straight lines through points."""
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)


def shortened(words: str, room: float) -> str:
    """Words cut in their middle where they would not fit; the table has them whole."""
    most = int(room / _LETTER)
    if len(words) <= most:
        return words
    head = (most - 1) // 2
    return f"{words[:head]}…{words[-(most - 1 - head) :]}"
