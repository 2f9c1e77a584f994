"""bf16 graphs in fp32 arithmetic: every result is rounded exactly as bf16 would round it."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
from one_call import session

from ssm_export.lowering.widen import widen

BF16 = ir.TensorType(ir.DataType.BFLOAT16)


def _bf16(value: np.ndarray) -> np.ndarray:
    return value.astype(ml_dtypes.bfloat16).astype(np.float32)


def _graph(weight: np.ndarray) -> ir.Model:
    """y = transpose(x·w + 1) · sigmoid(x·w + 1), all bf16."""
    x = ir.Value(name="x", type=BF16, shape=ir.Shape(["batch", 8]))
    tensor = ir.tensor(weight.astype(ml_dtypes.bfloat16), name="w")
    w = ir.Value(name="w", type=BF16, shape=ir.Shape([8, 5]), const_value=tensor)
    one = ir.node("Constant", [], attributes={"value": ir.tensor(np.ones((), ml_dtypes.bfloat16))})
    product = ir.node("MatMul", [x, w])
    added = ir.node("Add", [product.outputs[0], one.outputs[0]])
    gate = ir.node("Sigmoid", added.outputs)
    gated = ir.node("Mul", [added.outputs[0], gate.outputs[0]])
    turned = ir.node("Transpose", gated.outputs, attributes={"perm": [1, 0]})
    nodes = [one, product, added, gate, gated, turned]
    for node in nodes:
        node.outputs[0].name, node.outputs[0].type = node.op_type.lower(), BF16
    turned.outputs[0].shape = ir.Shape([5, "batch"])
    graph = ir.Graph(
        [x], turned.outputs, nodes=nodes, initializers=[w], opset_imports={"": 20}, name="g"
    )
    return ir.Model(graph, ir_version=10)


def test_every_result_is_rounded_to_bf16() -> None:
    rng = np.random.default_rng(0)
    weight = _bf16(rng.standard_normal((8, 5)).astype(np.float32))
    x = _bf16(rng.standard_normal((64, 8)).astype(np.float32))
    model = widen(_graph(weight))
    (y,) = session(model).run(None, {"x": x})
    added = _bf16(_bf16(x @ weight) + np.float32(1))
    gate = _bf16(1.0 / (1.0 + np.exp(-added)))
    np.testing.assert_array_equal(y, _bf16(added * gate).T)
    exact = (x @ weight + 1) / (1 + np.exp(-(x @ weight + 1)))
    assert np.abs(y.T - exact).max() > 1e-3, "nothing was rounded"


def test_bf16_is_left_only_in_weights_and_casts() -> None:
    model = widen(_graph(np.ones((8, 5), np.float32)))
    for node in model.graph:
        if node.op_type not in ("Cast", "Constant"):
            kinds = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None}
            assert ir.DataType.BFLOAT16 not in kinds
    assert model.graph.initializers["w"].dtype == ir.DataType.BFLOAT16
    ports = (*model.graph.inputs, *model.graph.outputs)
    assert {value.dtype for value in ports} == {ir.DataType.FLOAT}
    assert [value.name for value in ports] == ["x", "transpose"]


def test_a_graph_input_that_is_an_output_keeps_its_name() -> None:
    x = ir.Value(name="x", type=BF16, shape=ir.Shape([2]))
    cast = ir.node("Cast", [x], attributes={"to": int(ir.DataType.FLOAT)})
    back = ir.node("Cast", cast.outputs, attributes={"to": int(ir.DataType.BFLOAT16)})
    cast.outputs[0].name, cast.outputs[0].type = "wide", ir.TensorType(ir.DataType.FLOAT)
    back.outputs[0].name, back.outputs[0].type = "y", BF16
    for value in (cast.outputs[0], back.outputs[0]):
        value.shape = ir.Shape([2])
    graph = ir.Graph(
        [x], [back.outputs[0], cast.outputs[0]], nodes=[cast, back], opset_imports={"": 20},
        name="g",
    )  # fmt: skip
    model = widen(ir.Model(graph, ir_version=10))
    runner = session(model)
    assert [port.name for port in runner.get_outputs()] == ["y", "wide"]
    values = np.array([1.0, 1.0078125], np.float32)
    for result in runner.run(None, {"x": values}):
        np.testing.assert_array_equal(result, values)
