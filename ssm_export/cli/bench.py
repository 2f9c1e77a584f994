"""``ssm-export bench BUNDLE``."""

from __future__ import annotations

from typing import Any

import click

from ssm_export.cli.common import POSITIVE, Integers, Job, Result, verb
from ssm_export.cli.options import lowering, runner


class Depths(click.ParamType):
    """Whole numbers with commas between them, zero among them: ``0,1024``."""

    name = "N[,N…]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        try:
            numbers = tuple(int(part) for part in ([parts] if isinstance(parts, int) else parts))
        except (TypeError, ValueError):
            self.fail(f"'{value}' is no list of whole numbers such as 0,1024.", param, ctx)
        if not numbers or min(numbers) < 0:
            self.fail(f"'{value}' has a number below 0.", param, ctx)
        return numbers


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
@click.option(
    "--depth",
    type=Depths(),
    default="0",
    show_default=True,
    help="Tokens in the state when decoding begins.",
)
@click.option("--batch", type=Integers(), default="1", show_default=True, help="Batch sizes.")
@click.option("--threads", type=POSITIVE, help="CPU threads; the runtime's choice when left out.")
@click.option(
    "--repetitions", type=POSITIVE, help="Of each row; 10, or more of short ones, when left out."
)
@click.option(
    "--cuda-graph",
    type=click.Choice(["on", "off", "both"]),
    help="Decode in a CUDA graph; as the runner does when left out.",
)
@click.option(
    "--target", help="Hold the rows against its predicted ceiling; this machine's when left out."
)
@click.option(
    "--output",
    "outputs",
    metavar="FILE",
    multiple=True,
    help="Write the report to FILE.md, FILE.csv or FILE.json too. Repeatable.",
)
@click.option(
    "--baseline",
    metavar="FILE.json",
    help="Compare with an earlier report, which is left as it is; exit status 1 when a row is "
    "slower beyond the noise, or may be by more than 10 % in a noisy run.",
)
def command(job: Job, bundle: str, **options: Any) -> Result:
    """Measure prefill, first token and decode of BUNDLE, which must pass verify.

    Power, clocks and temperatures are sampled beside it: with tegrastats on a Jetson, with
    nvidia-smi where a GPU runs the bundle, from the energy counters of a CPU. Energy per token is
    of the whole device, idle power included; for it every row runs alone for some seconds more.
    """
    from ssm_export import api
    from ssm_export.benchmarking.comparison import cannot_tell, slower_error
    from ssm_export.cli.running import say

    report = api.bench(bundle, progress=job.progress, **options)
    slower = None if report.ok or report.comparison is None else report.comparison
    failure = None if slower is None else slower_error(slower, bundle)
    if failure is None:  # also where no table is shown: PASSED alone would say that all is well
        for line in cannot_tell(report.comparison):
            say(line)
    return Result(report.as_json(), report.table, failure)
