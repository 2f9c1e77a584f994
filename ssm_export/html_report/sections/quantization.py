"""What quantizing gained and what it cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ssm_export.html_report import numbers
from ssm_export.html_report.markup import Child, Markup, element, join
from ssm_export.html_report.plots.lines import Axis, Point, Series, lines, whole_ticks
from ssm_export.html_report.plots.rows import Bar, bars
from ssm_export.html_report.plots.scale import Tick
from ssm_export.html_report.reading import Members, finite
from ssm_export.html_report.sections.section import (
    Missing,
    Page,
    Section,
    Table,
    code,
    figure,
    not_measured,
    note,
    paragraph,
    sentence,
)

_WORST = 12
"""Tensors that the plot of sensitivities has."""


@dataclass(frozen=True)
class Loss:
    """The number that the limit of a recipe holds.

    Attributes:
        name: what it is, with its unit.
        bits: of it.
        of: which of the two models it is of, and what is counted.
    """

    name: str
    bits: float
    of: str


def loss_of(report: Members) -> Loss | None:
    """The worse of the simulated model and the step graph; None where it is not finite.

    The step graph runs on few tokens and counts by its KL divergence, which does not depend on the
    tokens that happen to come next; without text the simulated model does so too.
    """
    bits, quality = report.number("lost_bits"), report.child("quality")
    if bits is None:
        return None
    of_steps, of_model = "", ""
    if "step_graph" in quality:
        of_steps, of_model = "; worse than the step graph", "; worse than the simulated model"
    model = quality.child("quantized")
    if _unit(report) == "token":
        simulated = model.number("kl_bits") == bits or not of_steps
        of = f"simulated{of_steps}" if simulated else f"step graph{of_model}"
        return Loss("KL, bits per token", bits, f"from the float model, {of}")
    simulated = model.number("lost_bits_per_byte") == bits or not of_steps
    steps = of_steps and f"{of_steps}, which counts by KL"
    of = f"simulated{steps}" if simulated else f"KL of the step graph{of_model}"
    return Loss("lost by quantizing, bits per byte", bits, of)


def section(page: Page) -> Section:
    """Sizes, loss, noise by layer, sensitivities, ablation, and chosen formats."""
    report = page.inputs.quantized
    quantized = page.inputs.bundle.manifest.quantization
    if report is None:
        if quantized:
            again = Missing("what quantizing cost", _again(page))
            return Section("quantization", "Quantization", not_measured([again]), (again,), True)
        name = page.inputs.name
        words = f"ssm-export quantize {name} -o {name}-w8a16 --recipe w8a16"
        body = paragraph("The bundle is not quantized. ", code(words), " would make one that is.")
        return Section("quantization", "Quantization", body, empty=True)
    missing: list[Missing] = []
    parts = [_summary(report), _sizes(report), _loss(report)]
    parts += [_noise(report)]
    if report.items("sensitivities"):
        parts.append(_sensitivities(report))
    else:
        missing.append(Missing("the sensitivity of each tensor", _again(page, "sensitivity=true")))
    if report.items("ablation"):
        parts.append(_ablation(report))
    else:
        missing.append(Missing("what each step of the recipe gains", _again(page, "ablation=true")))
    parts.append(_mixed(report))
    parts += [note(f"Note: {words}.") for words in map(str, report.items("notes"))]
    parts += [
        note(f"Not run: {one.text('what', '')} ({one.text('why', '')}).")
        for one in report.objects("not_run")
    ]
    parts.append(not_measured(missing))
    return Section("quantization", "Quantization", join(parts), tuple(missing))


def _again(page: Page, *settings: str) -> str:
    recipe = str(page.inputs.bundle.manifest.quantization.get("recipe", "w8a16"))
    report = page.inputs.quantized
    source = report.text("source", "") if report is not None else ""
    words = f"ssm-export quantize {source or 'FLOAT_BUNDLE'} -o {page.inputs.name}-again"
    options = "".join(f" --set quantize.{setting}" for setting in settings)
    return f"{words} --recipe {recipe}{options}"


def _unit(report: Members) -> str:
    in_bytes = report.child("quality").child("quantized").number("lost_bits_per_byte") is not None
    return "byte" if in_bytes else "token"


def _summary(report: Members) -> Markup:
    recipe = report.child("recipe")
    loss, limit = loss_of(report), report.number("limit_bits")
    words: list[Child] = [
        "Recipe ",
        element("strong", recipe.text("name", "")),
        f": {recipe.text('description', '')}. Measured on {report.text('evaluated_on', '')}. ",
    ]
    if limit is not None:
        within = loss is not None and loss.bits <= limit
        badge = element("span", "within" if within else "NOT WITHIN", class_=_good(within))
        if loss is None:
            words.append("What was lost is not finite: ")
        else:
            words.append(f"{sentence(loss.name)[:-1]}: {numbers.power(loss.bits)} ({loss.of}), ")
        words += [badge, f" the {limit:g} that it allows."]
    if "step_graph" not in report.child("quality"):
        return paragraph(*words)
    counted = (
        "The limit holds the worse of the simulated model and the step graph as it ships. The step "
        "graph counts by its KL divergence: it ran on few tokens, and of few tokens the bits lost "
        "say more about which token came next than about the model."
    )
    return join([paragraph(*words), note(counted)])


def _good(good: bool) -> str:
    return "badge good" if good else "badge bad"


def _sizes(report: Members) -> Markup:
    before, after = (report.child("size").child(name) for name in ("before", "after"))
    kinds = (
        ("weights_file", "weights file"),
        ("read_per_token", "weights read per token"),
        ("states_per_row", "states of a stream"),
    )
    plotted: list[Bar] = []
    rows: list[tuple[Child, ...]] = []
    for key, name in kinds:
        old, new = before.number(key), after.number(key)
        if old is None or new is None:
            continue
        for kind, value, colour in (("float", old, 0), ("quantized", new, 1)):
            title = f"{name}, {kind}: {numbers.size(value)}"
            plotted.append(Bar(f"{name}, {kind}", value, numbers.size(value), title, colour))
        change = f"× {numbers.significant(new / old)}" if old else numbers.NONE
        rows.append((name, numbers.size(old), numbers.size(new), change))
    ceiling = report.child("decode_ceiling")
    slow, fast = ceiling.number("before"), ceiling.number("after")
    if slow and fast:
        name = f"decode ceiling on {ceiling.text('target', '')}, tokens/s (predicted)"
        change = f"× {numbers.significant(fast / slow)}"
        rows.append((name, numbers.rate(slow), numbers.rate(fast), change))
    if not plotted:
        return join(())
    says = "What decoding has to read decides how fast it can be."
    plot = bars(f"Bytes before and after quantizing. {says}", "bytes", plotted)
    table = Table(("", "float>", "quantized>", "change>"), tuple(rows)).markup("Sizes")
    return figure("What it gains", says, plot, table)


def _loss(report: Members) -> Markup:
    quality = report.child("quality")
    base, made = quality.child("float"), quality.child("quantized")
    has_steps = "step_graph" in quality
    steps = quality.child("step_graph")
    unit = _unit(report)
    kinds = (
        (f"bits_per_{unit}", f"bits per {unit}"),
        (f"lost_bits_per_{unit}", f"bits lost per {unit}"),
        ("perplexity", "perplexity"),
        ("kl_bits", "KL from float, bits per token"),
        ("top1", "same likeliest token"),
        ("worst_kl_bits", "largest KL of one token, bits"),
        ("tokens", "tokens"),
    )
    rows: list[tuple[Child, ...]] = []
    for key, name in kinds:
        cells = [_quality(key, one) for one in (base, made)]
        rows.append((name, *cells, *([_quality(key, steps)] if has_steps else [])))
    plotted = []
    shown = [("simulated", made), *([("step graph", steps)] if has_steps else [])]
    for colour, (name, one) in enumerate(shown):
        for key, called in ((f"lost_bits_per_{unit}", f"bits lost per {unit}"), ("kl_bits", "KL")):
            value = one.number(key)
            shown_value = "not finite" if value is None else numbers.power(value)
            title = f"{called}, {name}: {shown_value}"
            plotted.append(Bar(f"{called}, {name}", value, shown_value, title, colour))
    limit = report.number("limit_bits")
    says = (
        "Bits are the cross entropy of the next token; KL is how far the distribution of tokens "
        "moved, in bits per token. The step graph was run as it ships, in a runner."
    )
    rule = (limit, f"limit {limit:g}") if limit is not None else None
    plot = bars(f"Bits that quantizing lost. {says}", "bits", plotted, rule)
    columns = ("", "float>", "simulated>", *(("step graph>",) if has_steps else ()))
    return figure("What it costs", says, plot, Table(columns, tuple(rows)).markup("Quality"))


def _quality(key: str, one: Members) -> str:
    value = one.number(key)
    if value is None:
        return numbers.NONE
    if key == "top1":
        return numbers.percent(value, 4)
    if key == "tokens":
        return numbers.count(value)
    return numbers.power(value) if "kl" in key or "lost" in key else numbers.significant(value, 5)


def _noise(report: Members) -> Markup:
    line = [finite(v) if isinstance(v, (int, float)) else None for v in report.items("snr_db")]
    if len(line) < 3 or all(value is None for value in line):
        return join(())
    last = len(line) - 1
    names = ["embedding", *(f"layer {index - 1}" for index in range(1, last)), "logits"]
    points = tuple(
        Point(index, value, f"after {name}: {_decibel(value)}")
        for index, (name, value) in enumerate(zip(names, line, strict=True))
        if value is not None
    )
    ticks = [Tick(0, "emb.")]
    ticks += [
        Tick(tick.value + 1, tick.label)
        for tick in whole_ticks(0, last - 2)
        if 0.06 * last < tick.value + 1 < 0.9 * last
    ]
    ticks.append(Tick(last, "logits"))
    says = (
        "Signal to noise of the residual stream after each layer, against the float model: higher "
        "is better, and a fall names the layer that costs."
    )
    series = [Series("signal to noise", points, 0)]
    label = f"Signal to noise by layer. {says}"
    plot = lines(label, Axis("after layer"), Axis("dB"), series, x_names=ticks)
    rows = tuple((name, _decibel(value)) for name, value in zip(names, line, strict=True))
    table = Table(("after", "signal to noise>"), rows).markup("Signal to noise by layer")
    return figure("Noise per layer", says, plot, table)


def _decibel(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f} dB"


def _sensitivities(report: Members) -> Markup:
    found = list(report.objects("sensitivities"))
    plotted = []
    rows: list[tuple[Child, ...]] = []
    for index, one in enumerate(found):
        site, what = one.text("site"), one.text("what", "")
        bits = one.number("kl_bits")
        shown = "not finite" if bits is None else numbers.power(bits)
        if index < _WORST:
            plotted.append(Bar(site, bits, shown, f"{site}, {what}: KL {shown} bits"))
        rows.append((code(site), what, shown, _decibel(one.number("snr_db"))))
    says = f"Each of {len(found)} tensors quantized alone, worst first: where more bits would pay."
    plot = bars(f"KL divergence of each tensor alone. {says}", "KL, bits per token", plotted)
    columns = ("tensor", "as", "KL bits>", "noise>")
    table = Table(columns, tuple(rows)).markup("Sensitivity of each tensor")
    return figure("Most sensitive tensors", says, plot, table)


def _ablation(report: Members) -> Markup:
    unit = _unit(report)
    plotted = []
    rows: list[tuple[Child, ...]] = []
    for one in report.objects("ablation"):
        variant = one.text("variant")
        lost = one.number(f"lost_bits_per_{unit}")
        kl = one.number("kl_bits")
        shown = "not finite" if kl is None else numbers.power(kl)
        plotted.append(Bar(variant, kl, shown, f"{variant}: KL {shown} bits per token"))
        bits = "not finite" if lost is None else numbers.power(lost)
        rows.append((variant, bits, shown, numbers.percent(one.number("top1"), 4)))
    says = "The recipe, and the recipe with one of its steps left out: what each step gains."
    plot = bars(f"KL divergence of each variant. {says}", "KL, bits per token", plotted)
    columns = ("recipe", f"bits lost per {unit}>", "KL bits>", "same token>")
    table = Table(columns, tuple(rows)).markup("Ablation")
    return figure("What each step gains", says, plot, table)


def _mixed(report: Members) -> Markup:
    if "mixed" not in report:
        return join(())
    mixed = report.child("mixed")
    rows: list[tuple[Child, ...]] = []
    counted: Counter[str] = Counter()
    for choice in mixed.objects("choices"):
        chosen = choice.child("chosen")
        stored = chosen.text("stored", "")
        counted[stored] += 1
        bits = chosen.number("kl_bits")
        size = numbers.size(chosen.number("bytes"))
        shown = numbers.NONE if bits is None else numbers.power(bits)
        rows.append((code(choice.text("site")), stored, size, shown, choice.text("why", "")))
    if not rows:
        return join(())
    formats = ", ".join(f"{count} × {name}" for name, count in sorted(counted.items()))
    says = f"Formats chosen under a budget of {mixed.text('budget', '')}: {formats}."
    columns = ("tensor", "as", "size>", "KL bits>", "why")
    return figure("Chosen formats", says, None, Table(columns, tuple(rows)).markup("Formats"))
