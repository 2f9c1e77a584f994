"""``ssm-export doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssm_export.cli.common import Job, Result, verb

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ssm_export.engines.doctor import DoctorReport


@verb("doctor")
def command(job: Job) -> Result:
    """Say what this machine can do: Python, packages, runtimes, GPU, memory.

    A probe that fails is a line of the answer. Exit status 3 when no runtime here can run a bundle.
    """
    from ssm_export import api, errors
    from ssm_export.errors import SsmExportError

    report = api.doctor()
    failure = None
    if not report.ok:
        failure = SsmExportError(
            errors.MISSING_PACKAGE,
            "no runtime on this machine can run a bundle",
            fix="pip install 'ssm-export[cpu]'",
        )
    return Result(report.as_json(), lambda: _table(report), failure)


def _table(report: DoctorReport) -> RenderableType:
    from ssm_export.documents.tables import plain, table

    rows = []
    group = ""
    for probe in report.probes:
        mark = "[green]yes[/]" if probe.ok else "[dim]no[/]"
        rows.append(
            (probe.group if probe.group != group else "", probe.name, mark, plain(probe.detail))
        )
        group = probe.group
    return table("this machine", ("", "what!", "", "found"), rows)
