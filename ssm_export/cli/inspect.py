"""``ssm-export inspect PATH``."""

from __future__ import annotations

import click

from ssm_export.cli.common import Job, Result, verb


@verb("inspect")
@click.argument("path")
def command(job: Job, path: str) -> Result:
    """Say what a bundle, graph, engine, .ssmk file or checkpoint holds, without reading weights."""
    from ssm_export import api

    report = api.inspect(path)
    return Result(report.as_json(), report.table)
