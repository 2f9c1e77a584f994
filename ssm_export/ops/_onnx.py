"""From an OpSpec to ONNX: its schema, and its bodies as FunctionProtos."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

import onnx
import onnx_ir as ir

from ssm_export.ops._body import LABEL
from ssm_export.ops.spec import DOMAIN, OPSET, VERSION, AttributeValue, Call, OpSpec, Port

FORM: Final = "ssm_export.form"
"""Metadata key of a function: which form it is a body of."""

_CONSTRAINTS: Final = {
    "T": (["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "Type of activations."),
    "S": (["tensor(float)", "tensor(float16)"], "Type of the recurrent state."),
}
_FIXED: Final = {"float32": "tensor(float)", "int32": "tensor(int32)"}


def schema(spec: OpSpec) -> onnx.defs.OpSchema:
    """The ONNX schema of an operator, with its types constrained and its defaults filled in."""
    used = {port.type for port in (*spec.inputs, *spec.outputs)}
    return onnx.defs.OpSchema(
        spec.name,
        DOMAIN,
        VERSION,
        inspect.cleandoc(spec.doc),
        inputs=[_parameter(port) for port in spec.inputs],
        outputs=[_parameter(port) for port in spec.outputs],
        type_constraints=[
            (letter, types, doc) for letter, (types, doc) in _CONSTRAINTS.items() if letter in used
        ],
        attributes=[
            onnx.defs.OpSchema.Attribute(
                name, onnx.helper.make_attribute(name, _as_onnx(value)), ""
            )
            for name, value in spec.attributes.items()
        ],
    )


def function(
    spec: OpSpec,
    form: str,
    call: Call,
    overload: str = "",
    body: Callable[..., Any] | None = None,
    domains: Mapping[str, int] | None = None,
) -> ir.Function:
    """Trace one body of an operator into a function.

    Args:
        spec: the operator.
        form: a key of ``spec.bodies``.
        call: what the body is specialised for.
        overload: tells functions of one operator apart in one model.
        body: another body than the operator's own, such as one of a runtime's fused operators.
        domains: versions of the domains that ``body`` uses besides the standard one.

    Returns:
        A function of standard operators. Its inputs end with the last one that is present, as the
        node's do; its values are named after what they hold and are
        unique over the function and its subgraphs.
    """
    from onnxscript import build_function

    traced = body or spec.bodies[form]
    used = max(i for i, port in enumerate(spec.inputs) if port.name in call.present) + 1
    inputs = [
        ir.Value(name=port.name, type=ir.TensorType(_dtype(port, call)))
        if port.name in call.present
        else None
        for port in spec.inputs[:used]
    ]
    absent = [None] * (len(spec.inputs) - used)

    def trace(op: Any, *values: ir.Value | None) -> Any:
        return traced(op, call, *values, *absent)

    made = build_function(
        trace,
        inputs,
        domain=DOMAIN,
        name=spec.name,
        attributes=[
            ir.convenience.convert_attribute(name, _as_onnx(call.attributes.get(name, default)))
            for name, default in spec.attributes.items()
        ],
        opset_imports={"": OPSET, **(domains or {})},
    )
    for index, port in enumerate(spec.inputs[:used]):
        made.inputs[index].name = port.name
    for value, port in zip(made.outputs, spec.outputs, strict=True):
        value.meta[LABEL] = port.name
    _name_values(made)
    made.overload = overload
    made.metadata_props[FORM] = form
    return made


def _parameter(port: Port) -> onnx.defs.OpSchema.FormalParameter:
    options = onnx.defs.OpSchema.FormalParameterOption
    return onnx.defs.OpSchema.FormalParameter(
        port.name,
        _FIXED.get(port.type, port.type),
        port.doc,
        param_option=options.Optional if port.optional else options.Single,
    )


def _dtype(port: Port, call: Call) -> ir.DataType:
    name = call.type(port.type) if port.type in _CONSTRAINTS else port.type
    return ir.DataType[{"float32": "FLOAT"}.get(name, name.upper())]


def _as_onnx(value: AttributeValue) -> AttributeValue:
    return int(value) if isinstance(value, bool) else value


def _name_values(made: ir.Function) -> None:
    """Give every value a readable name that is unique over the function and its subgraphs."""
    taken = {value.name for value in made.inputs}

    def name(value: ir.Value, otherwise: str) -> None:
        base = str(value.meta.get(LABEL, otherwise))
        candidate, count = base, 1
        while candidate in taken:
            count += 1
            candidate = f"{base}_{count}"
        taken.add(candidate)
        value.name = candidate

    for output in made.outputs:
        name(output, "y")
    outputs = set(made.outputs)
    graphs: list[ir.Graph | ir.Function] = [made]
    while graphs:
        graph = graphs.pop()
        if graph is not made:
            for value in graph.inputs:
                name(value, value.name or "in")
        for node in graph:
            node.metadata_props.clear()
            for value in node.outputs:
                if value not in outputs:
                    name(value, node.op_type.lower())
            node.name = f"{node.op_type}_{node.outputs[0].name}"
            graphs.extend(
                attribute.as_graph()
                for attribute in node.attributes.values()
                if attribute.type == ir.AttributeType.GRAPH
            )
