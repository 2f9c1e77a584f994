"""Does it compute what PyTorch computes? Checks, every output, every layer."""

from __future__ import annotations

from collections.abc import Sequence

from ssm_export.html_report import numbers
from ssm_export.html_report.inputs import Check, TensorError, Verified
from ssm_export.html_report.markup import Child, Markup, element, join
from ssm_export.html_report.plots.lines import Axis, Point, Series, lines, whole_ticks
from ssm_export.html_report.plots.rows import Bar, shares
from ssm_export.html_report.plots.scale import Tick
from ssm_export.html_report.sections.section import (
    Missing,
    Page,
    Section,
    Table,
    code,
    figure,
    join_words,
    not_measured,
    note,
    paragraph,
    sentence,
)

_KINDS = ("conv", "ssm", "logits")
_KIND_NAMES = {"conv": "convolution states", "ssm": "scan states", "logits": "logits"}


def section(page: Page) -> Section:
    """One block for each report of verify."""
    if not page.inputs.verified:
        nothing = (Missing("parity", page.command("verify")),)
        return Section("parity", "Parity", not_measured(nothing), nothing, empty=True)
    parts: list[Markup] = [
        paragraph(
            "The graphs are held against the PyTorch model in float64, on recorded prompts. Every "
            "number has a gate that follows from the precision; one beyond its gate fails."
        )
    ]
    missing: list[Missing] = []
    several = len(page.inputs.verified) > 1
    for report in page.inputs.verified:
        if several:
            title = f"{report.runner}, {report.lowering} graphs, against {report.against}"
            parts.append(element("h3", title, class_="run"))
        parts += _report(page, report, missing)
    return Section("parity", "Parity", join(parts), tuple(dict.fromkeys(missing)))


def _report(page: Page, report: Verified, missing: list[Missing]) -> list[Markup]:
    parts = [_checks(report)]
    lacking = [check for check in report.checks if check.status == "not run"]
    if lacking:
        words = "; ".join(f"{check.name}: {check.where}" for check in lacking)
        parts.append(note(f"Not run: {words}. A check that is not run is no pass."))
    command = page.command("verify", *_runner(report), "--bisect")
    outputs = report.outputs or report.layers
    if outputs:
        parts.append(_per_layer(page, outputs))
        table = _outputs_table(outputs)
        says = "Every output of the graphs at its worst, beside the gate that holds it."
        parts.append(figure("Parity per output", says, _outputs_plot(outputs), table))
    else:
        one = Missing("error per output and per layer", command)
        missing.append(one)
        parts.append(not_measured([one]))
    return parts


def _runner(report: Verified) -> tuple[str, ...]:
    return () if report.runner == "onnxruntime" else ("--runner", report.runner)


def _checks(report: Verified) -> Markup:
    ran = [check for check in report.checks if check.status != "not run"]
    failed = [check for check in ran if check.status != "passed"]
    if not ran:
        says = "No check could be run."
    elif failed:
        says = sentence(f"{join_words([check.name for check in failed])} failed")
    else:
        nearest = max(ran, key=lambda check: check.share or 0.0)
        says = (
            f"All {len(ran)} checks passed on {report.runner} ({report.device}) with the "
            f"{report.lowering} graphs, against {report.against}. Nearest to its gate: "
            f"{nearest.name}, at {numbers.percent(nearest.share, 2)} of it."
        )
    label = f"Each check of verify as a share of its gate. {says}"
    plot = shares(label, "worst error / gate", [_bar(check) for check in ran]) if ran else None
    rows = []
    bad = set()
    for index, check in enumerate(report.checks):
        run = check.status != "not run"
        rows.append(
            (
                check.name,
                element("span", check.status, class_=f"badge {_badge(check)}"),
                numbers.error(check.worst) if run else numbers.NONE,
                numbers.error(check.tolerance) if run else numbers.NONE,
                check.measure,
            )
        )
        if check.status == "failed":
            bad.add(index)
    columns = ("check", "", "worst>", "gate>", "measure")
    table = Table(columns, tuple(rows), frozenset(bad)).markup("Checks of verify")
    where = [note(f"{check.name}: {check.where}.") for check in failed if check.where]
    return join([figure("Checks against their gates", says, plot, table), *where])


def _badge(check: Check) -> str:
    return {"passed": "good", "failed": "bad"}.get(check.status, "none")


def _bar(check: Check) -> Bar:
    share = check.share
    exact = share == 0
    shown = "exact" if exact else "not finite" if share is None else numbers.percent(share, 2)
    title = (
        f"{check.name}: {numbers.error(check.worst)} {check.measure}, "
        f"gate {numbers.error(check.tolerance)}; {check.where}"
    )
    return Bar(check.name, share, shown, title)


def _kind(tensor: str) -> str:
    if tensor == "logits":
        return "logits"
    return "conv" if "conv" in tensor else "ssm"


def _mean_square(outputs: Sequence[TensorError]) -> list[TensorError]:
    """One number for each tensor: its normalised mean-square error where that was measured."""
    chosen = [one for one in outputs if one.measure == "nmse"]
    return chosen or list(outputs)


def _per_layer(page: Page, outputs: Sequence[TensorError]) -> Markup:
    found = _mean_square(outputs)
    measure = found[0].measure
    floors = page.inputs.bundle.manifest.rounding.get("prefill", {})
    last = max(one.layer for one in found)
    series: list[Series] = []
    for colour, kind in enumerate(_KINDS):
        of_kind = [one for one in found if _kind(one.tensor) == kind]
        if of_kind:
            points = tuple(_point(one) for one in of_kind)
            series.append(Series(_KIND_NAMES[kind], points, colour))
    series += _gates(found)
    if measure == "nmse" and (floor := _floor(found, floors)):
        series.append(floor)
    states = [one.layer for one in found if _kind(one.tensor) != "logits"]
    names: list[Tick] = whole_ticks(0, max(states)) if states else []
    if any(_kind(one.tensor) == "logits" for one in found):
        names = [tick for tick in names if last - tick.value > 0.04 * last]
        names.append(Tick(last, "logits"))
    bad = [one for one in outputs if not one.ok]
    says = (
        f"{bad[0].tensor} departs first, in layer {bad[0].layer}."
        if bad
        else "An error in one layer reaches every layer after it and none before; a step in the "
        "curve would name the layer at fault."
    )
    label = f"Error of every state and of the logits, layer by layer. {says}"
    y_title = "normalised mean-square error" if measure == "nmse" else measure
    plot = lines(label, Axis("layer"), Axis(y_title, log=True), series, x_names=names)
    return figure("Error per layer", says, plot, _layer_table(found))


def _point(one: TensorError) -> Point:
    title = f"{one.tensor}: {numbers.error(one.error)}, gate {numbers.error(one.tolerance)}"
    return Point(one.layer, one.error, title)


def _gates(found: Sequence[TensorError]) -> list[Series]:
    highest: dict[int, float] = {}
    for one in found:
        highest[one.layer] = max(highest.get(one.layer, 0.0), one.tolerance)
    points = tuple(
        Point(layer, value, f"gate {numbers.power(value)}")
        for layer, value in sorted(highest.items())
    )
    return [Series("gate", points, 5, marks=False, dashed=True)] if len(points) > 1 else []


def _floor(found: Sequence[TensorError], floors: dict[str, dict[str, float]]) -> Series | None:
    """How far PyTorch itself is from float64 in this precision, where that was recorded."""
    highest: dict[int, float] = {}
    for one in found:
        value = floors.get(one.tensor, {}).get("nmse")
        if value is not None:
            highest[one.layer] = max(highest.get(one.layer, 0.0), value)
    if len(highest) < 2:
        return None
    points = tuple(Point(layer, value, "") for layer, value in sorted(highest.items()))
    return Series("PyTorch in this precision", points, 3, marks=False)


def _layer_table(found: Sequence[TensorError]) -> Markup:
    layers: dict[int, dict[str, TensorError]] = {}
    for one in found:
        layers.setdefault(one.layer, {})[_kind(one.tensor)] = one
    rows: list[tuple[Child, ...]] = []
    bad = set()
    for index, (layer, kinds) in enumerate(sorted(layers.items())):
        name = "logits" if set(kinds) == {"logits"} else str(layer)
        cells = [numbers.error(kinds[k].error) if k in kinds else numbers.NONE for k in _KINDS]
        rows.append((name, *cells))
        if not all(one.ok for one in kinds.values()):
            bad.add(index)
    columns = ("layer", "convolution>", "scan>", "logits>")
    return Table(columns, tuple(rows), frozenset(bad)).markup("Error per layer")


def _outputs_plot(outputs: Sequence[TensorError]) -> Markup:
    worst: dict[tuple[str, str], TensorError] = {}
    for one in outputs:
        key = (_kind(one.tensor), one.measure)
        if key not in worst or _share(one) > _share(worst[key]):
            worst[key] = one
    bars = [
        Bar(
            f"{one.tensor} · {one.measure}",
            None if one.error is None else _share(one),
            "not finite" if one.error is None else numbers.percent(_share(one), 2),
            f"{one.tensor}: {numbers.error(one.error)} {one.measure}, "
            f"gate {numbers.error(one.tolerance)}; {one.run}",
            _KINDS.index(kind),
        )
        for (kind, _), one in sorted(worst.items(), key=lambda pair: _KINDS.index(pair[0][0]))
    ]
    label = "The worst output of each kind as a share of its gate, by two measures."
    return shares(label, "worst error / gate, worst output of each kind", bars)


def _share(one: TensorError) -> float:
    if one.error is None:
        return float("inf")
    return one.error / one.tolerance if one.tolerance > 0 else 0.0


def _outputs_table(outputs: Sequence[TensorError]) -> Markup:
    rows = tuple(
        (
            code(one.tensor),
            one.measure,
            numbers.error(one.error),
            numbers.error(one.tolerance),
        )
        for one in outputs
    )
    bad = frozenset(index for index, one in enumerate(outputs) if not one.ok)
    columns = ("output", "measure", "worst>", "gate>")
    return Table(columns, rows, bad).markup("Worst error of every output")
