"""Compile the GPU kernels that a bundle or a graph needs, and write them to one file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssm_export import errors
from ssm_export.bundle import Bundle, disk_errors, refuse_existing
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
        output: a file (``.ssmk``) to write the different kernel images to, one after another.
        ptx: add PTX, which drivers of later GPUs can compile.
        progress: shows a bar.

    Raises:
        SsmExportError: ``UNKNOWN_TARGET``, ``BAD_OPTION``, ``NO_SUCH_PATH``, ``OUTPUT_EXISTS``,
            ``LOWERING_FAILED`` for a graph without calls of ours, ``BAD_OPERATOR_CALL``,
            ``MISSING_PACKAGE``, ``KERNEL_UNSUPPORTED``, ``KERNEL_COMPILE_FAILED``.
    """
    load_plugins()
    from ssm_export_plugins import aot
    from ssm_export_plugins.model_calls import model_calls

    goal = get_target(target)
    chip = aot.chip_of(goal)
    if output is not None:
        refuse_existing(output)
    found = model_calls(_graph(Path(path)))
    if not found:
        raise SsmExportError(
            errors.LOWERING_FAILED,
            "the graph calls no operator that kernels are made for",
            where=os.fspath(path),
            fix="give a bundle, or its canonical graph onnx/prefill.onnx",
        )
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

    if path.is_dir() or not path.exists():
        path = Bundle.open(path).graph_path("prefill", "canonical")
    try:
        return ir.load(path)
    except Exception as error:  # protobuf, and onnx_ir's own
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise SsmExportError(
            errors.GRAPH_INVALID,
            f"it cannot be read as an ONNX graph ({first})",
            where=str(path),
            fix="give a bundle or an .onnx file",
        ) from error


def _write(path: Path, blobs: Sequence[bytes]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(b"".join(blobs))
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
