"""Where names go in a plot: beside what they name, and on top of nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from ssm_export.html_report.markup import Markup
from ssm_export.html_report.plots import frame
from ssm_export.html_report.plots.frame import Box

Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom."""
Segment = tuple[float, float, float, float]
"""x and y of one end, x and y of the other."""

_LETTER: Final = 7.3
"""A letter's width at the size of a phone; the page's fonts are those of whoever reads it."""
_ASCENT: Final = 11.0
_DESCENT: Final = 3.5
_MARK: Final = 6.0
"""Half of a mark and a little air."""
_AIR: Final = 1.5
"""Between words and a line."""
_COVERED, _CROSSED, _OUTSIDE = 10.0, 4.0, 100.0
"""What it costs to cover a mark or words, to lie on a line, to leave the plot."""


@dataclass(frozen=True)
class Place:
    """Where words could stand: their anchor point, and which of their ends is there."""

    x: float
    y: float
    anchor: str = "start"

    def rectangle(self, words: str) -> Rectangle:
        """What the words would cover."""
        width = _LETTER * len(words)
        left = self.x - {"start": 0.0, "middle": width / 2, "end": width}[self.anchor]
        return (left, self.y - _ASCENT, left + width, self.y + _DESCENT)


@dataclass(frozen=True)
class Name:
    """Words, their class, and the places that they may take, the best first."""

    words: str
    class_: str
    places: tuple[Place, ...]


@dataclass
class Ground:
    """What is drawn already, and the room that is left."""

    box: Box
    covered: list[Rectangle] = field(default_factory=list)
    lines: list[Segment] = field(default_factory=list)

    def add_mark(self, x: float, y: float) -> None:
        """Keep names off a mark."""
        self.covered.append((x - _MARK, y - _MARK, x + _MARK, y + _MARK))

    def add_path(self, points: Sequence[tuple[float, float]]) -> None:
        """Keep names off a line through points."""
        self.lines += [(*one, *other) for one, other in pairwise(points)]

    def put(self, names: Iterable[Name]) -> list[Markup]:
        """The names as markup, each at the place where it disturbs least."""
        drawn = []
        for name in names:
            best = min(name.places, key=lambda place: self._cost(place.rectangle(name.words)))
            self.covered.append(best.rectangle(name.words))
            drawn.append(frame.label(best.x, best.y, name.words, best.anchor, name.class_))
        return drawn

    def _cost(self, taken: Rectangle) -> float:
        left, top, right, bottom = taken
        box = self.box
        inside = box.left <= left and right <= box.left + box.width
        # Above the box there is room for a line of words below the title of the axis.
        inside = inside and box.top - 9 <= top and bottom <= box.top + box.height
        near = (left - _AIR, top - _AIR, right + _AIR, bottom + _AIR)
        return (
            (0.0 if inside else _OUTSIDE)
            + _COVERED * sum(overlap(taken, other) for other in self.covered)
            + _CROSSED * sum(crosses(segment, near) for segment in self.lines)
        )


def beside(x: float, y: float, words: str) -> Name:
    """The name of a point: above it or below, to its right or left, or further away."""
    places = [
        Place(x + side * 8, y + down, "start" if side > 0 else "end")
        for down in (-6.0, 14.0)
        for side in (1, -1)
    ]
    places += [Place(x + 10, y + 4), Place(x - 10, y + 4, "end")]
    places += [Place(x, y - 11, "middle"), Place(x, y + 20, "middle")]
    for down in (-20.0, 28.0, -34.0, 42.0):
        places += [Place(x + 8, y + down), Place(x - 8, y + down, "end")]
    return Name(words, "point-name", tuple(places))


def along(box: Box, value: float, words: str, *, vertical: bool) -> Name:
    """The name of a rule: at one of its ends, on one of its sides."""
    right, bottom = box.left + box.width, box.top + box.height
    if vertical:
        x = box.across(value)
        ends = (box.top + 12, bottom - 6, box.top + box.height / 2)
        sides = ((5, "start"), (-5, "end"))
        places = tuple(Place(x + off, y, anchor) for y in ends for off, anchor in sides)
        return Name(words, "rule-name", places)
    y = box.up(value)
    ways = ((box.left + 5, "start"), (right - 5, "end"), (box.left + box.width / 2, "middle"))
    places = tuple(Place(x, y + down, anchor) for down in (-5.0, 13.0) for x, anchor in ways)
    return Name(words, "rule-name", places)


def overlap(one: Rectangle, other: Rectangle) -> bool:
    """Whether two rectangles have a part in common."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def crosses(segment: Segment, taken: Rectangle) -> bool:
    """Whether a straight line has a part inside a rectangle (Liang and Barsky's clipping)."""
    x0, y0, x1, y1 = segment
    left, top, right, bottom = taken
    begin, end = 0.0, 1.0
    for step, room in (
        (x0 - x1, x0 - left),
        (x1 - x0, right - x0),
        (y0 - y1, y0 - top),
        (y1 - y0, bottom - y0),
    ):
        if step == 0:
            if room < 0:
                return False
        elif step < 0:
            begin = max(begin, room / step)
        else:
            end = min(end, room / step)
    return begin < end
