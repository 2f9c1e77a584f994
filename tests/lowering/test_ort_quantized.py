"""Quantized weights packed for ONNX Runtime, against float64 of what their codes stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from ssm_export.engines.onnxruntime import EXACT_PRODUCTS
from ssm_export.lowering import lower
from ssm_export.lowering.ort_quantized import repack
from ssm_export.lowering.widen import widen

FLOATS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16)}
FORMS = {"step": (1,), "prefill": (2, 9)}
"""Rows of an activation before its channels."""


@dataclass
class Weight:
    """Random codes stored (K,N) or (N,K), scales along one axis, and what they stand for."""

    stored: tuple[int, int]
    bits: int
    along: int
    block: int = 0
    dtype: str = "float32"
    codes: np.ndarray = field(init=False)
    scale: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(3)
        top = (1 << (self.bits - 1)) - 1
        self.codes = rng.integers(-top - 1, top + 1, self.stored)
        shape: list[int] = [self.stored[1 - self.along]]
        if self.block:
            shape = list(self.stored)
            shape[self.along] = -(-shape[self.along] // self.block)
        self.scale = (0.001 + 0.01 * rng.random(shape)).astype(DTYPES[self.dtype])

    def real(self) -> np.ndarray:
        """The weight (K,N) or (N,K) as stored, float64."""
        scale = self.scale.astype(np.float64)
        if not self.block:
            return self.codes * np.expand_dims(scale, self.along)
        size = self.stored[self.along]
        return self.codes * np.repeat(scale, self.block, self.along).take(range(size), self.along)

    def tensors(self) -> list[onnx.TensorProto]:
        kind = TensorProto.INT8 if self.bits == 8 else TensorProto.INT4
        scale = helper.make_tensor(
            "s", FLOATS[self.dtype], self.scale.shape, self.scale.tobytes(), raw=True
        )
        if self.bits == 8:
            content = self.codes.astype(np.int8).tobytes()
            return [helper.make_tensor("w", kind, self.stored, content, raw=True), scale]
        return [helper.make_tensor("w", kind, self.stored, self.codes.reshape(-1)), scale]

    def node(self) -> onnx.NodeProto:
        attributes = {"axis": self.along, "block_size": self.block}
        if not self.block:
            attributes = {"axis": 1 - self.along}
        return helper.make_node("DequantizeLinear", ["w", "s"], ["real"], **attributes)


def _model(
    weight: Weight,
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, Sequence[Any]]],
    outputs: dict[str, tuple[int, int]],
    extra: Sequence[onnx.TensorProto] = (),
) -> ir.Model:
    graph = helper.make_graph(
        [weight.node(), *nodes],
        "g",
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
        [helper.make_tensor_value_info(n, t, [None] * r) for n, (t, r) in outputs.items()],
        [*weight.tensors(), *extra],
    )
    opsets = [helper.make_opsetid("", 21)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def _run(model: ir.Model, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    options = onnxruntime.SessionOptions()
    if any(node.op_type == "MatMulIntegerToFloat" for node in proto.graph.node):
        options.add_session_config_entry(*EXACT_PRODUCTS)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return {o.name: y for o, y in zip(session.get_outputs(), session.run(None, feeds), strict=True)}


def _operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def _block(model: ir.Model) -> int:
    (node,) = [node for node in model.graph if node.op_type == "MatMulNBits"]
    return node.attributes["block_size"].as_int()


def _assert_product(y: np.ndarray, x: np.ndarray, w: np.ndarray, block: int) -> None:
    """Accuracy level 4 rounds x to steps of its block's largest magnitude / 127.

    So an element errs by half a step at most, and a product by the sum of half steps times |w|;
    the arithmetic in the type of y adds a few of its roundings of the sum of magnitudes.
    """
    x, inputs = x.astype(np.float64), x.shape[-1]
    padded = np.pad(np.abs(x), [(0, 0)] * (x.ndim - 1) + [(0, -inputs % block)])
    largest = padded.reshape(*x.shape[:-1], -1, block).max(-1)
    half_steps = np.repeat(largest / 127 / 2, block, -1)[..., :inputs]
    unit = np.finfo(y.dtype).eps
    bound = 1.001 * half_steps @ np.abs(w) + 8 * unit * (np.abs(x) @ np.abs(w))
    error = np.abs(y - x @ w)
    assert y.shape == error.shape
    assert (error <= bound).all(), float((error / bound).max())


def _activation(rows: tuple[int, ...], channels: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(7).standard_normal((*rows, channels)).astype(DTYPES[dtype])


SIZES = [(160, 842), (42, 10), (10, 42), (768, 96), (300, 64)]
WEIGHTS = [(8, 0), (8, 32), (4, 16), (4, 32), (4, 128), (4, 48)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("bits", "block"), WEIGHTS)
@pytest.mark.parametrize(("K", "N"), SIZES)
def test_matmul(form: str, dtype: str, bits: int, block: int, K: int, N: int) -> None:
    weight = Weight((K, N), bits, 0, block, dtype)
    x = _activation((3, *FORMS[form]), K, dtype)
    kind = FLOATS[dtype]
    nodes = [helper.make_node("MatMul", ["x", "real"], ["y"])]
    model = _model(weight, nodes, {"x": (kind, [None] * x.ndim)}, {"y": (kind, x.ndim)})
    assert repack(model) == {f"product to MatMulNBits, {bits} bit": 1}
    assert _operators(model) == ["MatMulNBits"]
    assert set(model.graph.initializers) == {"w.nbits", "w.nbits_scale"}
    _assert_product(_run(model, x=x)["y"], x, weight.real(), _block(model))


@pytest.mark.parametrize(("bits", "block"), [(8, 0), (4, 32)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("K", "N"), [(160, 842), (42, 10)])
def test_gemm(bits: int, block: int, bias: bool, K: int, N: int) -> None:
    weight = Weight((N, K), bits, 1, block)
    x, b = _activation((5,), K), _activation((), N)
    given = ["x", "real", "b"][: 2 + bias]
    extra = [onnx.numpy_helper.from_array(b, "b")] if bias else []
    model = _model(
        weight,
        [helper.make_node("Gemm", given, ["y"], transB=1)],
        {"x": (TensorProto.FLOAT, ["B", K])},
        {"y": (TensorProto.FLOAT, 2)},
        extra,
    )
    assert repack(model) == {f"product to MatMulNBits, {bits} bit": 1}
    assert _operators(model) == ["MatMulNBits"]
    y = _run(model, x=x)["y"].astype(np.float64) - (b if bias else 0)
    _assert_product(y.astype(np.float32), x, weight.real().T, _block(model))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("bits", "block"), [(8, 0), (8, 32), (4, 32)])
@pytest.mark.parametrize("head", ["Gemm", "left", "columns"])
@pytest.mark.parametrize(("V", "M"), [(842, 160), (50, 42)])
def test_tied_embedding(dtype: str, bits: int, block: int, head: str, V: int, M: int) -> None:
    """One packed table serves the head and the look-up, and rows are exact."""
    along = 0 if head == "columns" else 1
    weight = Weight((M, V) if along == 0 else (V, M), bits, along, block, dtype)
    kind, make = FLOATS[dtype], helper.make_node
    nodes = {
        "Gemm": [make("Gemm", ["x", "real"], ["y"], transB=1)],
        "left": [
            make("Transpose", ["x"], ["xt"], perm=[1, 0]),
            make("MatMul", ["real", "xt"], ["yt"]),
            make("Transpose", ["yt"], ["y"], perm=[1, 0]),
        ],
        "columns": [make("MatMul", ["x", "real"], ["y"])],
    }[head]
    gathered = "e" if along == 1 else "et"
    nodes = [make("Gather", ["real", "ids"], [gathered], axis=1 - along), *nodes]
    if along == 0:
        nodes.append(make("Transpose", ["et"], ["e"], perm=[1, 2, 0]))
    model = _model(
        weight,
        nodes,
        {"x": (kind, ["B", M]), "ids": (TensorProto.INT64, ["B", "T"])},
        {"y": (kind, 2), "e": (kind, 3)},
    )
    done = repack(model)
    assert done == {
        f"product to MatMulNBits, {bits} bit": 1,
        f"Gather to GatherBlockQuantized, {bits} bit": 1,
    }
    assert "DequantizeLinear" not in _operators(model)
    assert {name for name in model.graph.initializers if "constant" not in name} == {
        "w.nbits",
        "w.nbits_scale",
    }
    x, ids = _activation((2,), M, dtype), np.array([[0, V - 1, 7], [3, 3, 1]])
    results = _run(model, x=x, ids=ids)
    table = weight.real() if along == 1 else weight.real().T
    exact = table[ids]
    np.testing.assert_allclose(results["e"], exact, rtol=np.finfo(DTYPES[dtype]).eps, atol=0)
    _assert_product(results["y"], x, table.T, _block(model))


def test_content_is_made_when_read() -> None:
    weight = Weight((160, 842), 8, 0)
    nodes = [helper.make_node("MatMul", ["x", "real"], ["y"])]
    kind = TensorProto.FLOAT
    model = _model(weight, nodes, {"x": (kind, ["B", 160])}, {"y": (kind, 2)})

    class Unread(ir.Tensor):
        reads = 0

        def numpy(self) -> np.ndarray:
            Unread.reads += 1
            return super().numpy()

    codes = model.graph.initializers["w"]
    codes.const_value = Unread(weight.codes.astype(np.int8), name="w")
    repack(model)
    assert Unread.reads == 0
    made = model.graph.initializers["w.nbits"].const_value
    assert made is not None
    packed = made.numpy()
    assert Unread.reads == 1
    assert packed.nbytes == 160 * 842


def test_both_graphs_name_the_same_content() -> None:
    weight, kind = Weight((768, 96), 4, 0, 64), TensorProto.FLOAT
    found = []
    for rows in FORMS.values():
        nodes = [helper.make_node("MatMul", ["x", "real"], ["y"])]
        shape = [None] * len(rows) + [768]
        model = _model(weight, nodes, {"x": (kind, shape)}, {"y": (kind, len(shape))})
        repack(model)
        content = {n: v.const_value for n, v in model.graph.initializers.items()}
        found.append({n: t.numpy().tobytes() for n, t in content.items() if t is not None})
    assert found[0] == found[1]
    assert len(found[0]["w.nbits"]) == 768 * 96 // 2


def _static_int8(kind: int) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], float]:
    step = 0.03125
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["xd"]),
        helper.make_node("MatMul", ["xd", "real"], ["y"]),
    ]
    constants = [
        helper.make_tensor("step", kind, (), [step]),
        helper.make_tensor("zero", TensorProto.INT8, (), [0]),
    ]
    return nodes, constants, step


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("codes", ["random", "largest"])
def test_static_int8_activations(dtype: str, form: str, codes: str) -> None:
    """A product of int8 codes is exact but for the type of its result, in fp16 too, and whether
    the CPU adds pairs of products in 16 bits or not."""
    weight, kind = Weight((160, 842), 8, 0, dtype=dtype), FLOATS[dtype]
    nodes, constants, step = _static_int8(kind)
    x = _activation(FORMS[form], 160, dtype)
    if codes == "largest":
        weight.codes[:] = 127
        x[:] = 127 * step
    inputs = {"x": (kind, [None] * x.ndim)}
    model = _model(weight, nodes, inputs, {"y": (kind, x.ndim)}, constants)
    done = repack(model)
    assert done == {"product to MatMulIntegerToFloat": 1}
    product = ["QuantizeLinear", "MatMulIntegerToFloat"]
    assert _operators(model) == (product if dtype == "float32" else ["Cast", *product, "Cast"])
    rounded = np.clip(np.rint(x.astype(np.float64) / step), -128, 127) * step
    exact = rounded @ weight.real()
    size = np.abs(rounded) @ np.abs(weight.real())
    unit = np.finfo(DTYPES[dtype]).eps
    error = np.abs(_run(model, x=x)["y"] - exact)
    assert (error <= unit * np.abs(exact) + 8 * np.finfo(np.float32).eps * size).all()


def test_int4_weights_under_static_int8_activations() -> None:
    weight, kind = Weight((160, 842), 4, 0, 32), TensorProto.FLOAT
    nodes, constants, step = _static_int8(kind)
    model = _model(weight, nodes, {"x": (kind, ["B", 160])}, {"y": (kind, 2)}, constants)
    assert repack(model) == {"product to MatMulNBits, 4 bit": 1}
    x = _activation((4,), 160)
    rounded = np.clip(np.rint(x.astype(np.float64) / step), -128, 127) * step
    _assert_product(_run(model, x=x)["y"], rounded, weight.real(), _block(model))


@pytest.mark.parametrize(
    ("change", "value"),
    [("alpha", 2.0), ("transA", 1), ("beta", 0.5)],
)
def test_other_gemms_are_left(change: str, value: float) -> None:
    weight, kind = Weight((64, 64), 8, 1), TensorProto.FLOAT
    node = helper.make_node("Gemm", ["x", "real", "b"], ["y"], transB=1, **{change: value})
    bias = onnx.numpy_helper.from_array(_activation((), 64), "b")
    model = _model(weight, [node], {"x": (kind, [64, 64])}, {"y": (kind, 2)}, [bias])
    before = ir.to_proto(model).SerializeToString()
    assert repack(model) == {}
    assert ir.to_proto(model).SerializeToString() == before


def test_scales_along_the_inputs_are_left() -> None:
    weight, kind = Weight((64, 64), 8, 1), TensorProto.FLOAT
    nodes = [helper.make_node("MatMul", ["x", "real"], ["y"])]
    model = _model(weight, nodes, {"x": (kind, ["B", 64])}, {"y": (kind, 2)})
    assert repack(model) == {}
    x = _activation((3,), 64)
    np.testing.assert_allclose(_run(model, x=x)["y"], x @ weight.real(), rtol=1e-4, atol=1e-4)


def test_codes_with_a_zero_point_are_left() -> None:
    weight, kind = Weight((64, 32), 8, 0), TensorProto.FLOAT
    nodes = [helper.make_node("MatMul", ["x", "real"], ["y"])]
    model = _model(weight, nodes, {"x": (kind, ["B", 64])}, {"y": (kind, 2)})
    zero = ir.Value(name="z", const_value=ir.tensor(np.full(32, 3, np.int8), name="z"))
    zero.type, zero.shape = ir.TensorType(ir.DataType.INT8), ir.Shape([32])
    model.graph.initializers["z"] = zero
    node = model.graph[0]
    node.resize_inputs(3)
    node.replace_input_with(2, zero)
    assert repack(model) == {}


def test_a_weight_read_elsewhere_keeps_its_codes() -> None:
    weight, kind = Weight((64, 32), 8, 0), TensorProto.FLOAT
    make = helper.make_node
    nodes = [make("MatMul", ["x", "real"], ["y"]), make("Neg", ["real"], ["n"])]
    model = _model(weight, nodes, {"x": (kind, ["B", 64])}, {"y": (kind, 2), "n": (kind, 2)})
    assert repack(model) == {"product to MatMulNBits, 8 bit": 1}
    x = _activation((3,), 64)
    results = _run(model, x=x)
    _assert_product(results["y"], x, weight.real(), _block(model))
    np.testing.assert_allclose(results["n"], -weight.real(), rtol=1e-6)


def test_bf16_runs_widened() -> None:
    weight = Weight((160, 842), 8, 0)
    weight.scale = weight.scale.astype(ml_dtypes.bfloat16)
    kind = TensorProto.BFLOAT16
    nodes = [helper.make_node("MatMul", ["x", "real"], ["y"])]
    fine = Weight((160, 842), 8, 0)
    model = _model(fine, nodes, {"x": (kind, ["B", 160])}, {"y": (kind, 2)})
    scale = model.graph.initializers["s"]
    scale.const_value = ir.tensor(weight.scale, name="s")
    scale.type = ir.TensorType(ir.DataType.BFLOAT16)
    model.graph[0].outputs[0].type = ir.TensorType(ir.DataType.BFLOAT16)
    repack(model)
    x = _activation((3,), 160)
    _assert_product(_run(widen(model), x=x)["y"], x, weight.real(), _block(model))


def test_the_ort_lowering_packs_and_leaves_its_source() -> None:
    weight, kind = Weight((64, 32), 8, 0), TensorProto.FLOAT
    nodes = [helper.make_node("MatMul", ["x", "real"], ["y"])]
    model = _model(weight, nodes, {"x": (kind, ["B", 64])}, {"y": (kind, 2)})
    before = ir.to_proto(model).SerializeToString()
    lowered = lower(model, "ort")
    assert lowered.counts == {"product to MatMulNBits, 8 bit": 1}
    assert ir.to_proto(model).SerializeToString() == before
    assert lower(model, "native").counts == {}
    x = _activation((3,), 64)
    _assert_product(_run(lowered.model, x=x)["y"], x, weight.real(), _block(lowered.model))
