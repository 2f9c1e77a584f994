"""What ONNX Runtime's CPU adds to a weight-only plan: inputs rounded to int8, block by block.

``MatMulNBits`` at ``accuracy_level`` 4, the only one that is fast, rounds each row of its input to
int8 with one scale per block of the weight. A simulation of the plan alone knows nothing of that,
so the gates of this runner come from a simulation that has it too, in float operators.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from ssm_export.lowering.packing import packed_block
from ssm_export.quantization.apply import Writer, typed_constant
from ssm_export.quantization.plan import Plan
from ssm_export.quantization.recipe import FLOAT
from ssm_export.quantization.tensors import Tensors

CODES: Final = 127.0
_PACKED: Final = ("int8", "int4", "nvfp4")
_LEAST: Final = 1e-30


def round_inputs(model: ir.Model, plan: Plan, tensors: Tensors) -> None:
    """Round what products of a simulated piece multiply, in place.

    Args:
        model: a piece with the plan's simulation in it.
        plan: the plan; products whose input it quantizes already are left.
        tensors: names the nodes.
    """
    writer = Writer(model.graph)
    rounded = {node for one in plan.activations if one.scheme != FLOAT for node, _ in one.uses}
    for key in plan.weights.values():
        use = tensors.site(key.site).product
        if key.scheme not in _PACKED or use is None or use.node in rounded:
            continue
        node = writer.nodes.get(use.node)
        source = None if node is None else node.inputs[0]
        if node is None or source is None:
            continue
        rounded_input = _by_block(writer, source, f"{use.node}/by_block", key.block)
        node.replace_input_with(0, rounded_input)


def _by_block(writer: Writer, value: ir.Value, name: str, block: int) -> ir.Value:
    """``x → round(x / s)·s`` with ``s = max|x| / 127`` of each block of its last axis.

    Args:
        writer: of the graph.
        value: (…,K).
        name: of the new nodes.
        block: of the weight; 0 where it has a scale per output.
    """
    assert value.shape is not None and value.dtype is not None
    dtype, shape = value.dtype, list(value.shape)
    width = int(shape[-1])  # type: ignore[arg-type]  # channels are static
    block = block or packed_block(width)
    count = -(-width // block)
    others = len(shape) - 1

    def integers(*numbers: int) -> ir.Value:
        label = "_".join(str(number) for number in numbers)
        return writer.constant(f"constant/int64s_{label}", np.array(numbers, np.int64))

    def number(label: str, content: float) -> ir.Value:
        return typed_constant(writer, f"constant/{label}", np.array(content), dtype)

    whole = value
    if count * block != width:
        ends = integers(*[0] * (2 * others + 1), count * block - width)
        padded = ir.Shape([*shape[:-1], count * block])
        value = writer.after(value, "Pad", [value, ends], name, shape=padded)
    blocks = ir.Shape([*shape[:-1], count, block])
    to, back = integers(*[0] * others, count, block), integers(*[0] * others, count * block)
    cut = writer.after(value, "Reshape", [value, to], f"{name}/cut", shape=blocks, allowzero=0)
    size = writer.after(cut, "Abs", [cut], name)
    top = writer.after(size, "ReduceMax", [size, integers(-1)], name, keepdims=1)
    step = writer.after(top, "Mul", [top, number("one_code", 1 / CODES)], name)
    step = writer.after(step, "Max", [step, number("least_step", _LEAST)], name)
    codes = writer.after(step, "Div", [cut, step], name, shape=blocks)
    codes = writer.after(codes, "Round", [codes], name)
    real = writer.after(codes, "Mul", [codes, step], f"{name}/real")
    result = writer.after(real, "Reshape", [real, back], f"{name}/whole", shape=value.shape)
    if count * block != width:
        bounds = [integers(0), integers(width), integers(-1)]
        result = writer.after(result, "Slice", [result, *bounds], name, shape=whole.shape)
    return result
