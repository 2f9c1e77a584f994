"""Run a bf16 graph where there are no bf16 kernels: fp32 arithmetic, rounded as bf16 would be."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from ssm_export.lowering import native
from ssm_export.lowering.types import infer_types

_BF16: Final = ir.DataType.BFLOAT16
_FP32: Final = ir.DataType.FLOAT
_MOVES_ONLY: Final = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad"}
    | {"Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"}
)
"""Operators that copy elements: what they give is rounded if what they take is."""


def widen(model: ir.Model) -> ir.Model:
    """Make a bf16 graph run on a runtime without bf16 kernels, in place.

    Graph inputs and outputs of type bf16 become fp32 (they hold bf16 values). Every operator with
    a bf16 result computes it in fp32 and rounds it through bf16, which is what a bf16 kernel with
    fp32 accumulation gives. Weights stay bf16 and are widened by a Cast, so the graph still points
    into the same weights file.

    Args:
        model: a canonical or lowered graph; calls of our operators are inlined first.

    Returns:
        ``model``, in which bf16 is only the target of a Cast, a weight or a constant.
    """
    if model.functions:
        native.inline(model, ("com.microsoft",))
    infer_types(model.graph)
    native.make_casts_plain(model)
    narrow = {
        value
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
        for value in node.outputs
        if value.dtype == _BF16
    }
    _widen_graph(model.graph, narrow)
    _widen_weights(model.graph)
    return model


def _widen_graph(graph: ir.Graph, narrow: set[ir.Value]) -> None:
    """Widen inputs and results of a graph and of the graphs inside it."""
    for value in graph.inputs:
        if value.dtype == _BF16:
            value.type = ir.TensorType(_FP32)
    for node in list(graph):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                _widen_graph(attribute.as_graph(), narrow)
        for value in node.outputs:
            if value not in narrow:
                continue
            if node.op_type in ("Cast", "Constant"):
                _widen_result(graph, node, value)
            elif node.op_type in _MOVES_ONLY:
                value.type = ir.TensorType(_FP32)
            else:
                _round_result(graph, node, value)


def _widen_result(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Let users of a bf16 Cast or Constant see it in fp32."""
    _take_over(graph, value, node, f"{value.name}_bf16", value, [])


def _round_result(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Round a result that is now computed in fp32 through bf16."""
    rounded = ir.node("Cast", [value], attributes={"to": int(_BF16)}, name=f"{value.name}_round")
    rounded.outputs[0].name = f"{value.name}_bf16"
    rounded.outputs[0].type = ir.TensorType(_BF16)
    rounded.outputs[0].shape = value.shape
    _take_over(graph, value, node, f"{value.name}_exact", rounded.outputs[0], [rounded])
    value.type = ir.TensorType(_FP32)


def _take_over(
    graph: ir.Graph,
    value: ir.Value,
    after: ir.Node,
    new_name: str,
    narrow: ir.Value,
    before: list[ir.Node],
) -> None:
    """Give the users of ``value``, and its name, to ``narrow`` cast to fp32."""
    wide = ir.node("Cast", [narrow], attributes={"to": int(_FP32)}, name=f"{value.name}_widen")
    result = wide.outputs[0]
    result.type, result.shape = ir.TensorType(_FP32), value.shape
    name = value.name
    keep = {wide, *before}
    for user, index in tuple(value.uses()):
        if user not in keep:
            user.replace_input_with(index, result)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = result
    value.name = new_name
    result.name = name
    graph.insert_after(after, [*before, wide])


def _widen_weights(graph: ir.Graph) -> None:
    """One Cast for each bf16 weight, at the head of the graph."""
    casts = []
    for value in list(graph.initializers.values()):
        if value.dtype != _BF16:
            continue
        uses = tuple(value.uses())
        cast = ir.node("Cast", [value], attributes={"to": int(_FP32)}, name=f"{value.name}_widen")
        result = cast.outputs[0]
        result.name = f"{value.name}_fp32"
        result.type, result.shape = ir.TensorType(_FP32), value.shape
        for user, index in uses:
            user.replace_input_with(index, result)
        casts.append(cast)
    if casts:
        graph.insert_before(graph[0], casts)
