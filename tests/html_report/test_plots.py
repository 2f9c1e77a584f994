"""Scales, ticks and shapes: what is drawn stands where its number says."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ssm_export.html_report import numbers
from ssm_export.html_report.markup import element
from ssm_export.html_report.plots import labels, rows, scale
from ssm_export.html_report.plots.frame import Box
from ssm_export.html_report.plots.lines import Axis, Point, Rule, Series, lines

POSITIVE = st.floats(1e-14, 1e14)
ANY = st.floats(-1e9, 1e9)


@given(st.lists(POSITIVE, min_size=1, max_size=9))
def test_a_log_scale_holds_its_values_and_has_ticks(values: list[float]) -> None:
    made = scale.log(values)
    assert made.low <= min(values) * (1 + 1e-6)
    assert made.high >= max(values) * (1 - 1e-6)
    _good_ticks(made)
    assert made.at(math.sqrt(made.low * made.high)) == pytest.approx(0.5)


@given(st.lists(ANY, min_size=1, max_size=9), st.booleans(), st.booleans())
def test_a_linear_scale_holds_its_values_and_has_ticks(
    values: list[float], zero: bool, whole: bool
) -> None:
    assume(len(set(values)) == 1 or max(values) - min(values) > 1e-6)
    made = scale.linear(values, zero=zero, whole=whole)
    slack = 1e-6 * max(map(abs, values), default=0) + 1e-9
    assert made.low <= min(values) + slack
    assert made.high >= max(values) - slack
    assert not zero or made.low <= 0
    _good_ticks(made)
    assert made.at((made.low + made.high) / 2) == pytest.approx(0.5)
    if whole:
        assert all(tick.value == round(tick.value) for tick in made.ticks())


def _good_ticks(made: scale.Scale) -> None:
    ticks = made.ticks()
    assert 2 <= len(ticks) <= 9
    places = [made.at(tick.value) for tick in ticks]
    assert places == sorted(set(places))
    assert len({tick.label for tick in ticks}) == len(ticks)
    gaps = [after - before for before, after in pairwise(places)]
    assert min(gaps) > 0.04
    for tick in ticks:
        slack = 1e-6 * max(abs(made.low), abs(made.high))
        assert made.low - slack <= tick.value <= made.high + slack


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([1, 4096], ["1", "10", "100", "1000"]),
        ([3e-9, 2e-5], ["10⁻⁸", "10⁻⁷", "10⁻⁶", "10⁻⁵"]),
        ([0.8, 7], ["0.5", "1", "2", "5", "10"]),
    ],
)
def test_ticks_are_those_that_people_write(values: list[float], labels: list[str]) -> None:
    assert [tick.label for tick in scale.log(values).ticks()] == labels


def test_linear_ticks_have_prefixes_powers_and_a_plain_zero() -> None:
    assert [t.label for t in scale.linear([0, 2e6], zero=True).ticks()][:3] == ["0", "500 k", "1 M"]
    small = [t.label for t in scale.linear([0, 2e-5], zero=True).ticks()]
    assert small == ["0", "5·10⁻⁶", "1·10⁻⁵", "1.5·10⁻⁵", "2·10⁻⁵"]
    assert [t.label for t in scale.linear([0, 1.2], zero=True).ticks()][:3] == ["0", "0.5", "1.0"]


def test_a_power_law_is_a_straight_line_on_two_log_axes() -> None:
    points = tuple(Point(x, 3 * x**2, "") for x in (1.0, 7.0, 40.0, 900.0))
    drawn = lines("a", Axis("x", log=True), Axis("y", log=True), [Series("s", points, 0)])
    curve = re.search(r'class="curve s0"', drawn)
    assert curve is not None
    found = re.search(r'<path d="M([^"]+)" class="curve s0"', drawn)
    assert found is not None
    (x0, y0), *others = [tuple(map(float, pair.split())) for pair in found[1].split("L")]
    slopes = [(y - y0) / (x - x0) for x, y in others]
    assert slopes == pytest.approx([slopes[0]] * 3, rel=1e-3)
    assert slopes[0] < 0  # y grows upwards


def test_marks_and_rules_stand_at_their_values() -> None:
    points = (Point(0.0, 0.0, "a"), Point(10.0, 10.0, "b"), Point(5.0, 5.0, "c"))
    axis = Axis("x", zero=True)
    drawn = lines("a", axis, axis, [Series("s", points, 0)], [Rule(5.0, "half")])
    marks = re.findall(r'<path d="M([\d.]+) ([\d.]+)[^"]*" class="mark s0"><title>(\w)', drawn)
    at = {name: (float(x), float(y)) for x, y, name in marks}
    assert at["c"][0] == pytest.approx((at["a"][0] + at["b"][0]) / 2, abs=0.02)
    assert at["c"][1] == pytest.approx((at["a"][1] + at["b"][1]) / 2, abs=0.02)
    rule = re.search(r'<line x1="[\d.]+" y1="([\d.]+)"[^>]*class="rule"', drawn)
    assert rule is not None
    assert float(rule[1]) == pytest.approx(at["c"][1], abs=0.02)


def test_what_is_not_finite_stands_at_the_top_and_nothing_at_the_bottom() -> None:
    points = (Point(1, None, "bad"), Point(2, 0.0, "exact"), Point(3, 1e-3, "some"))
    drawn = lines("a", Axis("x"), Axis("y", log=True), [Series("s", points, 0)])
    marks = re.findall(r'd="M[\d.]+ ([\d.]+)[^"]*" class="mark s0"><title>(\w+)', drawn)
    at = {name: float(y) for y, name in marks}
    assert at["bad"] < at["some"] < at["exact"]


@given(st.lists(POSITIVE, min_size=1, max_size=9))
def test_a_zero_on_a_log_axis_stands_at_its_foot_apart_from_the_rest(values: list[float]) -> None:
    made = Axis("y", log=True).around([0.0, *values])
    assert isinstance(made, scale.WithZero)
    _good_ticks(made)
    assert made.ticks()[0] == scale.Tick(0.0, "0")
    assert made.at(0.0) == 0
    assert made.apart - 1e-9 <= made.at(min(values)) <= made.at(max(values)) <= 1
    assert isinstance(Axis("y", log=True).around(values), scale.Log)


def test_no_line_leads_to_a_zero_of_a_log_axis() -> None:
    points = tuple(Point(x, y, f"y={y}") for x, y in enumerate((0.0, 1e-3, 2e-3, 0.0, 4e-3)))
    drawn = lines("a", Axis("x"), Axis("y", log=True), [Series("s", points, 0)])
    marks = re.findall(r'd="M([\d.]+) ([\d.]+)[^"]*" class="mark s0"><title>y=([^<]*)', drawn)
    foot = re.search(r'y1="([\d.]+)" x2="[\d.]+" y2="\1" class="axis"', drawn)
    assert foot is not None
    for _, y, value in marks:
        assert (float(y) == pytest.approx(float(foot[1]))) == (float(value) == 0)
    curves = re.findall(r'<path d="M([^"]+)" class="curve s0"', drawn)
    assert [curve.count("L") for curve in curves] == [1]  # one line, between the second and third
    assert ">0<" in drawn


COORDINATE = st.floats(0, 100)


@given(COORDINATE, COORDINATE, COORDINATE, COORDINATE)
def test_a_line_crosses_a_rectangle_where_a_point_of_it_lies_inside(
    x0: float, y0: float, x1: float, y1: float
) -> None:
    rectangle = (30.0, 40.0, 70.0, 60.0)
    steps = [index / 500 for index in range(501)]
    on_it = [(x0 + at * (x1 - x0), y0 + at * (y1 - y0)) for at in steps]

    def inside(slack: float) -> bool:
        return any(30 - slack < x < 70 + slack and 40 - slack < y < 60 + slack for x, y in on_it)

    found = labels.crosses((x0, y0, x1, y1), rectangle)
    assert found or not inside(-0.5)
    assert inside(0.5) or not found


def test_a_name_leaves_marks_and_lines_alone_where_there_is_room() -> None:
    box = Box(scale.Linear(0, 1), scale.Linear(0, 1))
    ground = labels.Ground(box)
    x, y = box.across(0.5), box.up(0.5)
    ground.add_mark(x, y)
    ground.add_mark(x + 15, y - 10)  # where the name would go first
    ground.add_path([(x - 40, y + 40), (x, y), (x + 40, y - 40)])
    (drawn,) = ground.put([labels.beside(x, y, "decode")])
    *_, taken = ground.covered
    assert "decode" in drawn
    assert not any(labels.overlap(taken, mark) for mark in ground.covered[:-1])
    assert not any(labels.crosses(segment, taken) for segment in ground.lines)


def test_the_legend_of_distributions_says_what_each_colour_is() -> None:
    made = [rows.Spread("a", (1, 2, 3, 4, 5, 6, 7), "3 ms", "t", 2)]
    drawn = rows.spreads("a", "x", made, [("decode", 2)])
    assert re.search(r'class="area s2"></rect><text[^>]*>decode<', drawn)


@given(st.lists(st.floats(0.1, 1e9), min_size=2, max_size=6))
def test_bars_are_as_long_as_their_values(values: list[float]) -> None:
    assume(min(values) > max(values) / 50)
    made = [rows.Bar(f"row {index}", value, "", "t") for index, value in enumerate(values)]
    drawn = rows.bars("a", "x", made)
    widths = [float(w) for w in re.findall(r'width="([\d.]+)" height="12" class="mark bar', drawn)]
    ratios = [width / value for width, value in zip(widths, values, strict=True)]
    assert ratios == pytest.approx([ratios[0]] * len(values), rel=0.02)


def test_a_share_beyond_its_gate_is_drawn_beyond_it_in_another_colour() -> None:
    made = [
        rows.Bar("good", 0.5, "", "g"),
        rows.Bar("bad", 2.0, "", "b"),
        rows.Bar("lost", None, "", "n"),
    ]
    drawn = rows.shares("a", "x", made)
    gate = re.search(r'<line x1="([\d.]+)"[^>]*class="rule"', drawn)
    assert gate is not None
    found = re.findall(r'd="M([\d.]+) [^"]*" class="mark (s\d)"><title>(\w)', drawn)
    at = {name: (float(x), colour) for x, colour, name in found}
    assert at["g"][0] < float(gate[1]) < at["b"][0] <= at["n"][0]
    assert (at["g"][1], at["b"][1], at["n"][1]) == ("s0", "s5", "s5")


def test_parts_of_a_stack_lie_end_to_end() -> None:
    parts = tuple(rows.Part(name, 10.0, name, index) for index, name in enumerate("abc"))
    drawn = rows.stacks("a", "x", [rows.Stack("row", parts, "30")])
    found = re.findall(r'x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height="12"', drawn)
    bars = [(float(x), float(width)) for x, width in found]
    assert len(bars) == 3
    for (x, width), (following, _) in pairwise(bars):
        assert x + width == pytest.approx(following, abs=0.02)


@given(st.text(), st.text())
def test_text_and_attributes_come_out_as_they_went_in(words: str, value: str) -> None:
    """Whatever the text, a parser finds one element with that text and nothing else."""

    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.elements: list[tuple[str, list[tuple[str, str | None]]]] = []
            self.words = ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.elements.append((tag, attrs))

        def handle_data(self, data: str) -> None:
            self.words += data

    reader = Reader()
    reader.feed(element("p", words, title=value))
    reader.close()
    shown = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
    replaced = "\N{REPLACEMENT CHARACTER}"
    assert reader.elements == [("p", [("title", shown.sub(replaced, value))])]
    assert reader.words == shown.sub(replaced, words)


def test_numbers_in_words() -> None:
    space = "\N{NARROW NO-BREAK SPACE}"
    assert numbers.size(3_973_760) == "3.97 MB"
    assert numbers.power(2.946e-12) == "2.9·10⁻¹²"
    assert numbers.power(0.0) == "0"
    assert numbers.milliseconds(0.0446) == "44.6 µs"
    assert numbers.milliseconds(121.4) == "121 ms"
    assert numbers.percent(0.0581, 2) == "5.8 %"
    assert numbers.count(986070) == f"986{space}070"
    assert numbers.error(None) == "not finite"
