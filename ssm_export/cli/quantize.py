"""``ssm-export quantize BUNDLE -o BUNDLE``."""

from __future__ import annotations

from typing import Any

import click

from ssm_export.cli.common import POSITIVE, Job, Result, verb


@verb("quantize")
@click.argument("bundle")
@click.option("-o", "--output", required=True, metavar="BUNDLE", help="Folder to make.")
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    default="w8a16",
    show_default=True,
    help="A name of: ssm-export list recipes; or a YAML file of your own.",
)
@click.option(
    "--calibration",
    metavar="FILE",
    help="UTF-8 text, token ids (.json, .npy), recorded inputs (.npz), or a quantized bundle whose "
    "data and statistics are taken again. The model writes its own text when left out.",
)
@click.option(
    "--evaluation",
    metavar="FILE",
    help="Held-out data that the report is made from; the end of the calibration data when left "
    "out.",
)
@click.option(
    "--target",
    help="Refuse what this device cannot compute with, and predict its decode speed; a name of: "
    "ssm-export list targets.",
)
@click.option(
    "--state-dtype",
    type=click.Choice(["fp32", "fp16", "int8", "bf16"]),
    help="SSM states; the recipe's when left out. bf16 drifts and is refused.",
)
@click.option("--sequences", type=POSITIVE, help="Rows of calibration; the recipe's when left out.")
@click.option("--tokens", type=POSITIVE, help="Tokens of a row; the recipe's when left out.")
@click.option(
    "--ablation", is_flag=True, help="Measure the recipe with each of its steps left out, too."
)
@click.option(
    "--sensitivity/--no-sensitivity",
    default=None,
    help="Measure every tensor alone; done for small models when left out.",
)
@click.option(
    "--long-drift", is_flag=True, help="Decode 65 536 tokens for the drift, whatever it takes."
)
@click.option(
    "--verify/--no-verify",
    default=True,
    help="The graphs must pass, and no more be lost than the recipe allows, before the bundle "
    "appears.",
)
@click.option("--dry-run", is_flag=True, help="Show what would become of every tensor, write none.")
def command(job: Job, bundle: str, output: str, **options: Any) -> Result:
    """Make a quantized bundle from the float bundle BUNDLE, which is only read, and report what
    that gained and cost.

    \b
    ssm-export quantize build/demo -o build/demo-w8 --recipe w8a16
    ssm-export quantize build/demo -o build/demo-w4 --recipe w4a16 --calibration text.txt
    ssm-export quantize build/demo -o build/orin --recipe w8a8 --target jetson-agx-orin --dry-run
    """
    from ssm_export import api

    report = api.quantize(bundle, output, progress=job.progress, **options)
    # With --no-verify nothing is refused: the loss is in the report, beside the limit.
    return Result({**report.as_json(), "ok": True}, report.table)
