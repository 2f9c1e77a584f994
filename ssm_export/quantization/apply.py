"""A plan put into a graph: simulated in floating point, or as typed Q/DQ for the runtimes.

Both go through the same places. The simulation replaces weights by what their codes stand for and
rounds activations with Div, Round, Clip and Mul (a Cast through E4M3 for fp8), so it shares no
operator with the typed graph and is what the typed graph is checked against.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import onnx_ir as ir

from ssm_export.quantization.plan import ActivationPlan, Plan
from ssm_export.quantization.recipe import FLOAT
from ssm_export.quantization.rotation import hadamard
from ssm_export.quantization.schemes import SCHEMES, QuantizedTensor
from ssm_export.quantization.sites import WeightSite
from ssm_export.quantization.stream import Edit
from ssm_export.quantization.tensors import Tensors

_E4M3: Final = ir.DataType.FLOAT8E4M3FN


class Spelling(Protocol):
    """How codes are written in a graph."""

    def weight(self, writer: Writer, site: WeightSite, tensor: QuantizedTensor) -> None:
        """Let the nodes of a site read quantized weights."""
        ...

    def round_trip(self, writer: Writer, value: ir.Value, plan: ActivationPlan) -> ir.Value:
        """A value to its codes and back."""
        ...


class Writer:
    """Puts nodes into a graph behind the values that they read.

    Args:
        graph: the graph; it is changed in place.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.nodes = {node.name: node for node in graph}
        self.values = {value.name: value for value in graph.inputs}
        self.values |= {value.name: value for node in graph for value in node.outputs}

    def constant(self, name: str, array: np.ndarray, dtype: ir.DataType | None = None) -> ir.Value:
        """An initializer of a name; an equal name is an equal content."""
        if name not in self.graph.initializers:
            tensor = ir.tensor(array, dtype=dtype, name=name) if dtype else ir.tensor(array)
            tensor.name = name
            self.initializer(name, tensor)
        return self.graph.initializers[name]

    def initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """Add an initializer."""
        value = ir.Value(
            name=name,
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.initializers[name] = value
        return value

    def after(
        self,
        source: ir.Value,
        op: str,
        inputs: Sequence[ir.Value],
        name: str,
        *,
        dtype: ir.DataType | None = None,
        shape: ir.Shape | None = None,
        **attributes: int,
    ) -> ir.Value:
        """A node right behind the one that makes ``source``, or at the head of the graph."""
        made = ir.node(op, inputs, attributes=attributes or None, name=f"{name}/{op}")
        result = made.outputs[0]
        result.name = f"{name}/{op}"
        result.type = ir.TensorType(dtype) if dtype is not None else source.type
        result.shape = shape if shape is not None else source.shape
        producer = source.producer()
        if producer is not None:
            self.graph.insert_after(producer, made)
        elif len(self.graph):
            self.graph.insert_before(self.graph[0], made)
        else:
            self.graph.append(made)
        self.nodes[made.name] = made
        self.values[result.name] = result
        return result


def write_plan(model: ir.Model, plan: Plan, tensors: Tensors, spelling: Spelling) -> bool:
    """Put a plan into a graph, in place.

    Args:
        model: a canonical graph or a piece of one; what the plan says of other nodes is left.
        plan: what becomes of every tensor.
        tensors: the codes.
        spelling: :class:`Simulated` or :class:`~ssm_export.quantization.typed.Typed`.

    Returns:
        whether anything was changed.
    """
    writer = Writer(model.graph)
    changed = False
    for activation in plan.activations:
        if activation.value in writer.values and activation.uses[0][0] in writer.nodes:
            _activation(writer, activation, spelling)
            changed = True
    for key in plan.weights.values():
        site = tensors.site(key.site)
        if site.weight in model.graph.initializers:
            spelling.weight(writer, site, tensors.get(key))
            changed = True
    return changed


def _activation(writer: Writer, plan: ActivationPlan, spelling: Spelling) -> None:
    source = value = writer.values[plan.value]
    assert source.dtype is not None
    name = base_name(plan)
    if plan.rotate:
        value = _rotated(writer, value, plan)
    if plan.scheme != FLOAT and plan.factors is not None:
        factors = plan.factors.astype(np.float32)
        up = typed_constant(writer, f"{name}/groups", factors, source.dtype)
        if not (factors == 1).all():
            down = typed_constant(writer, f"{name}/groups_inverse", 1 / factors, source.dtype)
            value = writer.after(value, "Mul", [value, down], f"{name}/by_group")
        value = spelling.round_trip(writer, value, plan)
        value = writer.after(value, "Mul", [value, up], f"{name}/of_group")
    elif plan.scheme != FLOAT:
        value = spelling.round_trip(writer, value, plan)
    for node, position in plan.uses:
        writer.nodes[node].replace_input_with(position, value)


def base_name(plan: ActivationPlan) -> str:
    """What the nodes of a plan are named after: one value may be quantized in two ways."""
    turned = f"/rotated_{plan.rotate}" if plan.rotate else ""
    return f"{plan.value}{turned}/{plan.scheme}"


def _rotated(writer: Writer, value: ir.Value, plan: ActivationPlan) -> ir.Value:
    """``value (…,D)`` times the block-diagonal Hadamard matrix, as one small MatMul."""
    assert value.dtype is not None and value.shape is not None
    size, shape = plan.rotate, list(value.shape)
    width = int(shape[-1])  # type: ignore[arg-type]  # channels are static
    name = f"{plan.value}/rotate"
    matrix = typed_constant(writer, f"constant/hadamard_{size}", hadamard(size), value.dtype)
    if width == size:
        return writer.after(value, "MatMul", [value, matrix], name)
    split, joined = [0] * (len(shape) - 1) + [width // size, size], [0] * (len(shape) - 1) + [width]
    blocks = ir.Shape([*shape[:-1], width // size, size])
    to = writer.constant(f"constant/blocks_{'_'.join(map(str, split))}", np.array(split, np.int64))
    back = writer.constant(
        f"constant/shape_{'_'.join(map(str, joined))}", np.array(joined, np.int64)
    )
    cut = writer.after(value, "Reshape", [value, to], f"{name}/cut", shape=blocks, allowzero=0)
    turned = writer.after(cut, "MatMul", [cut, matrix], name)
    return writer.after(turned, "Reshape", [turned, back], name, shape=value.shape, allowzero=0)


def typed_constant(writer: Writer, name: str, array: np.ndarray, dtype: ir.DataType) -> ir.Value:
    """A float constant in the type of the activations around it."""
    return writer.constant(name, array.astype(dtype.numpy()), dtype)


def simulated(plan: Plan, tensors: Tensors) -> Edit:
    """The edit that puts the simulation of a plan into a piece of a model."""
    return lambda model: write_plan(model, plan, tensors, Simulated())


class Simulated:
    """Codes as the floating-point numbers that they stand for."""

    def weight(self, writer: Writer, site: WeightSite, tensor: QuantizedTensor) -> None:
        value = writer.graph.initializers[site.weight]
        assert value.dtype is not None
        kind = value.dtype.numpy()
        value.const_value = ir.tensor(tensor.dequantized().astype(kind), name=site.weight)

    def round_trip(self, writer: Writer, value: ir.Value, plan: ActivationPlan) -> ir.Value:
        assert value.dtype is not None
        name, dtype = base_name(plan), value.dtype
        scheme = SCHEMES[plan.scheme]

        def number(name: str, content: float) -> ir.Value:
            return typed_constant(writer, name, np.array(content), dtype)

        scale = number(f"{name}/scale", plan.scale)
        value = writer.after(value, "Div", [value, scale], name)
        # ONNX saturates to -128 on the lower side; codes of activations are not symmetric.
        lowest = -scheme.maximum - (1 if scheme.integer else 0)
        low, high = number(f"{name}/low", lowest), number(f"{name}/high", scheme.maximum)
        if scheme.integer:
            value = writer.after(value, "Round", [value], name)
        value = writer.after(value, "Clip", [value, low, high], name)
        if not scheme.integer:
            value = writer.after(
                value, "Cast", [value], f"{name}/narrow", dtype=_E4M3, to=int(_E4M3)
            )
            value = writer.after(value, "Cast", [value], name, dtype=dtype, to=int(dtype))
        return writer.after(value, "Mul", [value, scale], name)
