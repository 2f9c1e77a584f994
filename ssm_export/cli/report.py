"""``ssm-export report BUNDLE``."""

from __future__ import annotations

import click

from ssm_export.cli.common import Job, Result, verb


@verb("report")
@click.argument("bundle")
@click.option(
    "-o",
    "--output",
    metavar="FILE.html",
    help="The file to write; reports/report.html of the bundle when left out.",
)
@click.option(
    "--target",
    help="Device of the roofline and of predictions; the one that was benched when left out.",
)
def command(job: Job, bundle: str, output: str | None, target: str | None) -> Result:
    """Make one HTML file of everything that BUNDLE and its reports say.

    Parity, drift, latency, roofline, memory and quantization, with plots. The file needs no
    network. What was not measured is said with the command that measures it.
    """
    from ssm_export import api, errors
    from ssm_export.errors import SsmExportError

    report = api.report(bundle, output, target)
    failure = None
    if not report.ok:
        named = "; ".join(f"{file}: {why}" for file, why in sorted(report.unreadable.items()))
        failure = SsmExportError(
            errors.BAD_REPORT,
            f"the page was made without what cannot be read: {named}",
            where=bundle,
            fix="run the verb that wrote it again (verify, bench, quantize), or remove the file",
        )
    return Result(report.as_json(), report.table, failure)
