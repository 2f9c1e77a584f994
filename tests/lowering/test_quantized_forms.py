"""Quantized weights in the forms that single runtimes need: FP4 as int8, a tied table once."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from ssm_export.lowering import ort_fp4, tied_table

VOCABULARY, WIDTH, ROWS = 12, 8, 5


def constant(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )


def model_of(
    inputs: list[ir.Value], outputs: list[ir.Value], nodes: list[ir.Node], constants: list[ir.Value]
) -> ir.Model:
    graph = ir.Graph(
        inputs, outputs, nodes=nodes, initializers=constants, name="g", opset_imports={"": 23}
    )
    return ir.Model(graph, ir_version=11)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_fp4_codes_become_the_same_numbers_in_int8(dtype):
    rng = np.random.default_rng(0)
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6, 0])
    codes = rng.permuted(np.tile(magnitudes, (32, 1)), axis=1)[:, :7].astype(np.float32)
    scales = rng.uniform(0.5, 400, (2, 7)).astype(ml_dtypes.float8_e4m3fn)
    whole = dtype(0.03125)
    parts = [
        constant("codes", codes.astype(ml_dtypes.float4_e2m1fn)),
        constant("scales", scales),
        constant("whole", np.array(whole)),
    ]
    inner = ir.node("DequantizeLinear", parts[1:], name="inner")
    inner.outputs[0].name = "inner"
    outer = ir.node(
        "DequantizeLinear",
        [parts[0], inner.outputs[0]],
        {"axis": 0, "block_size": 16},
        name="outer",
    )
    outer.outputs[0].name = "real"
    outer.outputs[0].type = ir.TensorType(parts[2].dtype)
    outer.outputs[0].shape = ir.Shape((32, 7))
    model = model_of([], [outer.outputs[0]], [inner, outer], parts)
    assert ort_fp4.as_integers(model.graph) == 1
    assert {str(name) for name in model.graph.initializers} == {
        "codes.int8",
        "codes.int8_scale",
    }
    kinds = [value.dtype for value in model.graph.initializers.values()]
    assert kinds[0] == ir.DataType.INT8
    (got,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {})
    want = codes.astype(np.float64) * np.repeat(scales.astype(np.float64), 16, axis=0) * whole
    assert np.array_equal(got.astype(np.float64), want.astype(dtype).astype(np.float64))


def test_other_weights_are_left_alone():
    model = tied(block=0)
    assert ort_fp4.as_integers(model.graph) == 0


def tied(block: int) -> ir.Model:
    """ids → rows of a table; hidden → product with the same table."""
    rng = np.random.default_rng(1)
    codes = rng.integers(-127, 128, (VOCABULARY, WIDTH)).astype(np.int8)
    shape = (VOCABULARY, WIDTH // block) if block else (VOCABULARY,)
    scale = rng.uniform(0.01, 0.1, shape).astype(np.float32)
    table = [constant("table", codes), constant("table.scale", scale)]
    attributes = {"axis": 1, "block_size": block} if block else {"axis": 0}
    real = ir.node("DequantizeLinear", table, attributes, name="real")
    real.outputs[0].name = "real"
    real.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    ids = ir.Value(name="ids", shape=ir.Shape((3,)), type=ir.TensorType(ir.DataType.INT64))
    hidden = ir.Value(
        name="hidden", shape=ir.Shape((ROWS, WIDTH)), type=ir.TensorType(ir.DataType.FLOAT)
    )
    gather = ir.node("Gather", [real.outputs[0], ids], {"axis": 0}, name="rows")
    head = ir.node("Gemm", [hidden, real.outputs[0]], {"transB": 1}, name="head")
    for node, name, width in ((gather, "embedded", WIDTH), (head, "logits", VOCABULARY)):
        node.outputs[0].name = name
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = ir.Shape((3 if name == "embedded" else ROWS, width))
    outputs = [gather.outputs[0], head.outputs[0]]
    return model_of([ids, hidden], outputs, [real, gather, head], table)


def run(model: ir.Model) -> list[np.ndarray]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    rng = np.random.default_rng(2)
    hidden = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
    ids = np.array([0, VOCABULARY - 1, 4])
    return list(ReferenceEvaluator(proto).run(None, {"ids": ids, "hidden": hidden}))


def test_a_tied_head_is_turned_and_computes_the_same():
    before, model = run(tied(block=0)), tied(block=0)
    assert tied_table.store_once(model.graph) == 1
    kinds = [node.op_type for node in model.graph]
    assert "Gemm" not in kinds
    assert kinds.count("Transpose") == 2
    assert [str(value.name) for value in model.graph.outputs] == ["embedded", "logits"]
    for got, want in zip(run(model), before, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_a_table_in_blocks_or_a_head_of_its_own_stays():
    assert tied_table.store_once(tied(block=4).graph) == 0
    alone = tied(block=0)
    gather = next(node for node in alone.graph if node.op_type == "Gather")
    alone.graph.outputs.pop(0)
    alone.graph.remove(gather, safe=True)
    assert tied_table.store_once(alone.graph) == 0
