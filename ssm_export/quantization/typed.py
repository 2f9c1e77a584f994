"""Codes in their own types behind explicit QuantizeLinear and DequantizeLinear.

Only forms that TensorRT 10.3 and later, TensorRT-RTX and ONNX Runtime read from the same file:
zero points are int8 zeros (ONNX Runtime does not fuse a product without one), a weight is read
through one DequantizeLinear, and scales have the type of the activations around them.
"""

from __future__ import annotations

from typing import Final

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.quantization.apply import Writer, base_name, typed_constant
from ssm_export.quantization.plan import ActivationPlan, Plan
from ssm_export.quantization.schemes import QuantizedTensor
from ssm_export.quantization.sites import GATHER, WeightSite

OPSET: Final = 21
"""The first with int4 and blocked DequantizeLinear; TensorRT reads it from 10.3 on."""
_FP4_OPSET: Final = 23
_IR_VERSIONS: Final = {OPSET: 10, _FP4_OPSET: 11}
_ACTIVATION_TYPES: Final = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}


def raise_opset(model: ir.Model, plan: Plan) -> None:
    """Give a graph the opset that the plan's types need, in place; its bodies follow it."""
    fp4 = any(key.scheme == "nvfp4" for key in plan.weights.values())
    opset = _FP4_OPSET if fp4 else OPSET
    model.graph.opset_imports[""] = opset
    model.ir_version = max(model.ir_version, _IR_VERSIONS[opset])


class Typed:
    """Writes codes as ONNX types."""

    def weight(self, writer: Writer, site: WeightSite, tensor: QuantizedTensor) -> None:
        graph = writer.graph
        old = graph.initializers[site.weight]
        assert old.dtype is not None
        readers = [writer.nodes[use.node] for use in site.uses if use.node in writer.nodes]
        codes = writer.initializer(f"{site.weight}.{tensor.scheme}", _codes(tensor))
        first = min(readers, key=list(graph).index)
        scale = _scale(writer, first, site, tensor, old.dtype)
        attributes: dict[str, int] = {}
        if tensor.scale.ndim:
            attributes["axis"] = tensor.axis
        if tensor.block:
            attributes["block_size"] = tensor.block
        real = _before(first, writer, [codes, scale], site.name, old.dtype, attributes)
        real.shape = ir.Shape(list(site.shape))
        for node in readers:
            node.replace_input_with(0 if node.op_type == GATHER else 1, real)
        if not old.uses():
            del graph.initializers[site.weight]

    def round_trip(self, writer: Writer, value: ir.Value, plan: ActivationPlan) -> ir.Value:
        assert value.dtype is not None
        name, kind = base_name(plan), _ACTIVATION_TYPES[plan.scheme]
        scale = typed_constant(writer, f"{name}/scale", np.array(plan.scale), value.dtype)
        zero = np.zeros((), kind.numpy())
        zero_point = writer.constant(f"constant/zero_{kind.name.lower()}", zero, kind)
        around = [scale, zero_point]
        codes = writer.after(value, "QuantizeLinear", [value, *around], name, dtype=kind)
        return writer.after(codes, "DequantizeLinear", [codes, *around], name, dtype=value.dtype)


def _codes(tensor: QuantizedTensor) -> ir.TensorProtocol:
    """The codes in their own type; those of int4 are packed when they are written."""
    if tensor.scheme != "int4":
        return ir.tensor(tensor.values)
    return ir.LazyTensor(
        lambda: ir.Tensor(tensor.values.astype(ml_dtypes.int4), dtype=ir.DataType.INT4),
        dtype=ir.DataType.INT4,
        shape=ir.Shape(list(tensor.values.shape)),
    )


def _scale(
    writer: Writer, before: ir.Node, site: WeightSite, tensor: QuantizedTensor, dtype: ir.DataType
) -> ir.Value:
    """The scales as a constant; those of nvfp4 are codes themselves, under one global scale."""
    name = f"{site.weight}.scale"
    if tensor.scheme != "nvfp4":
        stored = np.asarray(tensor.scale, np.float32).astype(dtype.numpy())
        if not (stored.astype(np.float32) > 0).all():
            raise SsmExportError(
                errors.SCALE_UNDERFLOW,
                f"a scale of the weight is 0 in {dtype.name.lower()}",
                where=site.name,
                fix="export the float bundle with --precision bf16 or fp32",
            )
        return typed_constant(writer, name, np.asarray(tensor.scale, np.float32), dtype)
    codes = writer.initializer(name, ir.tensor(tensor.scale))
    factor = np.array(tensor.global_scale, np.float32)
    whole = typed_constant(writer, f"{site.weight}.global_scale", factor, dtype)
    real = _before(before, writer, [codes, whole], f"{site.name}/scale", dtype, {})
    real.shape = ir.Shape(list(tensor.scale.shape))
    return real


def _before(
    node: ir.Node,
    writer: Writer,
    inputs: list[ir.Value],
    name: str,
    dtype: ir.DataType,
    attributes: dict[str, int],
) -> ir.Value:
    """A DequantizeLinear in front of a node."""
    made = ir.node("DequantizeLinear", inputs, attributes, name=f"{name}/DequantizeLinear")
    result = made.outputs[0]
    result.name, result.type = f"{name}/DequantizeLinear", ir.TensorType(dtype)
    writer.graph.insert_before(node, made)
    return result
