"""How long does a call take, how evenly, and on what does it depend?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ssm_export.html_report import numbers
from ssm_export.html_report.doubts import is_elsewhere
from ssm_export.html_report.inputs import Benched, Row
from ssm_export.html_report.markup import Child, Markup, element, join
from ssm_export.html_report.plots.lines import Axis, Point, Series, lines
from ssm_export.html_report.plots.rows import Spread, spreads
from ssm_export.html_report.sections.device import device
from ssm_export.html_report.sections.section import (
    Missing,
    Page,
    Section,
    Table,
    figure,
    not_measured,
    note,
    paragraph,
    sentence,
)

_QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
_MOST_ROWS = 20
"""Rows that one plot of distributions has; the table has all."""
_PHASES = ("prefill", "first token", "decode")


def section(page: Page) -> Section:
    """Distributions of every runner, then time over prompt length, depth and batch."""
    benched = [report for report in page.inputs.benched if report.rows]
    if not benched:
        nothing = (Missing("latency", page.command("bench")),)
        return Section("latency", "Latency", not_measured(nothing), nothing, empty=True)
    parts: list[Markup] = [
        paragraph(
            "Time of one call: of a whole prompt (prefill), of a prompt and the first token after "
            "it, or of one decoded token of every row of the batch. Each runner passed its checks "
            "before it was timed."
        )
    ]
    missing: list[Missing] = []
    for report in benched:
        parts += _one(report)
        if report.weights and report.weights != page.inputs.bundle.manifest.weights.sha256:
            badge = element("span", "outdated", class_="badge warn")
            words = " These times are of other weights than those of the bundle now."
            parts.append(element("p", badge, words))
    parts.append(_over_length(benched))
    deep = _over_depth(benched)
    if deep is not None:
        parts.append(deep)
    else:
        runner = () if benched[0].runner == "onnxruntime" else ("--runner", benched[0].runner)
        command = page.command("bench", *runner, "--depth", "0,1024,4096")
        missing.append(Missing("decode at depth", command))
    batched = _over_batch(benched)
    if batched is not None:
        parts.append(batched)
    if not any(row.quantiles_ms for report in benched for row in report.rows):
        parts.append(note("These reports are of an earlier release: of each row p50, p90 and p99."))
    parts.append(not_measured(missing))
    return Section("latency", "Latency", join(parts), tuple(missing))


def row_name(row: Row) -> str:
    """A row in words: ``decode · batch 4 · at 1024``."""
    what = {
        "prefill": f"prefill {row.tokens}",
        "first token": f"first token after {row.tokens}",
    }.get(row.phase, row.phase)
    depth = f" · at {row.depth}" if row.depth and row.phase == "decode" else ""
    graph = {True: " · CUDA graph", False: " · no CUDA graph", None: ""}[row.cuda_graph]
    return f"{what} · batch {row.batch}{depth}{graph}"


def _one(report: Benched) -> list[Markup]:
    shown = report.rows[:_MOST_ROWS]
    rows = [_spread(row) for row in shown]
    uneven = max(shown, key=_unevenness)
    says = (
        f"{len(report.rows)} rows, {report.repetitions} repetitions after {report.warmup} warm-up "
        f"calls. Each box is drawn over its own median, so a narrow one is an even one; the least "
        f"even is {row_name(uneven)}, whose slowest percent takes "
        f"{numbers.significant(_unevenness(uneven), 2)} times its median."
    )
    label = f"Distribution of the times of each row on {report.place}. {says}"
    kinds = dict.fromkeys((row.phase, _colour(row)) for row in shown)
    plot = spreads(label, "time / median of the row", rows, tuple(kinds))
    title = f"{report.place}, {report.lowering} graphs"
    parts = [figure(title, says, plot, _table(report), wide=True, notes=_ceiling(report))]
    if len(report.rows) > len(shown):
        parts.append(note(f"The plot shows the first {len(shown)} rows, the table all."))
    parts.append(_steadiness(report))
    if report.slower:
        badge = element("span", "slower", class_="badge bad")
        parts.append(element("p", badge, " It was slower than its baseline beyond the noise."))
    parts += [note(sentence(words)) for words in report.notes]
    parts.append(device(report))
    return parts


def _unevenness(row: Row) -> float:
    slow = row.quantile(0.99) or row.p99_ms or row.p50_ms
    return slow / row.p50_ms


def _spread(row: Row) -> Spread:
    known = tuple(row.quantile(probability) for probability in _QUANTILES)
    quantiles = tuple(None if value is None else value / row.p50_ms for value in known)
    times = [
        f"{name} {numbers.milliseconds(value)}"
        for name, value in zip(
            ("least", "25 %", "50 %", "75 %", "90 %", "99 %", "most"), known, strict=True
        )
        if value is not None
    ]
    title = f"{row_name(row)}: {', '.join(times)}; {row.samples} samples"
    return Spread(row_name(row), quantiles, numbers.milliseconds(row.p50_ms), title, _colour(row))


def _colour(row: Row) -> int:
    return _PHASES.index(row.phase) if row.phase in _PHASES else 3


def _table(report: Benched) -> Markup:
    optional = (
        ("slowest>", [numbers.milliseconds(row.max_ms) for row in report.rows]),
        ("jitter>", [numbers.milliseconds(row.jitter_ms) for row in report.rows]),
        ("GB/s>", [_or_none(row.gb_per_s) for row in report.rows]),
        ("mJ/token>", [_or_none(row.energy_mj_per_token) for row in report.rows]),
        (
            f"of the predicted ceiling{f' of {report.target}' if report.target else ''}>",
            [numbers.percent(row.ceiling_share, 2) for row in report.rows],
        ),
    )
    kept = [(head, cells) for head, cells in optional if set(cells) != {numbers.NONE}]
    rows: list[tuple[Child, ...]] = []
    for index, row in enumerate(report.rows):
        times = (row.p50_ms, row.p90_ms, row.p99_ms)
        rows.append(
            (
                row_name(row),
                *(numbers.milliseconds(value) for value in times),
                numbers.rate(row.tokens_per_s),
                *(cells[index] for _, cells in kept),
            )
        )
    columns = ("row", "p50>", "p90>", "p99>", "tokens/s>", *(head for head, _ in kept))
    return Table(columns, tuple(rows)).markup(f"Times on {report.place}")


def _ceiling(report: Benched) -> list[Markup]:
    """Of which device the ceiling is, where the times are of another."""
    if all(row.ceiling_share is None for row in report.rows):
        return []
    if not is_elsewhere(report, report.target):
        return []
    words = f"The times are of another device than the ceiling: {report.place}."
    return [note(f"{words} The ceiling is predicted for {report.target}; nothing was run there.")]


def _or_none(value: float | None) -> str:
    return numbers.NONE if value is None else numbers.significant(value)


def _steadiness(report: Benched) -> Markup:
    if report.steady is None:
        return join(())
    spread = numbers.percent(report.p50_spread, 2)
    if report.steady:
        return note(f"Repeatable: medians of the blocks of this run lie within {spread}.")
    if report.p50_spread is None:
        return note("Too few blocks were timed to say how well these medians repeat.")
    return element(
        "p",
        element("span", "not steady", class_="badge warn"),
        f" The medians of the blocks of this run differ by up to {spread}: the machine was busy or "
        "changed its clocks, and another run will not repeat these numbers within 5 %.",
    )


def _over_length(benched: Sequence[Benched]) -> Markup:
    rows = [(report, row) for report in benched for row in report.rows]
    series: list[Series] = []
    for phase in _PHASES[:2]:
        for key, chosen in _grouped(rows, phase, len(benched) > 1).items():
            ordered = sorted(chosen, key=lambda row: row.tokens)
            points = tuple(
                Point(
                    row.tokens,
                    row.p50_ms,
                    f"{key}, {row.tokens} tokens: {numbers.milliseconds(row.p50_ms)}, "
                    f"{numbers.rate(row.tokens_per_s)} tokens/s",
                )
                for row in ordered
            )
            dashed = phase != "prefill"
            series.append(Series(key, points, len(series), dashed=dashed))
    if not series:
        return note("No prefill was measured.")
    says = "The median time of a prompt over its length; a straight line at 45° is a constant rate."
    x, y = Axis("tokens of the prompt", log=True), Axis("median time, ms", log=True)
    plot = lines(f"Time over prompt length. {says}", x, y, series)
    table = _points_table("tokens", series, "Median time over prompt length")
    return figure("Time over prompt length", says, plot, table)


def _over_depth(benched: Sequence[Benched]) -> Markup | None:
    rows = [(report, row) for report in benched for row in report.rows if row.depth is not None]
    series: list[Series] = []
    for key, chosen in _grouped(rows, "decode", len(benched) > 1).items():
        ordered = sorted(chosen, key=lambda row: row.depth or 0)
        points = tuple(
            Point(
                row.depth or 0,
                row.p50_ms,
                f"{key}, at {row.depth} tokens: {numbers.milliseconds(row.p50_ms)}",
            )
            for row in ordered
        )
        series.append(Series(key, points, len(series)))
    if not any(len({point.x for point in one.points}) > 1 for one in series):
        return None
    says = (
        "The median time of a token over the tokens that went before it. The state has a fixed "
        "size, so the line is to be level."
    )
    x, y = Axis("tokens before", whole=True, zero=True), Axis("median time, ms", zero=True)
    plot = lines(f"Time of a decoded token over depth. {says}", x, y, series)
    table = _points_table("depth", series, "Median time over depth")
    return figure("Decode at depth", says, plot, table)


def _over_batch(benched: Sequence[Benched]) -> Markup | None:
    series: list[Series] = []
    for report in benched:
        rows = [row for row in report.rows if row.phase == "decode" and not row.depth]
        by_graph = dict.fromkeys(row.cuda_graph for row in rows)
        for graph in by_graph:
            chosen = sorted((r for r in rows if r.cuda_graph is graph), key=lambda r: r.batch)
            if len({row.batch for row in chosen}) < 2:
                continue
            name = report.runner + {True: ", CUDA graph", False: ", no graph", None: ""}[graph]
            points = tuple(
                Point(
                    row.batch,
                    row.tokens_per_s,
                    f"{name}, batch {row.batch}: {numbers.rate(row.tokens_per_s)} tokens/s",
                )
                for row in chosen
                if row.tokens_per_s
            )
            series.append(Series(name, points, len(series)))
    if not series:
        return None
    says = "Decoded tokens per second of all rows together: what a larger batch is worth."
    x, y = Axis("rows of the batch", log=True), Axis("tokens per second", log=True)
    plot = lines(f"Decode rate over batch. {says}", x, y, series)
    cells = tuple(
        (one.name, numbers.count(point.x), numbers.rate(point.y))
        for one in series
        for point in one.points
    )
    table = Table(("runner", "batch>", "tokens/s>"), cells).markup("Decode rate over batch")
    return figure("Decode over batch", says, plot, table)


def _grouped(
    rows: Iterable[tuple[Benched, Row]], phase: str, several: bool
) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for report, row in rows:
        if row.phase == phase:
            runner = f"{report.runner}, " if several else ""
            graph = {True: ", CUDA graph", False: ", no graph", None: ""}[row.cuda_graph]
            found.setdefault(f"{runner}{phase}, batch {row.batch}{graph}", []).append(row)
    return found


def _points_table(head: str, series: Sequence[Series], name: str) -> Markup:
    rows = tuple(
        (one.name, numbers.count(point.x), numbers.milliseconds(point.y))
        for one in series
        for point in one.points
    )
    return Table(("row", f"{head}>", "p50>"), rows).markup(name)
