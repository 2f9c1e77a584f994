"""How near to what the device can do? Arithmetic over traffic, with this model's points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ssm_export.errors import SsmExportError
from ssm_export.html_report import numbers
from ssm_export.html_report.doubts import is_elsewhere
from ssm_export.html_report.inputs import Row
from ssm_export.html_report.markup import Markup, element, join
from ssm_export.html_report.plots.lines import Axis, Point, Series, lines
from ssm_export.html_report.sections.latency import row_name
from ssm_export.html_report.sections.section import (
    Missing,
    Page,
    Section,
    Table,
    figure,
    join_words,
    not_measured,
    note,
)
from ssm_export.prediction import Needs, needs_of
from ssm_export.targets import Target

_EXAMPLE = "jetson-orin-nano"


@dataclass(frozen=True)
class Work:
    """A call's arithmetic in operations and its traffic in bytes; both are the least possible."""

    operations: float
    moved: float

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.moved


@dataclass(frozen=True)
class Dot:
    """A point of the roofline: its name, its work, its rate in operations per second."""

    name: str
    work: Work
    rate: float

    def point(self, predicted: bool) -> Point:
        """The point, with its numbers in words."""
        kind = "predicted" if predicted else "measured"
        rate = f"{numbers.prefixed(self.rate)}FLOP/s"
        intensity = numbers.significant(self.work.intensity)
        return Point(
            self.work.intensity,
            self.rate / 1e9,
            f"{self.name}: {kind} {rate} at {intensity} FLOP/B",
        )


def section(page: Page) -> Section:
    """The roof of the target, predicted points under it and measured points."""
    try:
        needs = needs_of(page.inputs.bundle)
    except (SsmExportError, KeyError, OSError, ValueError) as error:
        reason = f"The work of this model cannot be reckoned: {error}"
        return Section("roofline", "Roofline", note(reason), empty=True)
    missing: list[Missing] = []
    measured = _measured(page, needs)
    predicted = _predicted(page, needs)
    if page.target is None or page.target.bandwidth_gb_s is None:
        again = page.command("report", "--target", _EXAMPLE)
        missing.append(Missing("the roof of a device", again))
    if not measured:
        missing.append(Missing("this model's points", page.command("bench")))
    if not (measured or predicted):
        body = join([note(page.no_prediction), not_measured(missing)])
        return Section("roofline", "Roofline", body, tuple(missing), empty=True)
    parts = [_figure(page, needs, measured, predicted), not_measured(missing)]
    return Section("roofline", "Roofline", join(parts), tuple(missing))


def work_of(needs: Needs, phase: str, tokens: int, batch: int, pieces: int = 1) -> Work:
    """The least work of a call: two operations for each weight and token; weights read once and
    states read and written once for each piece of a prompt. Activations and scans are left out."""
    moved = pieces * (needs.read_bytes + 2 * batch * needs.states_per_row)
    if phase == "decode":
        return Work(2.0 * batch * (needs.body_weights + needs.head_weights), moved)
    headed = tokens if needs.every_logits else pieces
    operations = 2.0 * batch * (tokens * needs.body_weights + headed * needs.head_weights)
    return Work(operations, moved)


def _measured(page: Page, needs: Needs) -> dict[str, list[Dot]]:
    found: dict[str, list[Dot]] = {}
    for report in page.inputs.benched:
        for row in report.rows:
            if row.phase in ("prefill", "decode") and not row.depth:
                work = work_of(needs, row.phase, row.tokens, row.batch, row.pieces)
                rate = work.operations / (row.p50_ms / 1e3)
                found.setdefault(report.place, []).append(Dot(_short(row), work, rate))
    return found


def _short(row: Row) -> str:
    return row_name(row).replace(" · batch 1", "")


def _predicted(page: Page, needs: Needs) -> list[Dot]:
    found = []
    for one in page.predictions:
        if one.decode_tokens_per_s is not None:
            work = work_of(needs, "decode", 1, one.batch)
            rate = one.decode_tokens_per_s / one.batch * work.operations
            found.append(Dot(f"decode · batch {one.batch}", work, rate))
        if one.prefill_tokens_per_s is not None:
            work = work_of(needs, "prefill", one.tokens, one.batch)
            rate = one.prefill_tokens_per_s / (one.batch * one.tokens) * work.operations
            found.append(Dot(f"prefill {one.tokens} · batch {one.batch}", work, rate))
    return found


def _figure(
    page: Page, needs: Needs, measured: dict[str, list[Dot]], predicted: Sequence[Dot]
) -> Markup:
    dots = [dot for group in measured.values() for dot in group] + list(predicted)
    low = min(dot.work.intensity for dot in dots) / 3
    high = max(dot.work.intensity for dot in dots) * 3
    series = _roofs(page.target, needs, low, high)
    colour = 0
    for place, group in measured.items():
        points = tuple(dot.point(predicted=False) for dot in _by_intensity(group))
        name = f"measured, {place}"
        names = _names(_by_intensity(group))
        series.append(Series(name, points, colour, curve=False, labels=names))
        colour = colour + 1 if colour != 1 else 3
    if predicted and page.target is not None:
        points = tuple(dot.point(predicted=True) for dot in _by_intensity(predicted))
        name = f"predicted, {page.target.name}"
        names = _names(_by_intensity(predicted))
        series.append(Series(name, points, 1, curve=False, hollow=True, labels=names))
    x = Axis("arithmetic intensity, FLOP per byte", log=True)
    y = Axis("10⁹ FLOP per second", log=True)
    says = _says(page, measured, predicted)
    plot = lines(f"Roofline. {says}", x, y, series)
    rows = [
        (dot.name, place, numbers.significant(dot.work.intensity), _giga(dot.rate))
        for place, group in measured.items()
        for dot in group
    ]
    named = page.target.name if page.target is not None else ""
    rows += [
        (
            dot.name,
            join([element("em", "predicted"), f", {named}"]),
            numbers.significant(dot.work.intensity),
            _giga(dot.rate),
        )
        for dot in predicted
    ]
    columns = ("call", "where", "FLOP/B>", "GFLOP/s>")
    table = Table(columns, tuple(rows)).markup("Points of the roofline")
    return figure("Arithmetic over traffic", says, plot, table, notes=_about(page, measured))


def _says(page: Page, measured: dict[str, list[Dot]], predicted: Sequence[Dot]) -> str:
    target = page.target
    says = (
        "Decode reads every weight for one token of each row and is bound by memory; prefill uses "
        "a weight for every token. "
    )
    if target is not None and target.bandwidth_gb_s is not None:
        says += (
            f"The roof is what {target.name} ({page.target_from}) can do at "
            f"{target.bandwidth_gb_s:g} GB/s. "
        )
    if measured:
        says += "Filled marks were measured. "
    if predicted:
        says += "Hollow marks are predicted: ceilings, nothing was run there. "
    return says.strip()


def _about(page: Page, measured: dict[str, list[Dot]]) -> list[Markup]:
    notes = [
        note(
            "Operations are two for each weight and token; traffic is weights and states once. "
            "Scans and activations are left out, so the true intensity is lower."
        )
    ]
    target = page.target
    if target is not None and measured:
        elsewhere = [
            report.place
            for report in page.inputs.benched
            if report.rows and is_elsewhere(report, target.name)
        ]
        if elsewhere:
            places = join_words(list(dict.fromkeys(elsewhere)))
            words = f"The measured marks are of another device than the roof: {places}."
            notes.append(note(words))
    if page.no_prediction:
        notes.append(note(page.no_prediction))
    return notes


def _roofs(target: Target | None, needs: Needs, low: float, high: float) -> list[Series]:
    """The slope of the bandwidth and a flat part for each number format with a known peak."""
    if target is None or target.bandwidth_gb_s is None:
        return []
    slope = target.bandwidth_gb_s
    peaks = {}
    for name in (needs.precision, *needs.inputs):
        rate = target.peak_tflops.get(name)
        if rate is None and name == "bf16":  # as fast as fp16 or slower
            rate = target.peak_tflops.get("fp16")
        if rate is not None:
            peaks[name] = rate * 1e3
    name = f"{slope:g} GB/s"
    if not peaks:
        ends = tuple(Point(x, x * slope, "") for x in (low, high))
        return [Series(f"{name} (no peak of {needs.precision} is known)", ends, 4, marks=False)]
    found = []
    for index, (kind, peak) in enumerate(sorted(peaks.items(), key=lambda pair: pair[1])):
        knee = peak / slope
        corners = [(low, low * slope), (knee, peak), (max(high, knee * 3), peak)]
        points = tuple(Point(x, y, "") for x, y in corners if x >= low)
        title = f"{name}, {kind} {numbers.significant(peak / 1e3)} TFLOP/s"
        found.append(Series(title, points, 4, marks=False, dashed=index > 0))
    return found


def _by_intensity(dots: Sequence[Dot]) -> list[Dot]:
    return sorted(dots, key=lambda dot: (dot.work.intensity, dot.rate))


def _names(dots: Sequence[Dot]) -> tuple[str, ...]:
    """What stands beside each dot: the kind of call at its first dot, nothing at the others."""
    names: list[str] = []
    for dot in dots:
        kind = dot.name.split()[0]
        names.append("" if kind in names else kind)
    return tuple(names)


def _giga(rate: float) -> str:
    return numbers.significant(rate / 1e9)
