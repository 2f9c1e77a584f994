"""``ssm-export package BUNDLE``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ssm_export.cli.common import POSITIVE, Job, Result, verb

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ssm_export.packaging import PackReport, RepositoryReport


@verb("package")
@click.argument("path", metavar="BUNDLE|PACK.tar")
@click.option("-o", "--output", metavar="PACK.tar|DIR", help="What to make; it must not exist.")
@click.option("--target", help="The device, by a name of: ssm-export list targets.")
@click.option(
    "--lowering",
    type=click.Choice(["native", "plugin"]),
    help="What the device builds engines from. Plugins where they can be had when left out.",
)
@click.option("--force", is_flag=True, help="Pack although it is predicted not to fit there.")
@click.option(
    "--triton", is_flag=True, help="Make a model repository for Triton Inference Server instead."
)
@click.option("--max-batch", type=POSITIVE, help="--triton: rows of a batch.  [default: 32]")
@click.option(
    "--streams",
    type=POSITIVE,
    help="--triton: sequences whose state one instance keeps; others wait.  [default: 4096]",
)
@click.option("--check", is_flag=True, help="Make nothing; hold PACK.tar against its own list.")
def command(
    job: Job, path: str, output: str | None, triton: bool, check: bool, **options: Any
) -> Result:
    """Make a bundle ready to leave this machine.

    For a board: one archive with graphs, weights, parity vectors, plugin library, this program's
    wheel and run.sh, which checks, installs, builds, verifies, benches and reports there:

    \b
      ssm-export package BUNDLE --target jetson-agx-orin -o model.tar
      on the board: tar xf model.tar && model/run.sh

    For a server: a model repository whose streams keep their states in the server:

    \b
      ssm-export package BUNDLE --triton -o DIR
    """
    from ssm_export import api, errors
    from ssm_export.errors import SsmExportError

    if check:
        from ssm_export.packaging import check_archive

        index = check_archive(path, job.progress)
        found = {"pack": path, "target": index["target"], "files": len(index["files"])}
        return Result(found, lambda: f"{path}: {found['files']} files, as they were packed")
    if output is None:
        fix = f"ssm-export package {path} " + ("--triton -o DIR" if triton else "-o PACK.tar")
        raise SsmExportError(errors.BAD_OPTION, "-o is missing: what to make", fix=fix)
    report: Any = api.package(path, output, triton=triton, progress=job.progress, **options)
    shown = _repository if triton else _pack
    return Result({"bundle": path, **report.as_json()}, lambda: shown(report))


def _pack(report: PackReport) -> RenderableType:
    from rich.console import Group

    from ssm_export.documents.tables import plain, size, table

    rows = [(plain(name), size(number)) for name, number in report.parts.items()]
    title = f"pack for {report.target}"
    lines = [f"{report.pack}, {size(report.bytes)}, engines from {report.lowering} graphs"]
    lines += [f"note: {note}" for note in report.notes]
    if report.library:
        lines.append(f"plugin library: compiled for TensorRT {report.library}")
    if report.left_out:
        lines.append(f"left out, of no use there: {', '.join(report.left_out)}")
    top = report.pack.rpartition("/")[2].removesuffix(".tar")
    lines.append(f"SHA-256 {report.sha256}")
    lines.append(f"on the device: tar xf {top}.tar && {top}/run.sh")
    return Group(table(title, ("part!", "size>"), rows), *map(plain, lines))


def _repository(report: RepositoryReport) -> RenderableType:
    from rich.console import Group

    from ssm_export.documents.tables import plain, size, table

    rows = [(plain(name), plain(backend)) for name, backend in report.models.items()]
    state = size(report.state_bytes)
    total = size(report.state_bytes * report.streams)
    lines = [
        f"a stream's state: {state}; {report.streams} streams of one instance: {total}",
        *(f"note: {note}" for note in report.notes),
        f"tritonserver --model-repository={report.repository}/models",
    ]
    return Group(table("models", ("model!", "backend"), rows), *map(plain, lines))
