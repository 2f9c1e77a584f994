"""``ssm-export export CHECKPOINT -o BUNDLE``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ssm_export.cli.common import Facts, Job, Result, verb

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ssm_export.exporter import ExportReport


@verb("export")
@click.argument("checkpoint")
@click.option("-o", "--output", required=True, metavar="BUNDLE", help="Folder to make.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "fp16", "bf16"]),
    default="auto",
    show_default=True,
    help="Weights and activations; scans are always computed in fp32. auto: fp16 for a --target, "
    "fp32 without one.",
)
@click.option(
    "--state-dtype",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    default="fp32",
    show_default=True,
    help="SSM states. bf16 drifts and is refused.",
)
@click.option(
    "--lowering",
    type=click.Choice(["auto", "canonical", "native", "ort", "plugin"]),
    default="auto",
    show_default=True,
    help="Graphs that runners take by default; auto measures which is fastest here. plugin adds "
    "the graph for TensorRT, with kernels compiled for --target; auto adds it too where the target "
    "builds with TensorRT and Triton is installed (seconds to a minute, once for each chip).",
)
@click.option(
    "--target",
    help="The device it is for, by a name of: ssm-export list targets. Chooses precision and "
    "kernels, predicts memory and speed, and refuses a model that cannot fit.",
)
@click.option("--ragged/--no-ragged", default=False, help="Take right-padded batches.")
@click.option(
    "--logits",
    type=click.Choice(["last", "all"]),
    default="last",
    show_default=True,
    help="Positions that prefill gives logits of.",
)
@click.option(
    "--parity",
    type=click.Choice(["auto", "quick", "full"]),
    default="auto",
    show_default=True,
    help="How much is recorded from the reference for later checks.",
)
@click.option(
    "--verify/--no-verify", default=True, help="The graphs must pass before the bundle appears."
)
@click.option("--dry-run", is_flag=True, help="Check checkpoint and options, write nothing.")
def command(job: Job, checkpoint: str, output: str, **options: Any) -> Result:
    """Make a verified bundle from CHECKPOINT: a folder that transformers or mamba_ssm saved, or a
    hub id.

    \b
    ssm-export export samples/train_demo/mamba-bytes -o build/demo
    ssm-export export state-spaces/mamba-130m -o build/mamba --precision fp16
    """
    from ssm_export import api

    report = api.export(checkpoint, output, progress=job.progress, **options)
    return Result(report.as_json(), lambda: _table(report))


def _table(report: ExportReport) -> RenderableType:
    from rich.console import Group

    from ssm_export.documents.tables import size

    plan = report.plan
    target = plan["options"]["target"]
    kernels = (
        [("kernels", f"compiled for {target}, as TensorRT plugins")] if plan["kernels"] else []
    )
    rows = [
        ("checkpoint", f"{plan['source']} ({plan['layout']} layout)"),
        ("family", f"{plan['family']}, {plan['parameters']:,} parameters"),
        ("precision", f"{plan['options']['precision']}, states {plan['options']['state_dtype']}"),
        ("weights", size(plan["weights_bytes"])),
        ("state", f"{size(plan['state_bytes_per_row'])} for each row of a batch"),
        *kernels,
        *(report.prediction.rows() if report.prediction else ()),
        *(("note", note) for note in report.notes),
    ]
    title = f"bundle {report.bundle}" if report.bundle else "dry run: nothing was written"
    facts = Facts(title, tuple(rows)).table()
    return Group(facts, report.verification.table()) if report.verification else facts
