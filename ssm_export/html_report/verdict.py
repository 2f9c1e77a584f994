"""The verdict at the head of the page, and the figures that matter most."""

from __future__ import annotations

from dataclasses import dataclass

from ssm_export.html_report import numbers
from ssm_export.html_report.doubts import Doubt, doubts_of
from ssm_export.html_report.inputs import Benched, Inputs, Row, Verified
from ssm_export.html_report.sections.quantization import loss_of
from ssm_export.html_report.sections.section import Page, join_words


@dataclass(frozen=True)
class Verdict:
    """``passed``, ``failed`` or ``not verified``, and why in a sentence."""

    state: str
    why: str


@dataclass(frozen=True)
class Tile:
    """A key figure: its name, its number, what it is of, and what speaks against it."""

    name: str
    number: str
    of: str
    predicted: bool = False
    doubts: tuple[Doubt, ...] = ()


def verdict_of(inputs: Inputs) -> Verdict:
    """Failed where any report of verify failed; passed where one passed, for these very files."""
    if inputs.changed:
        return Verdict(
            "not verified", f"The files are not the ones that were verified: {inputs.changed}."
        )
    failed = [report for report in inputs.verified if not report.ok]
    if failed:
        checks = [check.name for check in failed[0].checks if check.status == "failed"]
        names = join_words(checks) or "no check could be run"
        return Verdict("failed", f"verify on {failed[0].runner} did not pass: {names}.")
    current = [report for report in inputs.verified if _is_current(inputs, report)]
    if inputs.verified and not current:
        return Verdict(
            "not verified",
            "The reports of verify are of other graphs or weights than the ones that are here now.",
        )
    if not current:
        return Verdict("not verified", "There is no report of verify that can be read.")
    report = current[0]
    ran = [check for check in report.checks if check.status == "passed"]
    left = [check.name for check in report.checks if check.status != "passed"]
    rest = f"; not run: {join_words(left)}" if left else ""
    runners = join_words([f"{one.runner} ({one.device})" for one in current])
    return Verdict(
        "passed",
        f"{len(ran)} checks against {report.against} passed on {runners}{rest}.",
    )


def _is_current(inputs: Inputs, report: Verified) -> bool:
    """Whether a report of verify is about files that the manifest holds now."""
    manifest = inputs.bundle.manifest
    entries = [entry for graphs in manifest.graphs.values() for entry in graphs.values()]
    now = {entry.path: entry.sha256 for entry in (*entries, manifest.weights)}
    now |= {entry.path: entry.sha256 for entry in manifest.packed_weights.values()}
    now |= {engine.file.path: engine.file.sha256 for engine in manifest.engines}
    return bool(report.files) and all(now.get(k) == v for k, v in report.files.items())


def tiles_of(page: Page) -> list[Tile]:
    """The key figures that are known."""
    inputs = page.inputs
    manifest = inputs.bundle.manifest
    tiles = []
    if "parameters" in manifest.sizes:
        count = f"{numbers.prefixed(manifest.sizes['parameters'])}".strip()
        layers = manifest.sizes.get("L")
        of = f"{manifest.family}, {layers} layers" if layers else manifest.family
        tiles.append(Tile("parameters", count, of))
    scheme = manifest.quantization.get("recipe")
    kind = f"{scheme}, " if scheme else ""
    of = f"{kind}{manifest.precision}, state {manifest.state_dtype}"
    tiles.append(Tile("weights", numbers.size(manifest.weights.bytes), of))
    per_row = sum(state.bytes_per_row for state in manifest.states)
    tiles.append(Tile("state of a stream", numbers.size(per_row), "at any length"))
    tiles += _speed(inputs)
    tiles += _errors(inputs)
    tiles += _ceiling(page)
    return tiles


def _speed(inputs: Inputs) -> list[Tile]:
    tiles = []
    weights = inputs.bundle.manifest.weights.sha256
    for phase in ("decode", "prefill"):
        found = _fastest(inputs, phase)
        if found is None:
            continue
        report, row = found
        of = f"{numbers.count(row.tokens)} tokens"
        if phase == "decode":
            at = f" after {numbers.count(row.depth)} others" if row.depth else ""
            of = f"{numbers.milliseconds(row.p50_ms)} a token{at}"
        graph = ", CUDA graph" if row.cuda_graph else ""
        tiles.append(
            Tile(
                f"{phase}, batch 1",
                f"{numbers.rate(row.tokens_per_s)} tok/s",
                f"{of}, {report.place}{graph}",
                doubts=doubts_of(report, weights),
            )
        )
    return tiles


def _fastest(inputs: Inputs, phase: str) -> tuple[Benched, Row] | None:
    found = [
        (report, row)
        for report in inputs.benched
        for row in report.rows
        if row.phase == phase and row.batch == 1 and row.tokens_per_s
    ]
    # Decoding behind a prompt is a question of its own: the plain one is at depth 0.
    plain = [pair for pair in found if not pair[1].depth]
    return max(plain or found, key=lambda pair: pair[1].tokens_per_s or 0.0, default=None)


def _errors(inputs: Inputs) -> list[Tile]:
    tiles = []
    shares = [
        (check.share, check.name)
        for report in inputs.verified
        for check in report.checks
        if check.status == "passed" and check.share is not None
    ]
    if shares and all(report.ok for report in inputs.verified):
        share, name = max(shares)
        tiles.append(Tile("nearest to a gate", numbers.percent(share, 2), f"of the gate: {name}"))
    drifts = [
        check.worst
        for report in inputs.verified
        for check in report.checks
        if check.name == "drift" and check.worst is not None
    ]
    if drifts:
        tiles.append(Tile("drift", numbers.power(max(drifts)), "relative L2 after 4096 steps"))
    if inputs.quantized is not None:
        loss = loss_of(inputs.quantized)
        if loss is not None:
            tiles.append(Tile(loss.name, numbers.power(loss.bits), loss.of))
    return tiles


def _ceiling(page: Page) -> list[Tile]:
    for one in page.predictions:
        if one.batch == 1 and one.decode_tokens_per_s is not None:
            rate = f"≤\u00a0{numbers.rate(one.decode_tokens_per_s)} tok/s"
            return [Tile("decode ceiling", rate, f"predicted for {one.target}", predicted=True)]
    return []
