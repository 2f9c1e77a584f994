"""What an engine builder must know of an ONNX file before its parser may see it.

Nothing here reads weights: the file is loaded without its external data.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ssm_export import errors
from ssm_export.bundle import Bundle, FileEntry, Manifest, disk_errors
from ssm_export.engines._ports import Port
from ssm_export.errors import SsmExportError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

STANDARD_DOMAINS: Final = ("", "ai.onnx")
PLUGIN_NAMES: Final = ("LinearAttention", "CausalConvWithState")
"""Names of opset 27 that TensorRT's parser hands to its plugin registry, whatever their domain."""


def load_graph(path: Path) -> onnx.ModelProto:
    """Read an ONNX file without its weights; ``GRAPH_INVALID`` when it is not one."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # has no stubs

    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except (DecodeError, OSError) as error:
        raise SsmExportError(
            errors.GRAPH_INVALID,
            f"cannot be read as ONNX: {error}",
            where=str(path),
            fix="export again, or copy the bundle again from where it was made",
        ) from error
    if not model.graph.node:
        raise SsmExportError(
            errors.GRAPH_INVALID,
            "holds no nodes",
            where=str(path),
            fix="export again, or copy the bundle again from where it was made",
        )
    return model


def store_graph(bundle: Bundle, model: ir.Model, name: str) -> FileEntry:
    """Write a lowered graph beside the weights that it points into, under its name when whole."""
    import onnx_ir as ir

    path = bundle.path / "onnx" / name
    partial = path.with_name(f".{name}.{os.getpid()}.part")
    try:
        with disk_errors(path.parent):
            partial.write_bytes(ir.to_proto(model).SerializeToString())
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return bundle.entry(f"onnx/{name}")


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node: of the graph, of the graphs inside nodes, and of the functions."""
    waiting = [model.graph.node, *(function.node for function in model.functions)]
    while waiting:
        for node in waiting.pop():
            yield node
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    waiting.append(attribute.g.node)
                waiting.extend(graph.node for graph in attribute.graphs)


def newest_opset(engine: str, version: str) -> int:
    """The newest opset of the standard domain that a parser is documented to read.

    The parsers take newer ones too and then misread what changed, so the builder has to refuse.
    Up to 10.5 they are built on ONNX 1.16, up to 10.14 on 1.17; 10.15 names opset 24 as its last.
    """
    if engine == "tensorrt-rtx":
        return 24
    major, minor = (int(part) for part in (version or "10.3").split(".")[:2])
    if (major, minor) < (10, 6):
        return 21
    return 22 if (major, minor) < (10, 15) else 24


def refuse_unbuildable(
    model: onnx.ModelProto, where: str, engine: str, version: str, fix: str
) -> None:
    """Refuse a graph that would reach a plugin or that the parser does not know.

    TensorRT-RTX has no plugin layers: its parser ends the process at the first node that resolves
    to one, so nothing but standard operators may reach it.

    Raises:
        SsmExportError: ``PLUGIN_IN_GRAPH`` with the nodes' names, or ``LOWERING_FAILED`` for an
            opset that the parser does not know.
    """
    import onnx

    opsets = {entry.domain: entry.version for entry in model.opset_import}
    opset = opsets.get("", opsets.get("ai.onnx", 0))
    foreign: dict[str, list[str]] = {}
    for node in all_nodes(model):
        known = (
            node.domain in STANDARD_DOMAINS
            and node.op_type not in PLUGIN_NAMES
            and onnx.defs.has(node.op_type)
        )
        if not known:
            spelled = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            foreign.setdefault(spelled, []).append(node.name or (node.output or ("",))[0])
    if foreign:
        kinds = ", ".join(
            f"{spelled} ({len(names)} nodes, the first '{names[0]}')"
            for spelled, names in sorted(foreign.items())
        )
        raise SsmExportError(
            errors.PLUGIN_IN_GRAPH,
            f"the graph holds operators that are not standard ONNX: {kinds}",
            where=where,
            why=f"{engine} would look for plugins of those names, and its parser ends the process",
            fix=fix,
        )
    newest = newest_opset(engine, version)
    if not 9 <= opset <= newest:
        raise SsmExportError(
            errors.LOWERING_FAILED,
            f"the graph has opset {opset}, the parser of {engine} {version} reads 9 to {newest}",
            where=where,
            fix="export again: the graphs of this release have an opset that every parser reads",
        )


def graph_ports(model: onnx.ModelProto) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs and outputs of a graph, with the names of its symbolic axes."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    return tuple(map(_port, inputs)), tuple(map(_port, model.graph.output))


def _port(value: onnx.ValueInfoProto) -> Port:
    import onnx

    tensor = value.type.tensor_type
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim
    )
    onnx_name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return Port(value.name, _NUMPY_NAMES.get(onnx_name, onnx_name), shape)


_NUMPY_NAMES: Final = {"float": "float32", "double": "float64"}
"""The two types that ONNX calls otherwise than numpy."""


def check_states(manifest: Manifest, inputs: list[Port], outputs: list[Port], where: str) -> None:
    """The engine's states must be the manifest's, by name and type.

    Raises:
        SsmExportError: ``ENGINE_BUILD_FAILED`` with the first that is not.
    """
    for side, ports in (("input", inputs), ("output", outputs)):
        have = {port.name: port.dtype for port in ports}
        wanted = {
            (state.name_in if side == "input" else state.name_out): state.dtype
            for state in manifest.states
        }
        wanted |= {"input_ids": "int64"} if side == "input" else {}
        for name, dtype in wanted.items():
            if have.get(name) != dtype:
                raise SsmExportError(
                    errors.ENGINE_BUILD_FAILED,
                    f"the {side} '{name}' is {have.get(name, 'missing')} in the engine "
                    f"and {dtype} in the manifest",
                    where=where,
                    fix="export again, then build again",
                )
