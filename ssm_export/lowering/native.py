"""The ``native`` lowering: every call inlined, standard operators only, fit for any runtime."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.lowering.bodies import follow_opset
from ssm_export.lowering.types import constant_of, infer_types
from ssm_export.ops.spec import DOMAIN

CALL: Final = "ssm_export.call"
"""Metadata key of an inlined node: the name of the call it came from."""

_STANDARD: Final = ("", "ai.onnx")


def inline(model: ir.Model, allowed_domains: Iterable[str] = ()) -> dict[str, int]:
    """Put the bodies in the place of the calls, in place, and tidy up.

    Values of an inlined body are named ``<call>/<value>``. ``CastLike`` becomes ``Cast``, casts
    that change nothing go, and equal constants become one.

    Args:
        model: a graph whose calls have bodies.
        allowed_domains: domains besides the standard one that may remain.

    Returns:
        op type to the number of its calls that were inlined.

    Raises:
        SsmExportError: ``LOWERING_FAILED`` when an operator of another domain remains.
    """
    counts: dict[str, int] = {}
    for index, node in enumerate(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.op_identifier() in model.functions:
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
            node.metadata_props[CALL] = node.name or f"{node.op_type}_{index}"
    follow_opset(model)
    InlinePass()(model)
    _name_after_calls(model)
    infer_types(model.graph)
    make_casts_plain(model)
    _merge_constants(model.graph)
    RemoveUnusedNodesPass()(model)
    _check_domains(model, {*_STANDARD, *allowed_domains})
    for domain in set(model.graph.opset_imports) - {*_STANDARD, *allowed_domains}:
        del model.graph.opset_imports[domain]
    return counts


def _name_after_calls(model: ir.Model) -> None:
    """Give values and nodes that were inlined the name of their call as a prefix."""
    fixed = {*model.graph.inputs, *model.graph.outputs}
    taken = {value.name for value in fixed} | set(model.graph.initializers)

    def rename(value: ir.Value, call: str) -> None:
        base = candidate = f"{call}/{_without_suffix(value.name or 'value')}"
        count = 1
        while candidate in taken:
            count += 1
            candidate = f"{base}_{count}"
        taken.add(candidate)
        value.name = candidate

    call_of_graph: dict[ir.Graph, str] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        call = node.metadata_props.pop(CALL, None) or call_of_graph.get(node.graph)  # type: ignore[arg-type]
        if call is None:
            continue
        for value in node.outputs:
            if value not in fixed:
                rename(value, call)
        node.name = f"{call}/{node.op_type}_{(node.outputs[0].name or '').rpartition('/')[2]}"
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                graph = attribute.as_graph()
                call_of_graph[graph] = call
                for value in graph.inputs:
                    rename(value, call)


def _without_suffix(name: str) -> str:
    """A name without the number that the inliner may have appended to tell calls apart."""
    stem, _, number = name.rpartition("_")
    return stem if stem and number.isdigit() else name


def make_casts_plain(model: ir.Model) -> None:
    """Turn CastLike into Cast where the type is known, and drop casts that change nothing."""
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.domain not in _STANDARD or node.op_type not in ("Cast", "CastLike"):
            continue
        source, result = node.inputs[0], node.outputs[0]
        if node.op_type == "CastLike":
            like = node.inputs[1]
            if like is None or like.dtype is None:
                continue
            node.resize_inputs(1)
            node.op_type = "Cast"
            node.attributes["to"] = ir.AttrInt64("to", int(like.dtype))
        target = ir.DataType(node.attributes["to"].as_int())
        if source is not None and source.dtype == target and not result.is_graph_output():
            result.replace_all_uses_with(source)
            assert node.graph is not None
            node.graph.remove(node, safe=True)


def _merge_constants(graph: ir.Graph) -> None:
    """Keep one Constant node of each value and put it at the head of the graph."""
    first: dict[tuple[object, ...], ir.Value] = {}
    moved: list[ir.Node] = []
    for node in list(graph):
        if node.op_type != "Constant" or node.domain not in _STANDARD:
            continue
        tensor = constant_of(node)
        if tensor is None or node.outputs[0].is_graph_output():
            continue
        key = (tensor.dtype, tuple(tensor.shape), tensor.tobytes())
        if key in first:
            node.outputs[0].replace_all_uses_with(first[key])
            graph.remove(node, safe=True)
            continue
        value = first[key] = node.outputs[0]
        value.name = f"const_{len(first)}"
        node.name = f"Constant_{len(first)}"
        graph.remove(node)
        moved.append(node)
    if moved and len(graph):
        graph.insert_before(graph[0], moved)


def _check_domains(model: ir.Model, allowed: set[str]) -> None:
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain in allowed:
            continue
        raise SsmExportError(
            errors.LOWERING_FAILED,
            f"operator '{node.op_type}' of domain '{node.domain}' has no body to inline",
            where=f"node '{node.name}'",
            fix="export the checkpoint again"
            if node.domain == DOMAIN
            else "use the canonical graph",
        )
