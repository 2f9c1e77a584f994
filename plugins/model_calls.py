"""Which operator calls a graph makes, as the kernels see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.ops import DOMAIN, Call, OpSpec, all_ops, fused_ops
from ssm_export_plugins import standard

if TYPE_CHECKING:
    import onnx_ir as ir

_STANDARD: Final = ""
"""ONNX's own domain."""


def operators() -> dict[tuple[str, str], OpSpec]:
    """The operators that kernels are made for, by domain and op type.

    No two domains have an operator of one name.
    """
    ours = {(DOMAIN, name): spec for name, spec in (all_ops() | fused_ops()).items()}
    return ours | {(_STANDARD, name): standard.get(name) for name in standard.names()}


def operator_called(name: str) -> OpSpec:
    """The operator of an op type, whatever its domain.

    Raises:
        KeyError: there is none.
    """
    return next(spec for (_, known), spec in operators().items() if known == name)


def model_calls(model: ir.Model) -> list[tuple[ir.Node, OpSpec, Call]]:
    """Every call of our operators in a graph, in the order of the nodes.

    Types and sizes are read from the values around a node. A graph of one token gives calls with
    ``T`` among their sizes, one of any length gives calls without.

    Args:
        model: a graph that calls operators of ours, with their function bodies or without.

    Raises:
        SsmExportError: ``BAD_OPERATOR_CALL`` for a call that does not fit its schema, or that has
            an input of unknown type or rank.
    """
    import onnx_ir as ir

    from ssm_export.lowering.bodies import call_of

    known = operators()
    found = []
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain == DOMAIN and (DOMAIN, node.op_type) not in known:
            raise SsmExportError(
                errors.BAD_OPERATOR_CALL,
                f"domain {DOMAIN} has no operator '{node.op_type}'",
                where=node.name or node.op_type,
                why=f"It has {', '.join(sorted(name for _, name in known))}",
            )
        spec = known.get((node.domain, node.op_type))
        if spec is not None:
            _check_known(node, spec)
            ours = node.domain == DOMAIN
            found.append((node, spec, call_of(node, spec, "") if ours else _standard(node, spec)))
    return found


def _standard(node: ir.Node, spec: OpSpec) -> Call:
    shapes: dict[str, list[int | str | None]] = {}
    types: dict[str, str] = {}
    for port, value in zip(spec.inputs, node.inputs, strict=False):
        if value is not None and value.shape is not None and value.dtype is not None:
            shapes[port.name] = [s if isinstance(s, int) else str(s) for s in value.shape]
            name = value.dtype.name
            types[port.name] = "float32" if name == "FLOAT" else name.lower()
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    try:
        return standard.call(node.op_type, shapes, types, attributes)
    except SsmExportError as error:
        raise SsmExportError(
            error.code,
            error.what,
            where=f"{node.op_type} '{node.name}'",
            why=error.why,
            fix=error.fix or "mend the node; onnx.checker.check_model says what ONNX asks of it",
        ) from error


def _check_known(node: ir.Node, spec: OpSpec) -> None:
    for port, value in zip(spec.inputs, node.inputs, strict=False):
        if value is not None and (value.dtype is None or value.shape is None):
            raise SsmExportError(
                errors.BAD_OPERATOR_CALL,
                f"the type or the shape of its input '{port.name}' is not known",
                where=f"{node.op_type} '{node.name}'",
                fix="run onnx.shape_inference.infer_shapes on the graph first",
            )
