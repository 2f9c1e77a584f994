"""What was exported from what, and with which options."""

from __future__ import annotations

from ssm_export.bundle import Bundle, Manifest
from ssm_export.html_report import numbers
from ssm_export.html_report.markup import Child, Markup, element, join
from ssm_export.html_report.reading import base_names
from ssm_export.html_report.sections.section import (
    Page,
    Section,
    Table,
    code,
    facts,
    figure,
    paragraph,
)

_LETTERS = {
    "V": "vocabulary",
    "M": "width of the residual stream",
    "L": "layers",
    "D": "inner channels",
    "N": "state size",
    "K": "convolution taps",
    "H": "heads",
    "P": "head width",
    "G": "groups",
    "R": "rank of Δ",
}


def section(page: Page) -> Section:
    """Source, sizes, graphs, states and options."""
    manifest = page.inputs.bundle.manifest
    source = base_names(manifest.source.get("path", ""))
    sizes = ", ".join(
        f"{_LETTERS.get(letter, letter)} {numbers.count(value)}"
        for letter, value in manifest.sizes.items()
        if letter != "parameters"
    )
    rows: list[tuple[Child, Child]] = [
        ("checkpoint", f"{source} ({manifest.source.get('layout', '')} layout)"),
        ("its weights", _hash(manifest.source.get("weights_sha256", ""))),
        ("model family", manifest.family),
        ("parameters", numbers.count(manifest.sizes.get("parameters"))),
        ("sizes", sizes),
        ("weights and activations", manifest.precision),
        ("SSM state", manifest.state_dtype),
        ("logits", f"{manifest.logits} positions" if manifest.logits == "all" else "last position"),
        ("right-padded batches", "exact (sequence_lengths)" if manifest.ragged else "not taken"),
        ("made", manifest.created),
    ]
    lowering = manifest.lowering
    chosen = str(lowering.get("chosen", ""))
    because = base_names(str(lowering.get("why", "")))
    parts = [
        paragraph(
            "The bundle holds two graphs of one model – ",
            element("em", "prefill"),
            " for a prompt of any length, ",
            element("em", "step"),
            " for one token – over one file of weights, and float64 truth to check them with.",
        ),
        element(
            "div",
            figure("Checkpoint and model", "", None, facts("Checkpoint and model", rows)),
            figure("Graphs and files", _lowering(chosen, because), None, _files(manifest)),
            class_="columns",
        ),
        _states(page.inputs.bundle),
        _options(page),
    ]
    return Section("source", "What was exported from what", join(parts))


def _hash(digest: str) -> Markup:
    return element("code", f"{digest[:16]}…" if len(digest) > 16 else digest, title=digest)


def _lowering(chosen: str, because: str) -> Markup:
    why = f": {because}." if because else "."
    return join(["Runners take the ", code(chosen or "native"), " graphs", why])


def _files(manifest: Manifest) -> Markup:
    rows: list[tuple[Child, ...]] = [
        (code(entry.path), f"{form}, {lowering}", numbers.size(entry.bytes))
        for form, graphs in manifest.graphs.items()
        for lowering, entry in graphs.items()
    ]
    rows.append((code(manifest.weights.path), "weights", numbers.size(manifest.weights.bytes)))
    rows += [
        (code(entry.path), f"weights, {lowering}", numbers.size(entry.bytes))
        for lowering, entry in manifest.packed_weights.items()
    ]
    rows += [
        (
            code(entry.file.path),
            f"truth: {entry.kind}, {entry.batch} × {entry.tokens} tokens",
            numbers.size(entry.file.bytes),
        )
        for entry in manifest.parity
    ]
    rows += [
        (
            code(entry.file.path),
            f"{entry.engine} engine, {entry.form}, {entry.target}, "
            + ("has run" if entry.ran else "has not been run"),
            numbers.size(entry.file.bytes),
        )
        for entry in manifest.engines
    ]
    return Table(("file", "what", "size>"), tuple(rows)).markup("Files of the bundle")


def _states(bundle: Bundle) -> Markup:
    states = bundle.manifest.states
    kinds: dict[tuple[str, str, str, str], list[int]] = {}
    for state in states:
        shape = " × ".join(str(size) for size in state.shape)
        key = (state.kind, shape, state.dtype, state.layout)
        kinds.setdefault(key, []).append(state.bytes_per_row)
    rows = tuple(
        (kind, numbers.count(len(sizes)), shape, layout, dtype, numbers.size(sum(sizes)))
        for (kind, shape, dtype, layout), sizes in kinds.items()
    )
    total = sum(state.bytes_per_row for state in states)
    says = (
        f"The recurrence remembers {numbers.size(total)} for each stream, however long it gets; "
        "it goes in as past and comes out as present."
    )
    columns = ("kind", "layers>", "shape", "axes", "type", "bytes of a row>")
    return figure("States", says, None, Table(columns, rows).markup("States of the model"))


def _options(page: Page) -> Markup:
    if not page.inputs.config:
        return join(())
    rows = tuple((f"{verb} · {name}", value) for verb, name, value in page.inputs.config)
    table = Table(("option", "value"), rows).markup("Options as used")
    says = "As recorded in effective_config.yaml; folders are cut to their names."
    return figure("Options as used", says, None, table)
