"""``ssm-export inspect PATH``."""

from __future__ import annotations

import click

from ssm_export.cli.common import Job, Result, verb


@verb("inspect")
@click.argument("path")
def command(job: Job, path: str) -> Result:
    """Say what a bundle, a graph, an engine or a checkpoint holds, without reading its weights."""
    from ssm_export import api

    report = api.inspect(path)
    return Result(report.as_json(), report.table)
