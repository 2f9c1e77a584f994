"""A quantized vocabulary that is embedding and head in one, so that TensorRT stores it once.

TensorRT-RTX 1.7 puts such a table into the engine twice when the head is a Gemm with transB, and
once when the head is ``(W·xᵀ)ᵀ`` (77.6 and 39.0 MB for a table of 38.7). Tables in int4 blocks are
stored once as they are, and the other form ends its builder.
"""

from __future__ import annotations

import onnx_ir as ir


def store_once(graph: ir.Graph) -> int:
    """Turn heads that share a quantized table with an embedding into ``(W·xᵀ)ᵀ``, in place.

    Returns:
        how many were turned.
    """
    turned = 0
    for node in list(graph):
        if node.op_type == "Gemm" and _shares_table(node):
            _turn(graph, node)
            turned += 1
    return turned


def _shares_table(gemm: ir.Node) -> bool:
    weight = gemm.inputs[1]
    real = None if weight is None else weight.producer()
    if weight is None or real is None or real.op_type != "DequantizeLinear":
        return False
    plain = len(gemm.inputs) == 2 and gemm.attributes.get_int("transB", 0) == 1
    by_row = real.attributes.get_int("block_size", 0) == 0
    return plain and by_row and any(use.node.op_type == "Gather" for use in weight.uses())


def _turn(graph: ir.Graph, gemm: ir.Node) -> None:
    """``x (rows,M)·W (V,M)ᵀ`` as ``(W·xᵀ)ᵀ``."""
    x, weight, result = gemm.inputs[0], gemm.inputs[1], gemm.outputs[0]
    assert x is not None and weight is not None
    swap = {"perm": [1, 0]}
    before = ir.node("Transpose", [x], swap, name=f"{gemm.name}/input")
    product = ir.node("MatMul", [weight, before.outputs[0]], name=gemm.name)
    after = ir.node("Transpose", [product.outputs[0]], swap, name=f"{gemm.name}/output")
    for node in (before, product):
        node.outputs[0].name = f"{node.name}/{node.op_type}"
        node.outputs[0].type = result.type
    made = after.outputs[0]
    made.name, made.type, made.shape = result.name, result.type, result.shape
    ir.convenience.replace_nodes_and_values(
        graph, gemm, [gemm], [before, product, after], [result], [made]
    )
