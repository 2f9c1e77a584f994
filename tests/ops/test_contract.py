"""Schemas, discovery, names, and the arithmetic that the bodies share."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from one_call import make_call, proto, rounded
from onnxruntime import InferenceSession
from onnxscript import build_function

from ssm_export.glossary import LETTERS
from ssm_export.ops import OpSpec, _body, all_ops, get, register_schemas
from ssm_export.ops.spec import DOMAIN

OPS = list(all_ops().values())
by_name = pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.name)


def test_operators_are_found_by_their_files() -> None:
    assert {"CausalConv1d", "SelectiveScan", "SsdScan"} <= set(all_ops())
    assert get("SsdScan") is all_ops()["SsdScan"]
    with pytest.raises(KeyError, match=r"there are .*CausalConv1d"):
        get("Nothing")


@by_name
def test_contract_is_complete(spec: OpSpec) -> None:
    assert set(spec.bodies) == {"step", "chunked"}
    assert set(spec.tolerances) == {"fp32", "fp16", "bf16"}
    letters = {axis for port in (*spec.inputs, *spec.outputs) for axis in port.axes} - {"-"}
    assert letters <= set(LETTERS)
    assert letters <= set(spec.sizes)
    assert spec.inputs[-1].name == "sequence_lengths"
    assert spec.inputs[-1].optional


@by_name
def test_schema_is_registered_once(spec: OpSpec) -> None:
    register_schemas()
    register_schemas()
    schema = onnx.defs.get_schema(spec.name, 1, DOMAIN)
    assert [p.name for p in schema.inputs] == [p.name for p in spec.inputs]
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    assert [p.option == optional for p in schema.inputs] == [p.optional for p in spec.inputs]
    assert {a: d.default_value.name for a, d in schema.attributes.items()} == {
        name: name for name in spec.attributes
    }


@by_name
def test_schema_refuses_a_wrong_type(spec: OpSpec) -> None:
    register_schemas()
    rng = np.random.default_rng(0)
    feeds = rounded(spec, spec.make_inputs(rng, spec.sizes))
    made = proto(make_call(spec, feeds, "prefill"))
    del made.functions[:]
    onnx.checker.check_model(made, full_check=True)
    made.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    with pytest.raises(onnx.shape_inference.InferenceError):
        onnx.shape_inference.infer_shapes(made, check_type=True, strict_mode=True)


@by_name
@pytest.mark.parametrize("form", ["step", "prefill"])
def test_value_names_are_readable_and_unique(spec: OpSpec, form: str) -> None:
    rng = np.random.default_rng(0)
    feeds = rounded(spec, spec.make_inputs(rng, {**spec.sizes, "T": 1}, (), True))
    (function,) = make_call(spec, feeds, form).functions.values()
    names = [value.name for value in function.inputs]
    graphs: list[ir.Graph | ir.Function] = [function]
    while graphs:
        graph = graphs.pop()
        if graph is not function:
            names += [value.name for value in graph.inputs]
        for node in graph:
            names += [value.name for value in node.outputs]
            graphs += [
                attribute.as_graph()
                for attribute in node.attributes.values()
                if attribute.type == ir.AttributeType.GRAPH
            ]
    assert len(names) == len(set(names))
    assert {port.name for port in (*spec.inputs, *spec.outputs)} <= set(names)
    assert all(name and name[0].isalpha() for name in names)


def test_softplus_is_accurate_far_below_zero() -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))
    made = build_function(_body.softplus, [x], domain="t", name="f", opset_imports={"": 20})
    graph = ir.Graph(
        [x_in := ir.Value(name="in", type=x.type, shape=ir.Shape(["n"]))],
        [],
        nodes=[node := ir.node("f", [x_in], domain="t")],
        opset_imports={"": 20, "t": 1},
        name="g",
    )
    node.outputs[0].name, node.outputs[0].type = "out", x.type
    node.outputs[0].shape = ir.Shape(["n"])
    graph.outputs.append(node.outputs[0])
    model = ir.to_proto(ir.Model(graph, ir_version=10, functions=[made]))
    values = np.concatenate([np.linspace(-80, 80, 200001), [-0.0, 0.0, 1e-30]]).astype(np.float32)
    (result,) = InferenceSession(model.SerializeToString()).run(None, {"in": values})
    exact = np.logaddexp(0.0, values.astype(np.float64))
    assert np.abs(result / exact - 1.0).max() <= 1e-6
