"""The tables of a quantize report, for a terminal of 100 columns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from ssm_export.documents import tables
from ssm_export.quantization.report import lost_bits_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ssm_export.quantization.evaluation import Quality
    from ssm_export.quantization.report import QuantizeReport

_MOST_SENSITIVE: Final = 10
_CHART_LINES: Final = 26
_CHOICES: Final = 12
_BAR: Final = 24
_NONE: Final = "–"
_EXACT: Final = "exact"


def tables_of(report: QuantizeReport) -> RenderableType:
    """Every table that the report has something for, and the notes."""
    from rich.console import Group

    makers: tuple[Callable[[QuantizeReport], Iterator[RenderableType]], ...] = (
        _summary,
        _noise,
        _sensitive,
        _ablation,
        _drift,
        _mixed,
        _notes,
    )
    return Group(*(part for maker in makers for part in maker(report)))


def _summary(report: QuantizeReport) -> Iterator[RenderableType]:
    from rich.text import Text

    sizes = (
        ("weights file", report.before.weights_file, report.after.weights_file),
        ("weights read per token", report.before.read_per_token, report.after.read_per_token),
        ("states of one row", report.before.states_per_row, report.after.states_per_row),
    )
    rows: list[tuple[str, ...]] = [
        (name, tables.size(before), tables.size(after), f"× {after / max(before, 1):.3f}", "")
        for name, before, after in sizes
    ]
    if (ceiling := report.ceiling) is not None:
        gain = f"× {ceiling.after / ceiling.before:.2f}"
        speeds = (f"{ceiling.before:,.0f}", f"{ceiling.after:,.0f}")
        rows.append(("decode ceiling, tokens/s (predicted)", *speeds, gain, ""))
    base, made, steps = report.float_quality, report.quality, report.step_quality
    ratio = f"× {made.perplexity / base.perplexity:.4f}"
    rows += [
        _bits_row("bits per byte", lambda q: (q.bits_per_byte, q.lost_bits_per_byte), report),
        _bits_row("bits per token", lambda q: (q.bits_per_token, q.lost_bits_per_token), report),
        ("perplexity", f"{base.perplexity:.3f}", f"{made.perplexity:.3f}", ratio, ""),
        ("KL from float, bits per token", "0", f"{made.kl_bits:.2e}", "", _exponent(steps)),
        ("same likeliest token", "100 %", _share(made), "", _share(steps)),
    ]
    name = str(report.recipe.get("name", ""))
    title = f"{name}: {report.recipe.get('description', '')}"
    heads = ("", "float>", "quantized>", "change>", "step graph>")
    yield tables.table(title, heads, rows)
    shipped = (
        "" if steps is None else f"; step graph: as shipped, in a runner, {steps.tokens} tokens"
    )
    lines = [
        f"measured on {base.tokens} tokens: {report.evaluated_on}",
        f"quantized: simulated in fp32{shipped}",
    ]
    at = f"row {made.worst_row}, token {made.worst_token}"
    lines.append(f"largest KL of one token {made.worst_kl_bits:.2e} bits ({at})")
    if ceiling is not None:
        lines.append(
            f"ceiling: a prediction for {ceiling.target} at batch 1, from the bytes above at "
            f"{ceiling.bandwidth_gb_s:g} GB/s; nothing was run there"
        )
    yield Text("\n".join(lines), style="dim")
    unit = "byte" if base.bits_per_byte is not None else "token"
    if report.limit_bits is not None:
        verdict = "within" if report.ok else "NOT WITHIN"
        what = "" if unit == "byte" else "KL from float "
        text = f"{what}{report.lost_bits:+.4f} bits per {unit}: {verdict} the "
        text += f"{report.limit_bits:g} "
        style = "green" if report.ok else "bold red"
        yield Text(f"{text}that the recipe allows", style=style)
    if report.limit_bits is not None and report.step_quality is not None:
        # Which of the two numbers it is cannot be told from the table alone.
        counted = "KL of the quantized model" if unit == "token" else "bits that the model lost"
        words = f"counted: the worse of {counted} and KL of the step graph, whose tokens are few"
        yield Text(words, style="dim")
    yield Text("")


def _bits_row(
    name: str,
    numbers: Callable[[Quality], tuple[float | None, float | None]],
    report: QuantizeReport,
) -> tuple[str, ...]:
    """Bits of both models and what was lost; of the step graph what it lost on its rows."""
    (base, _), (made, lost) = numbers(report.float_quality), numbers(report.quality)
    steps = None if report.step_quality is None else numbers(report.step_quality)[1]
    if base is None or made is None or lost is None:
        return (name, _NONE, _NONE, _NONE, _NONE)
    step_cell = _NONE if steps is None else f"{steps:+.4f}"
    return (name, f"{base:.4f}", f"{made:.4f}", f"{lost:+.4f}", step_cell)


def _noise(report: QuantizeReport) -> Iterator[RenderableType]:
    if len(report.snr_db) < 3:
        return
    embedding, *layers, logits = report.snr_db
    together = -(-len(layers) // (_CHART_LINES - 2))
    places = [("embedding", embedding)]
    for first in range(0, len(layers), together):
        part = layers[first : first + together]
        last = first + len(part) - 1
        name = f"layer {first}" if last == first else f"layers {first}–{last}, worst"
        places.append((name, min(part, key=lambda snr: -math.inf if math.isnan(snr) else snr)))
    places.append(("logits", logits))
    longest = max((snr for _, snr in places if math.isfinite(snr)), default=0.0)
    rows = [
        (name, _decibel(snr), tables.bar(longest if snr == math.inf else snr, longest, _BAR))
        for name, snr in places
    ]
    yield tables.table("Signal to noise of the residual stream after", ("", "dB>", ""), rows)


def _sensitive(report: QuantizeReport) -> Iterator[RenderableType]:
    worst = report.sensitivities[:_MOST_SENSITIVE]
    if not worst:
        return
    largest = max((s.kl_bits for s in worst if math.isfinite(s.kl_bits)), default=0.0)
    rows = [
        (
            tables.plain(s.site),
            tables.plain(s.what),
            f"{s.kl_bits:.1e}",
            _decibel(s.snr_db),
            tables.bar(s.kl_bits if math.isfinite(s.kl_bits) else largest, largest, 10),
        )
        for s in worst
    ]
    title = f"The {len(worst)} most sensitive of {len(report.sensitivities)}, each quantized alone"
    yield tables.table(title, ("tensor", "as", "KL bits>", "dB>", ""), rows)


def _ablation(report: QuantizeReport) -> Iterator[RenderableType]:
    if not report.ablation:
        return
    lost = [lost_bits_of(row.quality) for row in report.ablation]
    largest = max((bits for bits in lost if math.isfinite(bits)), default=0.0)
    rows = [
        (
            tables.plain(row.variant),
            f"{bits:+.4f}",
            f"{row.quality.kl_bits:.2e}",
            _share(row.quality),
            tables.bar(bits if math.isfinite(bits) else largest, largest, _BAR),
        )
        for row, bits in zip(report.ablation, lost, strict=True)
    ]
    unit = "byte" if report.float_quality.bits_per_byte is not None else "token"
    heads = ("recipe", f"bits per {unit} lost>", "KL bits>", "same token>", "")
    yield tables.table("What each step of the recipe gains", heads, rows)


def _drift(report: QuantizeReport) -> Iterator[RenderableType]:
    from ssm_export.quantization.drift import DriftPoint

    rows = []
    for name, points in report.drift.items():
        for point in points:
            head = (tables.plain(name), f"{point.steps:,}")
            if isinstance(point, DriftPoint):
                errors = (f"{point.state_error:.2e}", f"{point.logits_error:.2e}")
                rows.append((*head, *errors, tables.plain(point.state)))
            else:
                rows.append((*head, _NONE, _NONE, tables.plain(f"not run: {point.reason}")))
    if rows:
        heads = ("", "steps>", "state>", "logits>", "worst state")
        yield tables.table("Drift of long generations, relative L2", heads, rows)


def _mixed(report: QuantizeReport) -> Iterator[RenderableType]:
    from rich.text import Text

    if (mixed := report.mixed) is None:
        return
    counts = Counter(choice.chosen.stored for choice in mixed.choices)
    formats = ", ".join(f"{count} × {name}" for name, count in sorted(counts.items()))
    order = sorted(mixed.choices, key=lambda choice: (-choice.chosen.kl_bits, choice.site))
    rows = [
        (
            tables.plain(choice.site),
            choice.chosen.stored,
            tables.size(choice.chosen.bytes),
            f"{choice.chosen.kl_bits:.1e}",
            tables.plain(choice.why),
        )
        for choice in order[:_CHOICES]
    ]
    title = f"Chosen formats: {formats}"
    yield tables.table(title, ("tensor", "as!", "size>", "KL bits>", "why"), rows)
    more = len(order) - len(rows)
    lines = [
        f"budget: {mixed.budget}; weights are {mixed.share:.3f} × fp16",
        f"KL in bits: {mixed.predicted_kl:.2e} as the sum of all, {mixed.measured_kl:.2e} as run",
    ]
    lines += [f"chosen again after measuring: {mixed.repairs}"] if mixed.repairs else []
    lines += [f"{more} more are in the JSON report"] if more else []
    yield Text("\n".join(lines), style="dim")
    yield Text("")


def _notes(report: QuantizeReport) -> Iterator[RenderableType]:
    from rich.text import Text

    for note in report.notes:
        yield Text(f"note: {note}", style="yellow")
    for item in report.not_run:
        yield Text(f"not run: {item.what} ({item.why})", style="dim")


def _decibel(snr: float) -> str:
    return _EXACT if snr == math.inf else f"{snr:.1f}"


def _share(quality: Quality | None) -> str:
    return _NONE if quality is None else f"{100 * quality.top1:.2f} %"


def _exponent(quality: Quality | None) -> str:
    return _NONE if quality is None else f"{quality.kl_bits:.2e}"
