"""What the function bodies share: casts, softplus, masks, chunks and the Scan over them.

Every function takes the onnxscript builder ``op`` first and emits standard operators of opset 20.
The onnx packages are imported by the functions that use them: the contracts of the operators and
the GPU kernels need none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

LABEL: Final = "ssm_export.label"
"""Key of ``ir.Value.meta`` under which a body leaves the name it wants for a value."""

Op = Any
Value = Any

TO_THE_END: Final = 2**63 - 1
"""The end of a Slice that goes to the end of its axis."""

_LOG1P: Final = (2.000000008, 0.6666631594, 0.4002485372, 0.2796141883, 0.2817465727)
"""Coefficients of ``2·atanh(s)/s`` in powers of ``s²``: minimax over ``s`` in (0, 1/3]."""


def _type_number(name: str) -> int:
    """ONNX's number of a type name: 1 for ``float32``."""
    import onnx_ir as ir

    return int(ir.DataType[{"float32": "FLOAT"}.get(name, name.upper())])


def label(value: Value, name: str) -> Value:
    """Ask for a value to be called ``name`` in the function."""
    value.meta[LABEL] = name
    return value


def typed(value: Value) -> Value:
    """Note that a value is fp32 where inference cannot tell, so that literals beside it are."""
    import onnx_ir as ir

    value.type = ir.TensorType(ir.DataType.FLOAT)
    return value


def to_fp32(op: Op, value: Value, type_name: str) -> Value:
    """``value`` in fp32; no node when its type, ``type_name``, is fp32 already."""
    if value is None or type_name == "float32":
        return value
    return label(op.Cast(value, to=_type_number("float32")), f"{value.name}_fp32")


def from_fp32(op: Op, value: Value, type_name: str) -> Value:
    """An fp32 value in the type ``type_name``; no node when that is fp32."""
    if type_name == "float32":
        return value
    return op.Cast(value, to=_type_number(type_name))


def silu(op: Op, x: Value) -> Value:
    """``x · sigmoid(x)``; ONNX Runtime fuses the two nodes into one."""
    return op.Mul(x, op.Sigmoid(x))


def softplus(op: Op, x: Value) -> Value:
    """``log(1 + exp(x))`` to a relative error of 1e-6 for every x, also far below zero.

    ``max(x, 0) + log1p(e)`` with ``e = exp(−|x|)`` and ``log1p(e) = 2·atanh(s)``,
    ``s = e / (2 + e) ≤ 1/3``, as a polynomial in ``s²``. Runtimes' own Softplus is up to five
    times slower than these fifteen cheap nodes.
    """
    e = op.Exp(op.Neg(op.Abs(x)))
    s = op.Div(e, op.Add(e, 2.0))
    square = op.Mul(s, s)
    series = op.Mul(square, _LOG1P[-1])
    for coefficient in _LOG1P[-2:0:-1]:
        series = op.Mul(op.Add(series, coefficient), square)
    return op.Add(op.Relu(x), op.Mul(op.Add(series, _LOG1P[0]), s))


def time_step(op: Op, dt: Value, bias: Value | None, attributes: Any) -> Value:
    """``clamp(softplus(dt + bias), dt_min, dt_max)`` in fp32, as far as the attributes ask."""
    if bias is not None:
        dt = op.Add(dt, bias)
    if attributes["dt_softplus"]:
        dt = softplus(op, dt)
    return clamp_step(op, dt, attributes)


def clamp_step(op: Op, delta: Value, attributes: Any) -> Value:
    """``clamp(delta, dt_min, dt_max)``; no node for a bound that cannot bind."""
    low = float(attributes.get("dt_min", -np.inf))
    high = float(attributes.get("dt_max", np.inf))
    lowest = 0.0 if attributes["dt_softplus"] else -np.inf
    if low > lowest:
        delta = op.Max(delta, low)
    if high < np.inf:
        delta = op.Min(delta, high)
    return label(delta, "delta")


def tensor(array: np.ndarray) -> Any:
    """An array as the value of a Constant node."""
    import onnx_ir as ir

    return ir.tensor(array)


def as_int64(op: Op, value: Value) -> Value:
    """An integer tensor as int64."""
    return op.Cast(value, to=_type_number("int64"))


def length_of(op: Op, x: Value, axis: int = 1) -> Value:
    """The size of one axis as an int64 tensor of one element."""
    return label(op.Shape(x, start=axis, end=axis + 1), "length")


def valid_positions(op: Op, lengths: Value, length: Value) -> Value:
    """(B,T) bool: whether position t lies before the row's length."""
    time = op.Range(0, op.Squeeze(length, [0]), 1)
    rows = op.Unsqueeze(as_int64(op, lengths), [1])
    return label(op.Less(time, rows), "valid")


def has_token(op: Op, lengths: Value, axes: list[int]) -> Value:
    """For one token per row: whether the row has it, (B,) with ``axes`` of size 1 put in."""
    return label(op.Greater(op.Unsqueeze(as_int64(op, lengths), axes), 0), "valid")


def keep(op: Op, mask: Value, x: Value) -> Value:
    """``x`` where the mask holds, else an exact zero, whatever ``x`` is there (NaN too)."""
    return op.Where(mask, x, 0.0)


def scan(
    op: Op,
    body: Callable[..., Any],
    states: Sequence[Value],
    sequences: Sequence[Value],
    names: Sequence[str],
    outputs: int,
) -> Any:
    """ONNX ``Scan`` over axis 0 of the sequences.

    Args:
        op: the builder.
        body: ``body(op, *states, *slices) -> (*states, *outputs)``, all fp32.
        states: values that are carried from slice to slice.
        sequences: values that are sliced along axis 0.
        names: of the states, then of the slices, then of the stacked outputs.
        outputs: how many stacked outputs there are.

    Returns:
        the states after the last slice, and the stacked outputs.
    """
    import onnx_ir as ir

    kind = ir.TensorType(ir.DataType.FLOAT)
    taken, given = len(states) + len(sequences), len(states) + outputs
    inner = [ir.Value(name=f"{name}_chunk", type=kind) for name in names[:taken]]
    results = [f"{name}_next" for name in names[: len(states)]]
    results += [f"{name}_chunk" for name in names[taken:]]
    outer = [ir.Value(name=name, type=kind) for name in results]
    graph = op.builder.subgraph(body, inner, outer, name="over_chunks")
    for value, name in zip(graph.outputs, results, strict=True):
        label(value, name)
    stacked = op.Scan(
        *states, *sequences, body=graph, num_scan_inputs=len(sequences), _outputs=given
    )
    return [typed(value) for value in stacked]


def chunk_counts(op: Op, length: Value, chunk: int) -> tuple[Value, Value, Value]:
    """How many chunks hold ``length`` tokens, how many tokens that is, and how many pad it."""
    chunks = label(op.Div(op.Add(length, [chunk - 1]), [chunk]), "chunks")
    padded = label(op.Mul(chunks, [chunk]), "padded_length")
    return chunks, padded, label(op.Sub(padded, length), "padding")
