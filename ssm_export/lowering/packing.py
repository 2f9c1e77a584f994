"""The packing of ``MatMulNBits``: unsigned codes of a row's blocks, low bits first.

Facts from ONNX Runtime's operator documentation (``com.microsoft::MatMulNBits``): codes
(N,K/block,block·bits/8), scales (N,K/block), a block is a power of two and 16 at least, the last
one of a row is padded, and without zero points the code of 0 is half the range, 8 or 128.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

BITS: Final = {ir.DataType.INT8: 8, ir.DataType.INT4: 4}
"""Types of codes that can be packed."""

_BLOCKS: Final = (128, 64, 32, 16)
"""Blocks of a weight that has none of its own; a power of two, 16 at least."""
_LARGEST_BLOCK: Final = 256
_PADDING: Final = 8
"""At most 1/8 of a row may be padding, unless the smallest block needs more."""


@dataclass(frozen=True)
class ConstantWeight:
    """A constant DequantizeLinear: codes of rank 2, scales, and the axis that these lie along."""

    codes: ir.Value
    scale: ir.Value
    axis: int
    block: int


def constant_weight(node: ir.Node) -> ConstantWeight | None:
    """The weight that a DequantizeLinear reads: constant, of rank 2, and symmetric."""
    codes, scale = node.inputs[0], node.inputs[1]
    if codes is None or scale is None or codes.const_value is None or scale.const_value is None:
        return None
    if codes.dtype not in BITS or len(codes.const_value.shape) != 2:
        return None
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is not None and (zero.const_value is None or zero.const_value.numpy().any()):
        return None
    if node.attributes.get_int("output_dtype", 0) not in (0, scale.dtype):
        return None
    block = node.attributes.get_int("block_size", 0) or 0
    return ConstantWeight(codes, scale, (node.attributes.get_int("axis", 1) or 0) % 2, block)


def block_of(weight: ConstantWeight, along: int) -> int | None:
    """The block to pack a weight in whose inputs lie along an axis; None where it has no packing.

    A weight with blocks keeps them, or a power of two that divides them; one with a scale per
    output takes the largest block that pads little.
    """
    assert weight.codes.const_value is not None and weight.scale.const_value is not None
    if weight.block:
        block = min(weight.block & -weight.block, _LARGEST_BLOCK)
        return block if weight.axis == along and block >= _BLOCKS[-1] else None
    if weight.scale.const_value.size > 1 and weight.axis == along:
        return None
    return packed_block(int(weight.codes.const_value.shape.numpy()[along]))


def packed_block(inputs: int) -> int:
    """The block of a row of ``inputs`` that has one scale."""
    little = (block for block in _BLOCKS if (-inputs % block) * _PADDING <= inputs)
    return next(little, _BLOCKS[-1])


def pack_codes(codes: np.ndarray, along: int, bits: int, block: int) -> np.ndarray:
    """Signed codes as unsigned ones (N,K/block,bytes), low bits first, padded by zeros."""
    rows = codes.astype(np.int8, copy=False)
    rows = rows.T if along == 0 else rows
    outputs, inputs = rows.shape
    blocks, zero = -(-inputs // block), np.uint8(1 << (bits - 1))
    packed = np.full((outputs, blocks * block), zero, np.uint8)
    np.add(rows.view(np.uint8), zero, out=packed[:, :inputs])
    if bits == 4:
        packed = packed[:, 0::2] | (packed[:, 1::2] << 4)
    return packed.reshape(outputs, blocks, block * bits // 8)


def pack_scale(scale: np.ndarray, along: int, shape: tuple[int, int], repeats: int) -> np.ndarray:
    """Scales of outputs, or of blocks of ``repeats`` packed ones, as (N,K/block)."""
    if scale.ndim < 2:
        return np.ascontiguousarray(np.broadcast_to(scale.reshape(-1, 1), shape))
    rows = scale.T if along == 0 else scale
    return np.ascontiguousarray(np.repeat(rows, repeats, axis=1)[:, : shape[1]])
