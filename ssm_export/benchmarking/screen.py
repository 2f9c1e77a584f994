"""A report for people: the table with bars, and the sentences below it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from ssm_export.benchmarking.comparison import Comparison, row_name
from ssm_export.benchmarking.energy import ALONE_S
from ssm_export.benchmarking.work import DECODE

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ssm_export.benchmarking.report import BenchReport, Row

_BAR: Final = 12
_NARROW_BAR: Final = 6
_COLUMNS: Final = 110
_SPARE: Final = ("p90>", "jitter>", "p99>")
"""Columns that give way, in this order, where a table is too wide: the files have every column."""


def report_table(report: BenchReport) -> RenderableType:
    """The table; of columns that no row has a value for there are none."""
    from rich.console import Group
    from rich.text import Text

    from ssm_export.documents import tables

    slowest: dict[str, float] = {}
    for row in report.rows:
        slowest[row.phase] = max(row.p50_ms, slowest.get(row.phase, 0.0))
    more = [
        ("mJ/token>", lambda row: _number(row.energy_mj_per_token)),
        ("ceiling>", lambda row: _share(row.ceiling_share)),
    ]
    more = [item for item in more if any(item[1](row) != "–" for row in report.rows)]
    width = _NARROW_BAR if more else _BAR
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("phase", _phase),
        ("tokens>", lambda row: f"{row.tokens}"),
        ("batch>", lambda row: f"{row.batch}"),
        ("p50 ms>", lambda row: _number(row.p50_ms)),
        ("p90>", lambda row: _number(row.p90_ms)),
        ("p99>", lambda row: _number(row.p99_ms)),
        ("max>", lambda row: _number(row.max_ms)),
        ("jitter>", lambda row: _number(row.jitter_ms)),
        ("tokens/s>", lambda row: f"{row.tokens_per_s:,.0f}"),
        ("GB/s>", lambda row: "–" if row.gb_per_s is None else f"{row.gb_per_s:.1f}"),
        *more,
        ("p50", lambda row: tables.bar(row.p50_ms, slowest[row.phase], width)),
    ]
    _fit(columns, report.rows)
    title = f"{report.runner} ({report.device}), {report.lowering} graphs, {report.precision}"
    lines = [tuple(show(row) for _, show in columns) for row in report.rows]
    shown: list[RenderableType] = [tables.table(title, [head for head, _ in columns], lines)]
    shown += [Text(line) for line in reading(report)]
    shown += [Text(line, style="dim") for line in facts(report)]
    if report.comparison is not None:
        shown.append(Text(f"\nagainst {report.comparison.baseline}:"))
        shown += [Text(f"  {line}") for line in verdicts(report.comparison)]
    return Group(*shown)


def _fit(columns: list[tuple[str, Callable[[Row], str]]], rows: Sequence[Row]) -> None:
    """Take out spare columns until the table is no wider than a page."""
    for spare in _SPARE:
        widths = [max(len(head), *(len(show(row)) for row in rows)) for head, show in columns]
        if sum(widths) + 2 * len(columns) <= _COLUMNS:
            return
        columns[:] = [column for column in columns if column[0] != spare]


def reading(report: BenchReport) -> list[str]:
    """What the rows say together, and what speaks against them; a sentence each."""
    lines = _growth(report)
    steady = report.repeatability
    if steady["p50_spread"] is None:
        lines.append(f"Measured in {report.blocks} blocks: too few to say whether it repeats.")
    elif not steady["steady"]:
        lines.append(
            f"NOT STEADY: the p50 of one block differs by {steady['p50_spread']:.0%} from that of "
            "another; another run may differ as much. Is the machine idle?"
        )
    telemetry = report.telemetry
    if telemetry.get("throttled"):
        lines.append(f"THROTTLED: {'; '.join(telemetry['throttled'])}.")
    if telemetry.get("below_maximum"):
        lines.append(f"Clocks below their highest: {'; '.join(telemetry['below_maximum'])}.")
    return [*lines, *report.notes]


def facts(report: BenchReport) -> list[str]:
    """What the figures depend on, in a few lines."""
    from ssm_export.documents import tables

    peak = report.peak_memory_bytes
    repeated = f"{report.repetitions} repetitions or more in {report.blocks} blocks"
    parts = (
        f"peak memory {tables.size(peak)} since {report.peak_memory_since}" if peak else "",
        f"{report.warmup} warm-up calls, {repeated}",
        f"{report.threads} threads" if report.threads else "",
        str(report.machine.get("cpu", "")),
        str(report.machine.get("gpu", "")) if report.device != "cpu" else "",
    )
    lines = ["; ".join(part for part in parts if part)]
    steady = report.repeatability
    if steady["steady"]:
        lines.append(f"steady: the p50 of the blocks lie within {steady['p50_spread']:.1%}")
    return lines + _power(report)


def verdicts(comparison: Comparison) -> list[str]:
    """Each row against the baseline, and what else differs."""
    lines = [
        f"{change.verdict}: {row_name(change)}: {change.before_ms:.3f} → {change.now_ms:.3f} ms, "
        f"{change.change:+.1%} (noise {change.noise:.1%})"
        for change in comparison.changes
    ]
    if comparison.not_compared:
        lines.append(f"{comparison.not_compared} rows are in one of the two only")
    lines += [f"another version: {text}" for text in comparison.versions]
    return lines


def _growth(report: BenchReport) -> list[str]:
    """Decode at the greatest depth against none, where both were measured."""
    lines = []
    rows = [row for row in report.rows if row.phase == DECODE]
    for row in rows:
        others = [other for other in rows if other.key == (*row.key[:3], 0, row.cuda_graph)]
        deepest = max(o.depth for o in rows if o.batch == row.batch)
        if row.depth and row.depth == deepest and others:
            ratio = row.p50_ms / others[0].p50_ms
            lines.append(
                f"Decode after {row.depth} tokens takes {ratio:.2f}× the time of decode after "
                f"none (batch {row.batch})."
            )
    return lines


def _power(report: BenchReport) -> list[str]:
    telemetry = report.telemetry
    lines = []
    if telemetry.get("mean_w") is not None:
        idle = telemetry["idle_w"]
        lines.append(
            f"power ({telemetry['source']}, {telemetry['power_rail']}): mean "
            f"{telemetry['mean_w']:.1f} W"
            + (f", idle {idle:.1f} W, which is not subtracted" if idle is not None else "")
        )
        lines.append(_figure(report))
        lines += telemetry.get("notes", [])
    elif telemetry.get("notes"):
        lines.append(f"power not measured: {'; '.join(telemetry['notes'])}")
    mode = [telemetry.get("power_mode"), telemetry.get("jetson_clocks")]
    if any(mode):
        lines.append(f"power mode {mode[0] or 'not known'}, jetson_clocks {mode[1] or 'not known'}")
    if report.target is not None:
        lines.append(f"ceiling: predicted for {report.target}, not measured")
    if all(row.cuda_graph is None for row in report.rows):
        lines.append(f"CUDA graphs: {report.runner} has none on {report.device}")
    return lines


def _figure(report: BenchReport) -> str:
    """Which figure the power is, and of how long a time the energies are."""
    average = report.telemetry.get("average_s")
    mean = f", which may be the mean of {average:.0f} s" if average else ""
    known = any(row.energy_mj_per_token is not None for row in report.rows)
    energy = f"; energy: of each row alone for {ALONE_S} s or more, after the blocks"
    return f"power figure: {report.telemetry.get('power_reading')}{mean}{energy if known else ''}"


def _phase(row: Row) -> str:
    name = f"{row.phase} at {row.depth}" if row.depth else row.phase
    return name if row.cuda_graph is None else f"{name}, {'' if row.cuda_graph else 'no '}graph"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def _share(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0%}" if value >= 0.1 else f"{100 * value:.2g}%"
