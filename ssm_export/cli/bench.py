"""``ssm-export bench BUNDLE``."""

from __future__ import annotations

from typing import Any

import click

from ssm_export.cli.common import POSITIVE, Integers, Job, Result, verb
from ssm_export.cli.options import lowering, runner


@verb("bench")
@click.argument("bundle")
@runner
@lowering
@click.option(
    "--prefill", type=Integers(), default="128,1024", show_default=True, help="Prompt lengths."
)
@click.option(
    "--decode", type=POSITIVE, default=64, show_default=True, help="Tokens decoded one by one."
)
@click.option("--batch", type=Integers(), default="1", show_default=True, help="Batch sizes.")
@click.option("--threads", type=POSITIVE, help="CPU threads; the runtime's choice when left out.")
def command(job: Job, bundle: str, **options: Any) -> Result:
    """Measure prefill and decode of BUNDLE. Refuses a bundle that does not pass verify."""
    from ssm_export import api

    report = api.bench(bundle, progress=job.progress, **options)
    return Result(report.as_json(), report.table)
