"""Compile the GPU kernels that a bundle or a graph needs, and write them to one file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssm_export import errors
from ssm_export.bundle import Bundle, disk_errors
from ssm_export.errors import SsmExportError
from ssm_export.progress import SILENT, Progress
from ssm_export.resources import load_plugins
from ssm_export.targets import get_target

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class CompiledOperator:
    """One call of an operator, compiled.

    Attributes:
        nodes: the nodes that make this call, by name.
        report: what :class:`ssm_export_plugins.aot.Compiled` reports of it.
    """

    nodes: tuple[str, ...]
    report: dict[str, Any]


@dataclass(frozen=True)
class KernelsReport:
    """What was compiled.

    Attributes:
        path: the bundle or the graph.
        target, compute_capability: what for.
        triton: version of the compiler.
        operators: every different call.
        bytes: of all different kernel images together, as in the file.
        engine_bytes: of the kernel images of all nodes: each node of an engine has its own.
        output: the file; empty where none was asked for.
    """

    path: str
    target: str
    compute_capability: str
    triton: str
    operators: tuple[CompiledOperator, ...]
    bytes: int
    engine_bytes: int
    output: str

    def as_json(self) -> dict[str, Any]:
        """The report as the members of a JSON document."""
        return {
            "path": self.path,
            "target": self.target,
            "compute_capability": self.compute_capability,
            "triton": self.triton,
            "operators": [{"nodes": list(o.nodes), **o.report} for o in self.operators],
            "bytes": self.bytes,
            "engine_bytes": self.engine_bytes,
            "output": self.output,
        }


def compile_kernels(
    path: str | os.PathLike[str],
    target: str,
    *,
    output: str | os.PathLike[str] | None = None,
    ptx: bool = False,
    progress: Progress = SILENT,
) -> KernelsReport:
    """Compile the kernels of every operator call; needs Triton, and no GPU.

    Args:
        path: a bundle, whose graph for prompts of any length is taken (its kernels take one token
            too), or an ONNX graph that calls operators of ours.
        target: a name of ``ssm-export list targets``.
        output: a file (``.ssmk``) to write the different kernel images to, one after another;
            a file of kernel images that is there already is replaced.
        ptx: add PTX, which drivers of later GPUs can compile.
        progress: shows a bar.

    Raises:
        SsmExportError: ``UNKNOWN_TARGET``, ``BAD_OPTION``, ``NO_SUCH_PATH``, ``OUTPUT_EXISTS``,
            ``NO_PERMISSION``, ``LOWERING_FAILED`` for a graph without calls of ours,
            ``BAD_OPERATOR_CALL``, ``MISSING_PACKAGE``, ``KERNEL_UNSUPPORTED``,
            ``KERNEL_COMPILE_FAILED``.
    """
    load_plugins()
    from ssm_export_plugins import aot
    from ssm_export_plugins.model_calls import model_calls

    goal = get_target(target)
    chip = aot.chip_of(goal)
    if output is not None:
        _check_output(Path(output))
    graph = _graph(Path(path))
    found = model_calls(graph)
    if not found:
        raise _no_calls(graph, os.fspath(path))
    calls = [(spec, call) for _, spec, call in found]
    compiled = aot.compile_calls(calls, chip, ptx=ptx, progress=progress)
    nodes: dict[int, list[str]] = {}
    different = {id(one): one for one in compiled}
    for (node, _, _), one in zip(found, compiled, strict=True):
        nodes.setdefault(id(one), []).append(node.name or node.op_type)
    blobs = list(dict.fromkeys(one.blob for one in different.values()))
    if output is not None:
        _write(Path(output), blobs)
    return KernelsReport(
        path=os.fspath(path),
        target=goal.name,
        compute_capability=goal.compute_capability,
        triton=aot.triton_version(),
        operators=tuple(
            CompiledOperator(tuple(nodes[key]), dict(one.report)) for key, one in different.items()
        ),
        bytes=sum(map(len, blobs)),
        engine_bytes=sum(len(one.blob) for one in compiled),
        output=os.fspath(output) if output is not None else "",
    )


def _graph(path: Path) -> ir.Model:
    import onnx_ir as ir

    from ssm_export.lowering import fuse_calls

    bundle = path.is_dir() or not path.exists()
    if bundle:
        path = Bundle.open(path).graph_path("prefill", "canonical")
    try:
        graph = ir.load(path)
    except Exception as error:  # protobuf, and onnx_ir's own
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise SsmExportError(
            errors.GRAPH_INVALID,
            f"it cannot be read as an ONNX graph ({first})",
            where=str(path),
            fix="give a bundle or an .onnx file",
        ) from error
    if bundle:
        fuse_calls(graph)
    return graph


def _no_calls(graph: ir.Model, path: str) -> SsmExportError:
    import onnx_ir as ir

    from ssm_export.lowering.plugin import PLUGIN_DOMAIN

    nodes = ir.traversal.RecursiveGraphIterator(graph.graph)
    stamped = sum(node.domain == PLUGIN_DOMAIN for node in nodes)
    if stamped:
        return SsmExportError(
            errors.LOWERING_FAILED,
            f"its {stamped} scans carry their kernels already, nothing is left to compile",
            where=path,
            fix="give the bundle or its onnx/prefill.onnx to compile for another device",
        )
    return SsmExportError(
        errors.LOWERING_FAILED,
        "the graph calls no operator that kernels are made for",
        where=path,
        fix="give a bundle, or its canonical graph onnx/prefill.onnx",
    )


def _check_output(path: Path) -> None:
    """Refuse a file that cannot be written, before the work: what is not ours is never replaced."""
    with _write_errors(path):
        if path.is_dir():
            raise SsmExportError(
                errors.BAD_OPTION,
                f"'{path}' is a folder, the kernel images go to one file",
                where="-o",
                fix=f"-o {path / 'kernels.ssmk'}",
            )
        if path.exists() and not _is_container(path):
            raise SsmExportError(
                errors.OUTPUT_EXISTS,
                f"'{path}' exists already and is no file of kernel images",
                where="-o",
                fix=f"give another file, such as -o {path.with_name(path.stem + '-kernels.ssmk')}",
            )
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir():
            raise SsmExportError(
                errors.BAD_OPTION,
                f"'{path}' cannot be written: '{folder}' is a file, not a folder",
                where="-o",
                fix="give -o a file in a folder",
            )
        tempfile.TemporaryFile(dir=folder).close()


def _is_container(path: Path) -> bool:
    from ssm_export_plugins.container import MAGIC

    if not path.is_file():  # a pipe would block
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        with disk_errors(path.parent):
            yield
    except OSError as error:
        raise SsmExportError(
            errors.NO_PERMISSION,
            f"'{path}' cannot be written ({error.strerror or error})",
            where="-o",
            fix="give a file in a folder that you may write to",
        ) from error


def _write(path: Path, blobs: Sequence[bytes]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with _write_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(b"".join(blobs))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
