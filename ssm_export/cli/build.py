"""``ssm-export build BUNDLE``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ssm_export.cli.common import POSITIVE, Job, Result, verb

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ssm_export.engines.tensorrt import BuildReport


@verb("build")
@click.argument("bundle")
@click.option(
    "--target", default="rtx-any", show_default=True, help="A name of: ssm-export list targets."
)
@click.option(
    "--engine",
    type=click.Choice(["tensorrt-rtx", "tensorrt"]),
    help="The target's own when left out. TensorRT-RTX builds on machines without a GPU too.",
)
@click.option(
    "--lowering",
    type=click.Choice(["native", "plugin"]),
    help="Standard operators, or scans as nodes of our plugin library (TensorRT only, one engine "
    "for both graphs). Plugins where they can be had when left out.",
)
@click.option(
    "--max-batch", type=POSITIVE, default=8, show_default=True, help="Largest batch of the engine."
)
@click.option(
    "--max-chunk",
    type=POSITIVE,
    default=1024,
    show_default=True,
    help="Most tokens of one prefill; longer prompts are fed in pieces.",
)
@click.option(
    "--show-trtexec",
    is_flag=True,
    help="Build nothing; show the commands of NVIDIA's own tool that build the same engines.",
)
def command(job: Job, bundle: str, show_trtexec: bool, **options: Any) -> Result:
    """Build engines of both graphs into BUNDLE."""
    if show_trtexec:
        return _commands(bundle, options)
    from ssm_export import api

    report: Any = api.build(bundle, progress=job.progress, **options)
    return Result({"bundle": bundle, **report.as_json()}, lambda: _table(bundle, report))


def _commands(bundle: str, options: dict[str, Any]) -> Result:
    from ssm_export.bundle import Bundle
    from ssm_export.engines.tensorrt import trtexec_commands

    commands = trtexec_commands(Bundle.open(bundle), **options)
    return Result({"bundle": bundle, "commands": commands}, lambda: "\n".join(commands.values()))


def _table(bundle: str, report: BuildReport) -> RenderableType:
    from rich.console import Group

    from ssm_export.documents.tables import plain, size, table

    rows = [
        (
            entry.form,
            f"{report.seconds[entry.form]:.1f}",
            size(entry.file.bytes),
            plain(entry.file.path),
            plain(" ".join(next(iter(entry.versions.items()), ("", "")))),
            plain(entry.note),
        )
        for entry in report.engines
    ]
    columns = ("graph", "seconds>", "size>", "file!", "tied to", "")
    parts: list[RenderableType] = [
        table(f"{report.engine} engines for {report.target} in {bundle}", columns, rows)
    ]
    parts += [f"{form}: {plain(note)}" for form, notes in report.warnings.items() for note in notes]
    return Group(*parts)
