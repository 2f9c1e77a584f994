"""Graphs of one operator call, their inputs, and the gates that results pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from ssm_export.lowering import attach_bodies
from ssm_export.ops import OpSpec, Tolerance
from ssm_export.ops.spec import DOMAIN

NUMPY = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int32": np.dtype(np.int32),
}
PRECISION = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
FULL = {"T": "float32", "S": "float32"}


def rounded(
    spec: OpSpec, inputs: Mapping[str, np.ndarray], types: Mapping[str, str] = FULL
) -> dict[str, np.ndarray]:
    """Generated inputs in the types of a call."""
    kinds = {port.name: NUMPY[types.get(port.type, port.type)] for port in spec.inputs}
    return {name: np.asarray(value).astype(kinds[name]) for name, value in inputs.items()}


def make_call(
    spec: OpSpec, inputs: Mapping[str, np.ndarray], form: str, **attributes: Any
) -> ir.Model:
    """A canonical graph of one call that takes exactly ``inputs``, with its body.

    The batch is symbolic, and so is time unless the form is ``step``.
    """
    symbols: dict[str, str | int] = {"B": "batch", "T": 1 if form == "step" else "time"}
    values: list[ir.Value | None] = []
    for port in spec.inputs:
        if port.name not in inputs:
            values.append(None)
            continue
        array = inputs[port.name]
        shape = [symbols.get(a, n) for a, n in zip(port.axes, array.shape, strict=True)]
        kind = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        values.append(ir.Value(name=port.name, type=kind, shape=ir.Shape(shape)))
    node = ir.node(
        spec.name,
        values,
        attributes=attributes or None,
        domain=DOMAIN,
        num_outputs=len(spec.outputs),
        name=f"layer/{spec.name}",
    )
    kinds = {p.type: v.type for p, v in zip(spec.inputs, values, strict=False) if v is not None}
    for value, port in zip(node.outputs, spec.outputs, strict=True):
        value.name, value.type = f"{port.name}_out", kinds[port.type]
        value.shape = ir.Shape([None] * len(port.axes))
    graph = ir.Graph(
        [value for value in values if value is not None],
        node.outputs,
        nodes=[node],
        opset_imports={"": 20, DOMAIN: 1},
        name=spec.name,
    )
    return attach_bodies(ir.Model(graph, ir_version=10), form)


def proto(model: ir.Model) -> onnx.ModelProto:
    """The model as a proto that passes ONNX's full check."""
    made = ir.to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    return made


def session(model: ir.Model, **entries: Any) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU with two threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    for name, value in entries.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(
        proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(model: ir.Model, spec: OpSpec, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of one call by their port names."""
    results = session(model).run(None, dict(feeds))
    return dict(zip([port.name for port in spec.outputs], results, strict=True))


def nmse(actual: np.ndarray, expected: np.ndarray) -> float:
    """Σ(y−r)² / Σr²; 0 where both are zero everywhere."""
    error = float(np.square(actual.astype(np.float64) - expected).sum())
    return error and error / max(float(np.square(expected).sum()), 1e-300)


def assert_within(
    actual: np.ndarray, expected: np.ndarray, tolerance: Tolerance, what: str = ""
) -> None:
    """Every element within the tolerance, and the mean-square error too."""
    assert actual.shape == expected.shape, what
    difference = np.abs(actual.astype(np.float64) - expected)
    bound = tolerance.absolute + tolerance.relative * np.abs(expected)
    assert np.isfinite(difference).all(), f"{what}: not finite"
    worst = float((difference - bound).max(initial=-np.inf))
    assert worst <= 0.0, f"{what}: an element is {worst:.3g} beyond its tolerance"
    assert nmse(actual, expected) <= tolerance.nmse, what


def assert_correct(
    spec: OpSpec,
    results: Mapping[str, np.ndarray],
    feeds: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any] | None = None,
    types: Mapping[str, str] = FULL,
) -> None:
    """Every output agrees with the float64 reference on the same rounded inputs."""
    expected = spec.reference(dict(feeds), {**spec.attributes, **(attributes or {})})
    for port in spec.outputs:
        tolerance = spec.tolerances[PRECISION[types[port.type]]]
        assert_within(results[port.name], expected[port.name], tolerance, port.name)
