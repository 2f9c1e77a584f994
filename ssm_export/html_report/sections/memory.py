"""What it takes in memory: weights, states of each stream, workspace."""

from __future__ import annotations

from ssm_export.html_report import numbers
from ssm_export.html_report.markup import Child, Markup, element, join
from ssm_export.html_report.plots.rows import Bar, Part, Stack, bars, stacks
from ssm_export.html_report.sections.section import (
    Missing,
    Page,
    Section,
    Table,
    figure,
    not_measured,
    note,
)
from ssm_export.prediction import Prediction

_BATCHES = (1, 8, 64)
_EXAMPLE = "jetson-orin-nano"


def section(page: Page) -> Section:
    """A stack for each batch: exact from the manifest, or predicted for a target; peaks beside."""
    missing: list[Missing] = []
    parts: list[Markup] = []
    if page.predictions:
        parts.append(_predicted(page))
    else:
        parts.append(_exact(page))
        if page.no_prediction:
            parts.append(note(page.no_prediction))
        again = page.command("report", "--target", _EXAMPLE)
        missing.append(Missing("workspace, and whether it fits a device (predicted)", again))
    peaks = _peaks(page)
    if peaks is not None:
        parts.append(peaks)
    else:
        missing.append(Missing("the peak of memory", page.command("bench")))
    parts.append(not_measured(missing))
    return Section("memory", "Memory", join(parts), tuple(missing))


def _exact(page: Page) -> Markup:
    manifest = page.inputs.bundle.manifest
    weights = manifest.weights.bytes
    per_row = sum(state.bytes_per_row for state in manifest.states)
    rows = [_stack(batch, weights, batch * per_row, 0, predicted=False) for batch in _BATCHES]
    says = (
        f"Weights once, and {numbers.size(per_row)} of states for each stream: a stream of any "
        "length takes no more. From the sizes of the bundle; a runtime adds its own."
    )
    plot = stacks(f"Bytes of weights and states by batch. {says}", "bytes", rows)
    table = _table(rows, "Bytes by batch, from the sizes of the bundle")
    return figure("Weights and states", says, plot, table)


def _predicted(page: Page) -> Markup:
    rows = [
        _stack(one.batch, one.weights_bytes, one.states_bytes, one.workspace_bytes, predicted=True)
        for one in page.predictions
    ]
    first = page.predictions[0]
    room = first.available_bytes
    words = {True: "it fits", False: "it does NOT fit", None: "whether it fits is in doubt"}
    verdicts = "; ".join(f"batch {one.batch}: {words[one.fits]}" for one in page.predictions)
    says = (
        f"Predicted for {first.target} with prompts of {numbers.count(first.tokens)} tokens: "
        f"{verdicts}. States count twice, past and present."
    )
    limit = None
    if room is not None:
        says += f" The device has {numbers.size(room)} to give."
        largest = max(sum(part.value for part in row.parts) for row in rows)
        limit = (room, f"{numbers.size(room)} available") if room < 20 * largest else None
    plot = stacks(f"Predicted bytes by batch. {says}", "bytes, predicted", rows, limit)
    table = _table(rows, f"Predicted bytes by batch on {first.target}")
    return figure("Predicted memory", says, plot, table, notes=_builder(first))


def _builder(first: Prediction) -> list[Markup]:
    words = [f"Building an engine may take {numbers.size(first.builder_bytes)} (predicted)"]
    words += [str(text) for text in first.notes]
    return [note(f"{'; '.join(words)}.")]


def _stack(batch: int, weights: float, states: float, workspace: float, predicted: bool) -> Stack:
    kind = "predicted " if predicted else ""
    sizes = (("weights", weights), ("states", states), ("workspace", workspace))
    parts = tuple(
        Part(name, value, f"batch {batch}: {kind}{name} {numbers.size(value)}", colour, predicted)
        for colour, (name, value) in enumerate(sizes)
        if value
    )
    return Stack(f"batch {batch}", parts, numbers.size(weights + states + workspace))


def _table(rows: list[Stack], name: str) -> Markup:
    kinds = list(dict.fromkeys(part.name for row in rows for part in row.parts))
    lines: list[tuple[Child, ...]] = []
    for row in rows:
        values = {part.name: part.value for part in row.parts}
        lines.append((row.name, *(numbers.size(values.get(kind)) for kind in kinds), row.shown))
    columns = ("", *(f"{kind}>" for kind in kinds), "sum>")
    return Table(columns, tuple(lines)).markup(name)


def _peaks(page: Page) -> Markup | None:
    found = [report for report in page.inputs.benched if report.peak_memory]
    if not found:
        return None
    rows = [
        Bar(
            report.place,
            report.peak_memory,
            numbers.size(report.peak_memory),
            f"{report.place}: {numbers.size(report.peak_memory)} since {report.peak_since}",
            index,
        )
        for index, report in enumerate(found)
    ]
    says = (
        "Measured: the most that the whole process held while it was benched – interpreter, "
        "runtime, packed copies of the weights and all."
    )
    plot = bars(f"Peak of memory by runner. {says}", "bytes", rows)
    cells = tuple(
        (report.place, numbers.size(report.peak_memory), report.peak_since) for report in found
    )
    table = Table(("runner", "peak>", "since"), cells).markup("Peak of memory")
    return figure("Measured peak", join([element("span", says)]), plot, table)
