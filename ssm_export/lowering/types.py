"""Element types of values that a graph leaves untyped."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

_BOOLEAN: Final = frozenset(
    ["And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or"]
)
_INTEGER: Final = frozenset(["Shape", "Size", "ArgMax", "ArgMin", "NonZero"])
_LITERALS: Final = {
    "value_float": ir.DataType.FLOAT,
    "value_floats": ir.DataType.FLOAT,
    "value_int": ir.DataType.INT64,
    "value_ints": ir.DataType.INT64,
}
_TYPED_BY: Final = {"Where": 1, "CastLike": 1}
"""Operator to the input whose type its output has; the first where it is not listed."""


def infer_types(graph: ir.Graph) -> None:
    """Fill in element types that bodies leave open, in place; known types are kept."""
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for value in node.outputs:
            if value.dtype is None:
                kind = _result_type(node)
                value.type = None if kind is None else ir.TensorType(kind)


def _result_type(node: ir.Node) -> ir.DataType | None:
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    if node.op_type in _BOOLEAN:
        return ir.DataType.BOOL
    if node.op_type in _INTEGER:
        return ir.DataType.INT64
    if node.op_type == "Constant":
        tensor = constant_of(node)
        return _LITERALS.get(next(iter(node.attributes))) if tensor is None else tensor.dtype
    if node.op_type in ("Scan", "Loop", "If"):
        return None
    position = _TYPED_BY.get(node.op_type, 0)
    source = node.inputs[position] if position < len(node.inputs) else None
    return None if source is None else source.dtype


def constant_of(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor of a Constant node that has it as ``value``; it is read only, and not renamed."""
    attribute = node.attributes.get("value")
    return None if attribute is None else attribute.as_tensor()
