"""The checks that a bundle must have passed before its speed means anything."""

from __future__ import annotations

import json
from typing import Any

from ssm_export import errors
from ssm_export.bundle import Bundle
from ssm_export.engines.runner import Runner
from ssm_export.errors import SsmExportError
from ssm_export.progress import Progress
from ssm_export.verification import QUICK, verify
from ssm_export.verification.verifier import REPORT, graph_hashes


def passed_checks(
    bundle: Bundle, runner: Runner, progress: Progress, anew: bool
) -> tuple[str, ...]:
    """The names of the checks that passed for these very files on this runner.

    Args:
        bundle: the bundle.
        runner: a runner that has loaded it.
        progress: shows how far the checks are.
        anew: run them although the bundle's last report shows them passed.

    Raises:
        SsmExportError: ``NOT_VERIFIED`` when one fails.
    """
    before = () if anew else _passed_before(bundle, runner)
    return before or _passes_now(bundle, runner, progress)


def _passed_before(bundle: Bundle, runner: Runner) -> tuple[str, ...]:
    try:
        saved: dict[str, Any] = json.loads((bundle.path / REPORT).read_text(encoding="utf-8"))
        passed = tuple(check["name"] for check in saved["checks"] if check["ok"] is True)
        same = (
            saved["ok"] is True
            and set(QUICK) <= set(passed)
            and saved["runner"] == runner.info.name
            and saved["lowering"] == runner.info.lowering
            and saved["runtime"] == runner.info.versions
            and saved["device"] == runner.info.device
            and saved["files"] == graph_hashes(bundle, runner.info.lowering)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return passed if same else ()


def _passes_now(bundle: Bundle, runner: Runner, progress: Progress) -> tuple[str, ...]:
    report = verify(bundle, runner=runner, checks=QUICK, save=False, progress=progress)
    if not all(check.ok for check in report.checks):
        reasons = [f"{check.name}: {check.where}" for check in report.checks if not check.ok]
        raise SsmExportError(
            errors.NOT_VERIFIED,
            f"no speed is given, since the checks do not pass on {report.runner}: "
            + "; ".join(reasons),
            where=str(bundle.path),
            fix=f"ssm-export verify {bundle.path} --runner {report.runner} --bisect",
        )
    return tuple(check.name for check in report.checks)
