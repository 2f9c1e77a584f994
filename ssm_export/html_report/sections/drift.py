"""Does an error grow over thousands of steps?"""

from __future__ import annotations

from ssm_export.html_report import numbers
from ssm_export.html_report.inputs import Check, Verified
from ssm_export.html_report.markup import Child, Markup, join
from ssm_export.html_report.plots.lines import Axis, Point, Rule, Series, lines
from ssm_export.html_report.reading import Members
from ssm_export.html_report.sections.section import (
    Missing,
    Page,
    Section,
    Table,
    code,
    figure,
    not_measured,
    note,
)

_STEPS = 4096
"""Steps of the drift check of releases that did not record its curve."""


def section(page: Page) -> Section:
    """The drift check of every report of verify, and the long runs of quantize."""
    parts: list[Markup] = []
    missing: list[Missing] = []
    found = [(report, _drift(report)) for report in page.inputs.verified]
    ran = [(report, check) for report, check in found if check and check.status != "not run"]
    for report, check in ran:
        parts.append(_curve(report, check))
        if not check.curve:
            again = page.command("verify", "--runner", report.runner)
            missing.append(Missing(f"the curve of the drift on {report.runner}", again))
    long_runs = _long_runs(page.inputs.quantized)
    if long_runs is not None:
        parts.append(long_runs)
    if not ran:
        reason = next((check.where for _, check in found if check and check.where), "")
        if reason and page.inputs.bundle.manifest.parity:
            parts.append(note(f"verify did not run it: {reason}."))
            source = page.inputs.bundle.manifest.source.get("path", "")
            hub_or_name = source.rstrip("/").split("/")[-1] if source.startswith("/") else source
            command = f"ssm-export export {hub_or_name} -o {page.inputs.name}-full --parity full"
            missing.append(Missing(f"drift over {_STEPS} steps", command))
        else:
            missing.append(Missing(f"drift over {_STEPS} steps", page.command("verify")))
    body = join([*parts, not_measured(missing)])
    return Section("drift", "Drift", body, tuple(missing), empty=not parts)


def _drift(report: Verified) -> Check | None:
    return next((check for check in report.checks if check.name == "drift"), None)


def _curve(report: Verified, check: Check) -> Markup:
    steps = check.curve[-1][0] if check.curve else _STEPS
    gate = check.tolerance
    ends = f"{numbers.error(check.worst)} after {numbers.count(steps)} tokens"
    verdict = "within" if check.status == "passed" else "BEYOND"
    says = (
        f"Against float64 the worst error is {ends}, relative L2: {verdict} the gate of "
        f"{numbers.error(gate)}. It is that of {check.where}."
    )
    title = f"against float64: {ends}, {check.where}"
    end = Series("against float64", (Point(steps, check.worst, title),), 1, curve=False)
    series = [end]
    if check.curve:
        says += (
            " On the way there the steps are compared with a prefill of as many tokens, which "
            "the truth knows nothing of: a line that climbs steadily would be drift."
        )
        if any(error == 0 for _, error, _ in check.curve):
            says += " Errors of exactly 0 stand at the foot, apart from the logarithmic axis."
        way = tuple(
            Point(count, error, f"{numbers.count(count)} steps: {numbers.error(error)}, {tensor}")
            for count, error, tensor in check.curve
        )
        series.insert(0, Series("steps against a prefill", way, 0))
    rules = [Rule(gate, "gate")] if gate else []
    label = f"Relative error of the states and logits over the number of steps. {says}"
    x, y = Axis("steps", log=True), Axis("relative L2 error, worst tensor", log=True)
    plot = lines(label, x, y, series, rules)
    rows = tuple(
        (numbers.count(count), numbers.error(error), code(tensor))
        for count, error, tensor in check.curve
    )
    last = (f"{numbers.count(steps)}, float64", numbers.error(check.worst), check.where)
    columns = ("steps>", "error>", "worst tensor")
    table = Table(columns, (*rows, last)).markup("Drift")
    return figure(f"Drift of decoding on {report.runner}", says, plot, table)


def _long_runs(quantized: Members | None) -> Markup | None:
    if quantized is None:
        return None
    drift = quantized.child("drift")
    rows: list[tuple[Child, ...]] = []
    for name in drift.names():
        for point in drift.objects(name):
            steps = numbers.count(point.whole("steps", 0))
            if "reason" in point:
                rows.append((name, steps, "not run", numbers.NONE, point.text("reason")))
            else:
                errors = (point.number("state_error"), point.number("logits_error"))
                shown = [numbers.error(value) for value in errors]
                rows.append((name, steps, *shown, point.text("state", "")))
    if not rows:
        return None
    says = "The quantized model beside the float one over long generations, measured by quantize."
    columns = ("what", "steps>", "states>", "logits>", "worst state, or why not")
    table = Table(columns, tuple(rows)).markup("Drift of the quantized model, relative L2")
    return figure("Long generations of the quantized model", says, None, table)
