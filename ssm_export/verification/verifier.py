"""Run the checks on a bundle and say whether its graphs compute what the reference computes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence

from ssm_export import errors
from ssm_export.bundle import Bundle, write_atomically
from ssm_export.engines.runner import Recurrent, Runner
from ssm_export.errors import SsmExportError
from ssm_export.progress import SILENT, Progress
from ssm_export.verification.checks import CHECKS
from ssm_export.verification.checks.simulation import codes
from ssm_export.verification.context import Context, Outcome
from ssm_export.verification.locate import first_departure, layer_table, worst_outputs
from ssm_export.verification.measure import Measurement
from ssm_export.verification.opening import opened
from ssm_export.verification.reference import Reference
from ssm_export.verification.report import FAILED, NOT_RUN, PASSED, CheckResult, VerifyReport
from ssm_export.verification.truth import Asked, NotRun, Recorded, Truth

REPORT = "reports/verify.json"
"""Where the last report lies in a bundle."""
AGAINST = ("parity", "torch", "transformers")


def verify(
    bundle: Bundle | str | os.PathLike[str],
    *,
    runner: str | Runner = "onnxruntime",
    lowering: str | None = None,
    against: str = "parity",
    reference: Reference | None = None,
    checks: Sequence[str] | None = None,
    bisect: bool = False,
    save: bool = True,
    progress: Progress = SILENT,
) -> VerifyReport:
    """Hold a bundle's graphs against the truth.

    Args:
        bundle: an open bundle or its folder.
        runner: name of a runtime, or a runner that has loaded this bundle already.
        lowering: which graphs; the bundle's default when None.
        against: ``parity`` for the recorded vectors, which need no torch; otherwise the name of
            what ``reference`` is.
        reference: the model to compare with, for everything but ``parity``.
        checks: names from :data:`CHECKS`; all of them when None.
        bisect: add the error of every layer to the report.
        save: write ``reports/verify.json``, and the worst errors into the manifest when it passes.
        progress: shows how far it is.

    Returns:
        The report; ``report.ok`` says whether it passed. A failed check is no exception.

    Raises:
        SsmExportError: ``BAD_OPTION`` for an unknown check or a missing reference, and whatever
            opening the bundle or the runner raises.
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle)
    names = _chosen(checks, bundle)
    truth = _truth(bundle, against, reference)
    began = time.perf_counter()
    with opened(bundle, runner, lowering) as loaded:
        model = Recurrent(bundle, loaded)
        context = Context(model, truth, progress)
        task = progress.task("verify", total=len(names))
        results: list[CheckResult] = []
        measured: dict[str, list[Measurement]] = {}
        for name in names:
            result, measured[name] = _run(name, context)
            results.append(result)
            task.advance()
        layers = layer_table(_for_bisect(context, results, measured)) if bisect else ()
        info = loaded.info
    report = VerifyReport(
        bundle=str(bundle.path),
        runner=info.name,
        device=info.device,
        lowering=info.lowering,
        versions=dict(info.versions),
        against=truth.name,
        precision=bundle.manifest.precision,
        state_dtype=bundle.manifest.state_dtype,
        files=graph_hashes(bundle, info.lowering),
        checks=tuple(results),
        layers=layers,
        outputs=worst_outputs([*measured.get("states", ()), *measured.get("logits", ())]),
        seconds=time.perf_counter() - began,
        measured=_worst_values(measured),
    )
    if save:
        save_report(bundle, report)
    return report


def graph_hashes(bundle: Bundle, lowering: str) -> dict[str, str]:
    """Path to SHA-256 of the files that a runner of ``lowering`` loads."""
    manifest = bundle.manifest
    entries = [graphs[lowering] for graphs in manifest.graphs.values() if lowering in graphs]
    return {entry.path: entry.sha256 for entry in (*entries, manifest.weights)}


def save_report(bundle: Bundle, report: VerifyReport) -> None:
    """Write ``reports/verify.json``; the worst errors go to the manifest when all is well."""
    path = bundle.path / REPORT
    path.parent.mkdir(exist_ok=True)
    document = report.as_json()
    del document["bundle"]  # the report lies in it, and the folder may be moved
    write_atomically(path, json.dumps(document, indent=2) + "\n")
    if report.ok and report.against == "parity":
        prefix = f"{report.runner}/{report.lowering}"
        for name, worst in report.measured.items():
            bundle.manifest.measured[f"{prefix}/{name}"] = worst
        bundle.save()


def _chosen(checks: Sequence[str] | None, bundle: Bundle) -> list[str]:
    if checks is None:  # a float bundle has no codes to check
        quantized = bool(bundle.manifest.quantization)
        return [name for name in CHECKS if quantized or CHECKS[name] is not codes]
    for name in checks:
        if name not in CHECKS:
            raise SsmExportError(
                errors.BAD_OPTION,
                f"there is no check '{name}'",
                fix=f"one of: {', '.join(CHECKS)}",
            )
    return [name for name in CHECKS if name in checks]


def _truth(bundle: Bundle, against: str, reference: Reference | None) -> Truth:
    if against == "parity":
        return Recorded(bundle)
    if reference is None:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"verify against '{against}' needs that reference model",
            fix="pass reference=, or use --against parity",
        )
    return Asked(bundle, reference)


def _run(name: str, context: Context) -> tuple[CheckResult, list[Measurement]]:
    began = time.perf_counter()
    try:
        outcome: Outcome = CHECKS[name](context)
    except NotRun as reason:
        seconds = time.perf_counter() - began
        return CheckResult(name, NOT_RUN, where=str(reason), seconds=seconds), []
    found = outcome.measurements
    worst = max(found, key=lambda item: item.ratio)
    passed = all(item.ok for item in found)
    where = worst.where
    if worst.place is not None:
        at = worst.where if worst.place.tensor in worst.where else ""
        where = at or f"{worst.place.tensor}, {worst.where}"
    where = f"{where} ({worst.run})" if worst.place is not None else where
    if not passed:
        where = first_departure(found) or where
    result = CheckResult(
        name=name,
        status=PASSED if passed else FAILED,
        worst=worst.value,
        tolerance=worst.gate,
        measure=worst.measure,
        where=where,
        detail=outcome.detail,
        seconds=time.perf_counter() - began,
        curve=outcome.curve,
    )
    return result, found


def _worst_values(measured: dict[str, list[Measurement]]) -> dict[str, float]:
    worst: dict[str, float] = {}
    for check, found in measured.items():
        for item in found:
            key = f"{check} {item.measure}"
            worst[key] = max(worst.get(key, 0.0), item.value)
    return worst


def _for_bisect(
    context: Context, results: Sequence[CheckResult], measured: dict[str, list[Measurement]]
) -> list[Measurement]:
    """The measurements that the per-layer table is made of: states and logits against the truth
    when that fails or nothing does, otherwise those of the first check that fails."""
    failed = [
        result.name for result in results if result.status == FAILED and measured[result.name]
    ]
    per_layer = [name for name in failed if any(item.place is not None for item in measured[name])]
    if per_layer and not {"logits", "states"} & set(failed):
        return measured[per_layer[0]]
    for name in ("states", "logits"):
        if name not in measured:
            measured[name] = _run(name, context)[1]
    return [*measured["states"], *measured["logits"]]
