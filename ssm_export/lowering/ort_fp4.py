"""FP4 weights as int8 codes, exactly: ONNX Runtime's CPU has no kernel for FLOAT4E2M1.

The eight magnitudes of E2M1 (0, 0.5, 1, 1.5, 2, 3, 4, 6) are halves, so twice a value is an integer
and ``value·scale = (2·value)·(scale/2)``. The two levels of scales of NVFP4 become one.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

_FP4 = ir.DataType.FLOAT4E2M1


def as_integers(graph: ir.Graph) -> int:
    """Turn every constant DequantizeLinear of FP4 codes into one of int8 codes, in place.

    Returns:
        how many were turned.
    """
    turned = 0
    for node in list(graph):
        if node.op_type != "DequantizeLinear" or node.domain != "":
            continue
        codes, scale = node.inputs[0], node.inputs[1]
        if codes is None or scale is None or codes.dtype != _FP4 or codes.const_value is None:
            continue
        inner = scale.producer()
        if inner is not None and inner.op_type == "DequantizeLinear":
            _turn(graph, node, codes, inner)
            turned += 1
    return turned


def _turn(graph: ir.Graph, node: ir.Node, codes: ir.Value, inner: ir.Node) -> None:
    """Replace the inputs of ``node``; ``inner`` makes its scales from E4M3 codes."""
    small, whole = inner.inputs[0], inner.inputs[1]
    assert small is not None and whole is not None
    values, low, high = codes.const_value, small.const_value, whole.const_value
    assert values is not None and low is not None and high is not None
    dtype = high.dtype

    def doubled() -> ir.TensorProtocol:
        return ir.tensor((values.numpy().astype(np.float32) * 2).astype(np.int8))

    def halved() -> ir.TensorProtocol:
        factor = high.numpy().astype(np.float32) / 2
        return ir.tensor((low.numpy().astype(np.float32) * factor).astype(dtype.numpy()))

    made = ir.LazyTensor(doubled, ir.DataType.INT8, ir.Shape(values.shape.numpy()))
    scales = ir.LazyTensor(halved, dtype, ir.Shape(low.shape.numpy()))
    node.replace_input_with(0, _initializer(graph, f"{codes.name}.int8", made))
    node.replace_input_with(1, _initializer(graph, f"{codes.name}.int8_scale", scales))
    for value in (codes, inner.outputs[0]):
        if not value.uses():
            _remove(graph, value)


def _initializer(graph: ir.Graph, name: str, tensor: ir.LazyTensor) -> ir.Value:
    if name not in graph.initializers:
        graph.initializers[name] = ir.Value(
            name=name,
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
    return graph.initializers[name]


def _remove(graph: ir.Graph, value: ir.Value) -> None:
    """Remove a constant, or a node and the constants that only it read."""
    node = value.producer()
    if node is None:
        del graph.initializers[str(value.name)]
        return
    inputs = [source for source in node.inputs if source is not None]
    graph.remove(node, safe=True)
    for source in inputs:
        if not source.uses() and source.name in graph.initializers:
            del graph.initializers[str(source.name)]
