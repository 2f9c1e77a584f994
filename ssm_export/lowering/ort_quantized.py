"""Quantized weights in the packing that ONNX Runtime's own operators multiply by.

ONNX Runtime fuses a DequantizeLinear into a MatMul by itself, but into blocks of 32, and neither
into a Gemm (the head) nor into a Gather (the embedding): those widen the whole table at every
call. Measured with ONNX Runtime 1.32, x86-64 with AVX512-VNNI, two threads, one product, ms:

======================  =========  ==========  =========  =========  ========  ========
(K, N), rows            fp32       own fusion  int8, 32   int8, 128  int4, 64  int4, 128
======================  =========  ==========  =========  =========  ========  ========
(768, 3352), 1          0.153      0.062       0.063      0.053      0.064     0.051
(768, 3352), 512        24.5       19.8        18.3       15.8       20.1      16.3
(768, 50288), 1         9.5        2.9         2.5        1.4        1.5       0.9
======================  =========  ==========  =========  =========  ========  ========

So both graphs take the same packing and share it. Its ``accuracy_level`` 4 rounds every row of the
activation to int8 per block; with 8 bits the other levels have no kernel of their own (43 ms where
this takes 0.05). Products with static int8 activations become ``MatMulIntegerToFloat``, which takes
half the time of ``MatMulNBits`` on 512 rows. ONNX Runtime would fuse them so by itself, but in fp32
only (a product in fp16 takes 10 ms that way, and 0.06 here), and where a CPU needs the codes of
weights moved to be exact (``engines/onnxruntime.py``), it does that rightly to these nodes alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from ssm_export.lowering.packing import (
    BITS,
    ConstantWeight,
    block_of,
    constant_weight,
    pack_codes,
    pack_scale,
)

_DOMAIN: Final = "com.microsoft"
_INT8_ACTIVATIONS: Final = 4
"""MatMulNBits's ``accuracy_level`` with integer arithmetic."""


@dataclass(frozen=True)
class _Packed:
    """What MatMulNBits reads: codes (N,K/block,bytes) and scales (N,K/block)."""

    codes: ir.Value
    scale: ir.Value
    inputs: int
    outputs: int
    bits: int
    block: int
    along: int


def repack(model: ir.Model) -> dict[str, int]:
    """Let products and look-ups read quantized weights through ONNX Runtime's operators, in place.

    ``y = x·W`` with codes q and scales s of W, ``W[k,n] = s[n,k//block]·(q[k,n])``, becomes
    ``MatMulNBits`` (MatMul, Gemm with transB, and MatMul with the weight on the left), a Gather of
    rows becomes ``GatherBlockQuantized`` on the same packed tensor. New initializers are named
    after the codes, ``….nbits`` and ``….nbits_scale``; their content is made when it is read.
    Weights of other types and products of Q/DQ activations with int8 weights are left.

    Args:
        model: a graph without ``ssm_export`` calls.

    Returns:
        what was done, and how often.
    """
    return _Repacking(model.graph).run()


class _Repacking:
    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._packed: dict[str, _Packed] = {}
        self._done: Counter[str] = Counter()

    def run(self) -> dict[str, int]:
        found = [node for node in self._graph if _is_standard(node, "DequantizeLinear")]
        weights = [
            (node, weight) for node in found if (weight := constant_weight(node)) is not None
        ]
        for node, weight in weights:
            for reader in [use.node for use in node.outputs[0].uses()]:
                self._rewrite(reader, node.outputs[0], weight)
        for node, _ in weights:
            _remove_unread(self._graph, node)
        if self._done:
            self._graph.opset_imports[_DOMAIN] = 1
        return dict(self._done)

    def _rewrite(self, reader: ir.Node, real: ir.Value, weight: ConstantWeight) -> None:
        if reader.graph is not self._graph or reader.domain != "":
            return
        if reader.op_type == "Gather" and reader.inputs[0] is real:
            self._gather(reader, weight)
        elif reader.op_type == "Gemm" and reader.inputs[1] is real:
            self._gemm(reader, weight)
        elif reader.op_type == "MatMul" and reader.inputs[1] is real:
            self._product(reader, weight)
        elif reader.op_type == "MatMul" and reader.inputs[0] is real:
            self._product_from_left(reader, weight)

    def _product(self, node: ir.Node, weight: ConstantWeight) -> None:
        x = node.inputs[0]
        assert x is not None
        quantized = _quantized_activation(x)
        if quantized is not None and weight.codes.dtype == ir.DataType.INT8 and not weight.block:
            if weight.scale.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
                self._integer_product(node, quantized, weight)
            return
        if (packed := self._pack(weight, along=0)) is not None:
            self._multiply(node, x, packed)

    def _gemm(self, node: ir.Node, weight: ConstantWeight) -> None:
        x, bias = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None
        attributes = node.attributes
        plain = attributes.get_int("transA", 0) == 0 and attributes.get_float("alpha", 1.0) == 1.0
        if bias is not None:
            outputs = weight.codes.shape[1 - attributes.get_int("transB", 0)]  # type: ignore[index]
            fits = bias.shape is not None and list(bias.shape) == [outputs]
            plain = plain and fits and attributes.get_float("beta", 1.0) == 1.0
        if not plain or x is None:
            return
        packed = self._pack(weight, along=attributes.get_int("transB", 0))
        if packed is not None:
            self._multiply(node, x, packed, bias)

    def _product_from_left(self, node: ir.Node, weight: ConstantWeight) -> None:
        """``(W (N,K) · xᵀ)ᵀ``, which TensorRT needs to keep a tied table once, is ``x·Wᵀ``."""
        turned = node.inputs[1]
        before = None if turned is None else turned.producer()
        uses = list(node.outputs[0].uses())
        if before is None or len(uses) != 1 or node.outputs[0].is_graph_output():
            return
        after = uses[0].node
        if not (_swaps(before) and _swaps(after)) or before.inputs[0] is None:
            return
        if (packed := self._pack(weight, along=1)) is not None:
            self._multiply(after, before.inputs[0], packed)
            _remove_unread(self._graph, node)
            _remove_unread(self._graph, before)

    def _multiply(
        self, old: ir.Node, x: ir.Value, packed: _Packed, bias: ir.Value | None = None
    ) -> None:
        made = ir.node(
            "MatMulNBits",
            [x, packed.codes, packed.scale, *([None, None, bias] if bias is not None else [])],
            {
                "K": packed.inputs,
                "N": packed.outputs,
                "bits": packed.bits,
                "block_size": packed.block,
                "accuracy_level": _INT8_ACTIVATIONS,
            },
            domain=_DOMAIN,
            name=old.name,
        )
        self._replace(old, [made])
        self._done[f"product to MatMulNBits, {packed.bits} bit"] += 1

    def _gather(self, node: ir.Node, weight: ConstantWeight) -> None:
        indices, axis = node.inputs[1], node.attributes.get_int("axis", 0) % 2
        if indices is None or indices.shape is None:
            return
        packed = self._pack(weight, along=1 - axis)
        if packed is None:
            return
        name, rank = node.name, len(indices.shape)
        column = ir.node("Unsqueeze", [packed.scale, self._integers(-1)], name=f"{name}/scale")
        rows = ir.node(
            "GatherBlockQuantized",
            [packed.codes, indices, column.outputs[0]],
            {
                "bits": packed.bits,
                "block_size": packed.block,
                "gather_axis": 0,
                "quantize_axis": 2,
            },
            domain=_DOMAIN,
            name=name,
        )
        flat = self._integers(*[0] * rank, -1)
        nodes = [column, rows, ir.node("Reshape", [rows.outputs[0], flat], name=f"{name}/rows")]
        if packed.inputs % packed.block:
            bounds = [self._integers(number) for number in (0, packed.inputs, -1)]
            cut = ir.node("Slice", [nodes[-1].outputs[0], *bounds], name=f"{name}/cut")
            nodes.append(cut)
        if axis == 1:
            front = {"perm": [rank, *range(rank)]}
            turned = ir.node("Transpose", [nodes[-1].outputs[0]], front, name=f"{name}/turned")
            nodes.append(turned)
        self._replace(node, nodes)
        self._done[f"Gather to GatherBlockQuantized, {packed.bits} bit"] += 1

    def _integer_product(self, node: ir.Node, codes: ir.Node, weight: ConstantWeight) -> None:
        """A product of int8 codes in fp32, with casts around it where the graph is in fp16.

        The activation's codes move up by 128: the kernel for signed times signed is 100× slower.
        """
        x, step, name = codes.inputs[0], self._wide(codes.inputs[1]), node.name
        zero = self._initializer(ir.tensor(np.array(128, np.uint8), name="constant/uint8_128"))
        narrow = weight.scale.dtype == ir.DataType.FLOAT16
        made: list[ir.Node] = []
        if narrow:
            made.append(ir.node("Cast", [x], {"to": int(ir.DataType.FLOAT)}, name=f"{name}/wide"))
            x = made[-1].outputs[0]
        made.append(ir.node("QuantizeLinear", [x, step, zero], name=f"{name}/codes"))
        product = ir.node(
            "MatMulIntegerToFloat",
            [made[-1].outputs[0], weight.codes, step, self._wide(weight.scale), zero],
            domain=_DOMAIN,
            name=name,
        )
        made.append(product)
        if narrow:
            down = {"to": int(ir.DataType.FLOAT16)}
            made.append(ir.node("Cast", [product.outputs[0]], down, name=f"{name}/narrow"))
        through = node.inputs[0]
        self._replace(node, made)
        self._done["product to MatMulIntegerToFloat"] += 1
        reader = None if through is None else through.producer()
        if reader is not None:
            _remove_unread(self._graph, reader)
            _remove_unread(self._graph, codes)

    def _pack(self, weight: ConstantWeight, along: int) -> _Packed | None:
        """The packed form of a weight whose inputs lie along an axis; None where it has none."""
        codes = weight.codes
        assert codes.name is not None and codes.const_value is not None
        if codes.name in self._packed:
            packed = self._packed[codes.name]
            return packed if packed.along == along else None
        block = block_of(weight, along)
        scales = weight.scale.const_value
        assert scales is not None and codes.dtype is not None
        if block is None:
            return None
        sizes = codes.const_value.shape.numpy()
        inputs, outputs = sizes[along], sizes[1 - along]
        bits, blocks = BITS[codes.dtype], -(-inputs // block)
        tensor, own = codes.const_value, weight.block

        def packed_codes() -> ir.TensorProtocol:
            return ir.tensor(pack_codes(tensor.numpy(), along, bits, block), name=names[0])

        def packed_scale() -> ir.TensorProtocol:
            array = pack_scale(scales.numpy(), along, (outputs, blocks), own // block)
            return ir.tensor(array, dtype=scales.dtype, name=names[1])

        names = f"{codes.name}.nbits", f"{codes.name}.nbits_scale"
        shape = ir.Shape([outputs, blocks, block * bits // 8])
        made = _Packed(
            self._initializer(ir.LazyTensor(packed_codes, ir.DataType.UINT8, shape, name=names[0])),
            self._initializer(
                ir.LazyTensor(
                    packed_scale, scales.dtype, ir.Shape([outputs, blocks]), name=names[1]
                )
            ),
            inputs,
            outputs,
            bits,
            block,
            along,
        )
        self._packed[codes.name] = made
        return made

    def _initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        name = str(tensor.name)
        if name not in self._graph.initializers:
            self._graph.initializers[name] = ir.Value(
                name=name,
                shape=ir.Shape(tensor.shape.numpy()),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
        return self._graph.initializers[name]

    def _integers(self, *numbers: int) -> ir.Value:
        name = f"constant/int64_{'_'.join(map(str, numbers))}"
        return self._initializer(ir.tensor(np.array(numbers, np.int64), name=name))

    def _wide(self, scale: ir.Value | None) -> ir.Value:
        assert scale is not None and scale.const_value is not None
        if scale.dtype == ir.DataType.FLOAT:
            return scale
        array = scale.const_value.numpy().astype(np.float32)
        return self._initializer(ir.tensor(array, name=f"{scale.name}.fp32"))

    def _replace(self, old: ir.Node, made: list[ir.Node]) -> None:
        """Put nodes in the place of one; the last one's output takes its name, type and shape."""
        before, result = old.outputs[0], made[-1].outputs[0]
        for node in made[:-1]:
            node.outputs[0].name = f"{node.name}/{node.op_type}"
        result.name, result.type, result.shape = before.name, before.type, before.shape
        ir.convenience.replace_nodes_and_values(
            self._graph, old, [old], made, old.outputs, made[-1].outputs
        )


def _is_standard(node: ir.Node | None, op: str) -> bool:
    return node is not None and node.domain == "" and node.op_type == op


def _swaps(node: ir.Node) -> bool:
    perm = node.attributes.get_ints("perm", [1, 0])
    return _is_standard(node, "Transpose") and list(perm or []) == [1, 0]


def _quantized_activation(value: ir.Value) -> ir.Node | None:
    """The QuantizeLinear to int8 with one scale and a zero point that a value went through."""
    real = value.producer()
    if not _is_standard(real, "DequantizeLinear") or real is None or real.inputs[0] is None:
        return None
    codes = real.inputs[0].producer()
    if not _is_standard(codes, "QuantizeLinear") or codes is None or len(codes.inputs) < 3:
        return None
    scale, zero = codes.inputs[1], codes.inputs[2]
    if scale is None or scale.const_value is None or scale.const_value.size != 1:
        return None
    return codes if zero is not None and zero.dtype == ir.DataType.INT8 else None


def _remove_unread(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a node that nobody reads, and constants that only it read."""
    output = node.outputs[0]
    if node.graph is None or output.uses() or output.is_graph_output():
        return
    inputs = [value for value in node.inputs if value is not None]
    graph.remove(node, safe=True)
    for value in inputs:
        name = str(value.name)
        if name in graph.initializers and not value.uses() and not value.is_graph_input():
            del graph.initializers[name]
