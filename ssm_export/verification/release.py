"""The check that a bundle must pass before it appears."""

from __future__ import annotations

from typing import Final

from ssm_export import errors
from ssm_export.bundle import Bundle
from ssm_export.engines import Runner, open_runner
from ssm_export.errors import SsmExportError
from ssm_export.progress import SILENT, Progress
from ssm_export.verification.opening import OneForm
from ssm_export.verification.report import VerifyReport
from ssm_export.verification.verifier import verify

LARGE_CHECKS: Final = ("logits", "states")
"""What is checked before a large bundle appears; the rest is for ``ssm-export verify``."""


def verify_or_refuse(
    bundle: Bundle, *, large: bool, progress: Progress = SILENT
) -> tuple[VerifyReport, tuple[str, ...]]:
    """Hold the graphs against the recorded vectors, in ONNX Runtime.

    A large bundle is run one graph at a time with little memory, which takes seconds a call, so
    only logits and states are checked: prefill, and prefill with the last token as a step.

    Returns:
        the report, and notes on what was left out.

    Raises:
        SsmExportError: ``PARITY_FAILED`` with the checks that fail and where they depart.
    """

    def load() -> Runner:
        return open_runner(bundle, "onnxruntime", low_memory=large)

    runner = OneForm(load) if large else load()
    try:
        few = LARGE_CHECKS + (("codes",) if bundle.manifest.quantization else ())
        checks = few if large else None
        report = verify(bundle, runner=runner, checks=checks, progress=progress)
    finally:
        runner.close()
    if not report.ok:
        worst = "; ".join(
            f"{check.name}: {check.worst:.1e}, allowed {check.tolerance:.1e} ({check.where})"
            for check in report.failures
        )
        raise SsmExportError(
            errors.PARITY_FAILED,
            worst,
            where=f"{bundle.manifest.family}, lowering {bundle.manifest.lowering['chosen']}",
            fix="make it with --no-verify, look closer with "
            "'ssm-export verify BUNDLE --bisect', and please report it",
        )
    if not large:
        return report, ()
    return report, (
        f"checked {', '.join(LARGE_CHECKS)}; the other checks: ssm-export verify BUNDLE",
    )
