"""The tables of ``inspect``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING, Any, Final

from ssm_export.documents.tables import plain, shape, size, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ssm_export.inspection.inspector import GraphFacts, InspectReport, StateFacts
    from ssm_export.inspection.packs import PackFacts

_ABOUT: Final = ("family", "precision", "state_dtype", "logits", "ragged", "verified", "note")
_MOST_OPS: Final = 8
_MOST_ROWS: Final = 12


def inspect_tables(report: InspectReport) -> RenderableType:
    """A tree of what there is to say, then a table of each list."""
    from rich.console import Group

    parts: list[RenderableType] = [_tree(report)]
    if quantized := report.facts.get("quantization"):
        parts.append(_quantized(quantized))
    if report.states:
        parts.append(_states(report.states))
    if report.graphs:
        parts.append(_graphs(report.graphs))
        if report.kind == "onnx":
            parts += [_types(report.graphs[0]), _ports(report.graphs[0])]
    if report.engines:
        parts.append(_engines(report))
    if report.packs:
        parts.append(_packs(report.packs))
    if report.parity.get("last_verify"):
        parts.append(_verify(report.parity["last_verify"]))
    if report.tensors.get("files"):
        files = [(plain(name), size(count)) for name, count in report.tensors["files"].items()]
        parts.append(table("Weights", ("file", "size>"), files))
    return Group(*parts)


def _tree(report: InspectReport) -> RenderableType:
    from rich.tree import Tree

    tree = Tree(f"[bold]{plain(report.path)}[/]  {report.kind}, {size(report.bytes)}")
    facts = report.facts
    for key in _ABOUT:
        if key in facts and facts[key] != "":
            tree.add(f"{key.replace('_', ' ')}: {plain(_word(facts[key]))}")
    for key in ("sizes", "config", "opsets"):
        if facts.get(key):
            tree.add(f"{key}: {plain(_pairs(facts[key]))}")
    if lowering := facts.get("lowering"):
        why = f" ({lowering['why']})" if lowering.get("why") else ""
        tree.add(f"lowering: {plain(str(lowering.get('chosen')) + why)}")
    if weights := facts.get("weights"):
        tree.add(f"weights: {plain(weights['path'])}, {size(weights['bytes'])}")
    if quantized := facts.get("quantization"):
        tree.add(f"quantization: {plain(_quantization(quantized))}")
    if report.packs:
        tree.add(f"compute capability: {', '.join(facts['compute_capabilities'])}")
        made = (f"ssm-export {m['ssm_export']}, Triton {m['triton']}" for m in facts["made"])
        tree.add(plain(f"made with: {'; '.join(made)}"))
    if "state_bytes_per_row" in facts:
        tree.add(f"state: {size(facts['state_bytes_per_row'])} per batch row")
    if parameters := report.tensors.get("parameters"):
        types = report.tensors["parameters_by_type"]
        tree.add(f"parameters: {parameters:,} ({_pairs(types)})")
    if vectors := report.parity.get("vectors"):
        said = ", ".join(f"{v['kind']} {v['batch']}×{v['tokens']}" for v in vectors)
        tree.add(f"recorded vectors: {said}")
    return tree


def _quantization(facts: Mapping[str, Any]) -> str:
    """One line: the recipe, the device, and what it cost."""
    words = [f"recipe {facts['recipe']}"]
    words += [f"for {facts['target']}"] if facts["target"] else []
    words.append(f"{facts['state_dtype']} states")
    if (lost := facts["lost_bits"]) is not None:
        words.append(f"{lost:+.4f} bits lost per byte or token on {facts['evaluated_on']}")
    return ", ".join(words)


def _quantized(facts: Mapping[str, Any]) -> RenderableType:
    """The formats of weights, with the bytes of codes and scales, and of inputs."""
    rows = [
        ("weights", plain(name), str(found["count"]), size(found["bytes"]))
        for name, found in facts["weights"].items()
    ]
    rows.append(("other weights and constants", "float", "", size(facts["left_float_bytes"])))
    rows += [("inputs", plain(name), str(count), "") for name, count in facts["inputs"].items()]
    if facts["rotated"]:
        rows.append(("inputs that are rotated", "", str(facts["rotated"]), ""))
    return table("Formats", ("", "format", "tensors>", "size>"), rows)


def _types(graph: GraphFacts) -> RenderableType:
    rows = [(kind, str(found.count), size(found.bytes)) for kind, found in graph.types.items()]
    return table("Weights and constants", ("type", "tensors>", "size>"), rows)


def _states(states: Sequence[StateFacts]) -> RenderableType:
    """Layers that have the same states share a line."""
    rows = []
    for kind in dict.fromkeys(state.kind for state in states):
        alike = sorted((s for s in states if s.kind == kind), key=lambda s: s.layer)
        for _, group in groupby(alike, key=lambda s: (s.shape, s.dtype)):
            same = list(group)
            first, last = same[0], same[-1]
            span = f"{first.layer}–{last.layer}" if len(same) > 1 else f"{first.layer}"
            pair = f"past_{kind}.* → present_{kind}.*" if len(same) > 1 else _pair(first)
            cells = (plain(pair), span, shape(first.shape), first.layout, first.dtype)
            rows.append((*cells, size(first.bytes_per_row), size(len(same) * first.bytes_per_row)))
    heads = ("state", "layers", "shape", "layout", "type", "per layer>", "together>")
    return table("States, bytes of one batch row", heads, rows)


def _pair(state: StateFacts) -> str:
    return f"{state.name_in} → {state.name_out}"


def _graphs(graphs: Sequence[GraphFacts]) -> RenderableType:
    rows = []
    for graph in graphs:
        listed = list(graph.nodes.items())
        ops = [f"{op.removeprefix('ai.onnx::')} {count}" for op, count in listed[:_MOST_OPS]]
        more = f", … {len(listed) - _MOST_OPS} more" if len(listed) > _MOST_OPS else ""
        rows.append(
            (
                plain(graph.path),
                size(graph.bytes),
                str(graph.node_count),
                str(len(graph.functions)),
                _pairs(graph.opsets),
                ", ".join(f"{plain(k)} {size(v)}" for k, v in graph.external.items()) or "–",
                plain(", ".join(ops) + more),
            )
        )
    heads = ("graph", "size>", "nodes>", "functions>", "opsets", "external weights", "operators")
    return table("Graphs", heads, rows)


def _ports(graph: GraphFacts) -> RenderableType:
    named = [("in", *item) for item in graph.inputs.items()]
    named += [("out", *item) for item in graph.outputs.items()]
    rows = [(side, plain(name), plain(kind)) for side, name, kind in named]
    if len(rows) > 2 * _MOST_ROWS:
        hidden = len(rows) - 2 * _MOST_ROWS
        rows = [*rows[:_MOST_ROWS], ("…", f"{hidden} more", ""), *rows[-_MOST_ROWS:]]
    return table("Inputs and outputs", ("", "name!", "type"), rows)


def _engines(report: InspectReport) -> RenderableType:
    rows = [
        (
            engine.form,
            plain(engine.target),
            plain(engine.engine),
            size(engine.file.bytes),
            _pairs(engine.versions),
            plain(f"{engine.platform} {engine.compute_capability}"),
            "ran" if engine.ran else plain(engine.note or "not run"),
        )
        for engine in report.engines
    ]
    heads = ("form", "target!", "engine!", "size>", "versions", "platform", "")
    return table("Engines", heads, rows)


def _packs(packs: Sequence[PackFacts]) -> RenderableType:
    rows: list[tuple[str, ...]] = []
    for pack in packs:
        calls = [f"{pack.op} {pack.version}", f"  {next(iter(pack.inputs.values()))}"]
        for call, image in zip_longest(calls, pack.images, fillvalue=None):
            cells: tuple[str, ...] = ("",) * 6
            if image is not None:
                numbers = (image.registers, image.shared, image.threads)
                chip = f"{image.compute_capability} {image.kind}"
                cells = (plain(image.name), chip, *map(str, numbers), size(image.bytes))
            rows.append((plain(call or ""), *cells))
    heads = ("operator, first input", "kernel!", "chip!", "registers>", "shared>", "threads>")
    return table("Kernels", (*heads, "size>"), rows)


def _verify(last: Mapping[str, Any]) -> RenderableType:
    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.2e}"

    rows = [
        (plain(c["name"]), plain(c["status"]), number(c["worst"]), number(c["tolerance"]))
        for c in last["checks"]
    ]
    title = f"Last verify: {last['runner']}, {last['lowering']} graphs, against {last['against']}"
    return table(title, ("check", "", "worst>", "gate>"), rows)


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_word(value)}" for key, value in values.items())


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
