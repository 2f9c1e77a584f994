"""``ssm-export kernels BUNDLE|GRAPH.onnx``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ssm_export.cli.common import Job, Result, verb

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ssm_export.kernel_pack import KernelsReport


@verb("kernels")
@click.argument("path", metavar="BUNDLE|GRAPH.onnx")
@click.option("--target", required=True, help="A device, by a name of: ssm-export list targets.")
@click.option("-o", "--output", metavar="FILE.ssmk", help="Write the kernels to this file.")
@click.option("--ptx", is_flag=True, help="Add PTX, for later GPUs than the target's.")
def command(job: Job, path: str, **options: Any) -> Result:
    """Compile the GPU kernels that a bundle needs, for a device that need not be here.

    Shows what each kernel takes of the chip. `build --lowering plugin` compiles by itself.
    """
    from ssm_export import api

    report = api.kernels(path, progress=job.progress, **options)
    return Result(report.as_json(), lambda: _table(report))


def _table(report: KernelsReport) -> RenderableType:
    from rich.console import Group

    from ssm_export.documents.tables import plain, size, table

    rows: list[tuple[str, ...]] = []
    refused: list[str] = []
    for operator in report.operators:
        facts = operator.report
        about = (plain(facts["op"]), str(len(operator.nodes)))
        for kernel in facts["kernels"]:
            rows.append(
                (
                    *about,
                    plain(kernel["name"] + (" (PTX)" if kernel["kind"] == "ptx" else "")),
                    plain(facts["label"]),
                    str(kernel["registers"]),
                    str(kernel["shared"]),
                    str(kernel["spills"]),
                    size(kernel["bytes"]),
                )
            )
            about = ("", "")
        refused += [
            f"{facts['op']}: configuration '{entry['label']}' was refused: {entry['reason']}"
            for entry in facts["refused"]
        ]
    heads = ("operator", "layers>", "kernel!", "configuration", "registers>", "shared>", "spilled>")
    title = f"Kernels for {report.target} ({report.compute_capability}), Triton {report.triton}"
    total = f"compressed: {size(report.bytes)}, in an engine of all layers "
    parts: list[RenderableType] = [table(title, (*heads, "size>"), rows)]
    parts += [plain(line) for line in refused]
    parts.append(plain(total + size(report.engine_bytes)))
    if report.output:
        parts.append(plain(f"written to {report.output}"))
    return Group(*parts)
