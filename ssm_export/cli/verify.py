"""``ssm-export verify BUNDLE``."""

from __future__ import annotations

from typing import Any

import click

from ssm_export.cli.common import Job, Result, verb
from ssm_export.cli.options import lowering, runner


@verb("verify")
@click.argument("bundle")
@runner
@lowering
@click.option(
    "--against",
    type=click.Choice(["parity", "torch", "transformers"]),
    default="parity",
    show_default=True,
    help="The recorded vectors, which need no torch; our torch model; transformers' model.",
)
@click.option("--checkpoint", metavar="FOLDER", help="Where the weights are, if they were moved.")
@click.option("--check", "checks", multiple=True, help="Run this check only. Repeatable.")
@click.option("--bisect", is_flag=True, help="Show the error of every layer.")
def command(job: Job, bundle: str, checks: tuple[str, ...], **options: Any) -> Result:
    """Hold the graphs of BUNDLE against the truth; exit status 1 when they do not compute it.

    Checks logits and every state, that steps and any split of a prompt give what prefill gives,
    drift over 4096 steps, 256 greedy tokens, and that batch rows keep to themselves.
    """
    from ssm_export import api, errors
    from ssm_export.errors import SsmExportError

    report = api.verify(bundle, checks=checks or None, progress=job.progress, **options)
    failure = None
    if not report.ok:
        failed = ", ".join(check.name for check in report.failures)
        failure = SsmExportError(
            errors.PARITY_FAILED,
            f"failed: {failed}" if failed else "no check could be run",
            where=bundle,
            why=report.failures[0].where if failed else "",
            fix="" if options["bisect"] else f"ssm-export verify {bundle} --bisect says where",
        )
    return Result(report.as_json(), report.table, failure)
