"""Bodies for ONNX Runtime: fused operators (domain ``com.microsoft``) and what else suits its CPU.

``LinearAttention`` with ``update_rule = gated`` computes ``S' = exp(g) S + k outer v`` and
``o = q S`` per head, with S (K,V). It is called in fp32 whatever the I/O type, as scan arithmetic
is fp32; ``scale`` is written because its default 0 means ``1/sqrt(K)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ssm_export.ops import _body as b
from ssm_export.ops import selective_scan
from ssm_export.ops.spec import Call

DOMAINS: Final = {"com.microsoft": 1}

BECOMES: Final = {"SsdScan": "LinearAttention", "SelectiveScan": "a Scan over tokens"}
"""Our operator to what its body here is made of."""

NOTES: Final = {
    ("SelectiveScan", "chunked"): (
        "SelectiveScan becomes a Scan over tokens, whose values stay in the processor's cache: no "
        "fused operator has a decay per channel and state, and LinearAttention with expanded "
        "operands took 109 ms for 512 tokens of D=1536, N=16"
    ),
    ("SelectiveScan", "step"): "SelectiveScan keeps its step body: no fused operator computes it",
    ("CausalConv1d", "chunked"): (
        "CausalConv1d keeps its body: CausalConvWithState with channels_last took 8.1 ms on the "
        "CPU where a body took 2.8 (512 tokens, 1792 channels, one thread)"
    ),
    ("CausalConv1d", "step"): (
        "CausalConv1d keeps its step body: CausalConvWithState took 0.028 ms where it takes 0.019 "
        "(1792 channels, one thread)"
    ),
}
"""Operator and form to why no fused operator is used."""


def selective_tokens(
    op: Any, call: Call, u: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, dt_bias: Any,
    past: Any, lengths: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """Any number of tokens, one after the other, with the state as (B,N,D)."""
    u, delta, inflow, B, valid = selective_scan.prepare(op, call, u, dt, B, dt_bias, lengths)
    C = b.to_fp32(op, C, call.type("T"))
    rows = b.label(op.Transpose(A, perm=[1, 0]), "A_rows")

    def by_token(x: Any, axis: int, name: str) -> Any:
        """(B,T,W) → (T,B,1,W) for axis 2, (T,B,W,1) for axis 3."""
        return b.label(op.Unsqueeze(op.Transpose(x, perm=[1, 0, 2]), [axis]), name)

    def token(op: Any, state: Any, delta: Any, inflow: Any, B: Any, C: Any) -> Any:
        decay = b.label(op.Exp(op.Mul(delta, rows)), "decay")
        state = op.Add(op.Mul(decay, state), op.Mul(B, inflow))
        return state, op.MatMul(C, state)

    sequences = [
        by_token(delta, 2, "delta_tokens"),
        by_token(inflow, 2, "inflow_tokens"),
        by_token(B, 3, "B_tokens"),
        by_token(C, 2, "C_tokens"),
    ]
    start = op.Transpose(b.to_fp32(op, past, call.type("S")), perm=[0, 2, 1])
    names = ["state", "delta", "inflow", "B", "C", "y"]
    state, y = b.scan(op, token, [start], sequences, names, 1)
    y = op.Transpose(op.Squeeze(y, [2]), perm=[1, 0, 2])
    y = selective_scan.finish(op, call, y, u, D, z, valid)
    return y, b.from_fp32(op, op.Transpose(state, perm=[0, 2, 1]), call.type("S"))


def ssd_step(
    op: Any, call: Call, x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, dt_bias: Any,
    past: Any, lengths: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """One token: LinearAttention updates the state in our layout (K=P, V=N), MatMul reads it."""
    T, S = call.type("T"), call.type("S")
    heads, width, groups, states = (call.sizes[letter] for letter in "HPGN")
    each = heads // groups
    x, dt, B, C = (b.to_fp32(op, value, T) for value in (x, dt, B, C))
    delta = _time_step(op, call, dt, dt_bias)
    valid, inflow_x = None, x
    if lengths is not None:
        valid = b.has_token(op, lengths, [1, 2, 3])
        inflow_x, B = b.keep(op, valid, x), b.keep(op, valid, B)
        delta = b.keep(op, op.Squeeze(valid, [3]), delta)
    inflow = op.Reshape(op.Mul(inflow_x, op.Unsqueeze(delta, [3])), [0, 1, heads * width])
    values = op.Expand(op.Unsqueeze(B, [3]), [1, 1, 1, each, 1])
    values = op.Reshape(values, [0, 1, heads * states])
    _, present = op.builder.opset("com.microsoft", 1).LinearAttention(
        b.label(inflow, "inflow"),
        inflow,
        b.label(values, "B_of_heads"),
        b.to_fp32(op, past, S),
        b.label(op.Mul(delta, A), "log_decay"),
        q_num_heads=heads,
        kv_num_heads=heads,
        update_rule="gated",
        scale=1.0,
        _outputs=2,
    )
    rows = op.Reshape(b.typed(present), [0, groups, each * width, states])
    y = op.MatMul(rows, op.Reshape(C, [0, groups, states, 1]))
    y = _finish(op, call, op.Reshape(y, [0, 1, heads, width]), x, D, valid)
    return y, b.from_fp32(op, present, S)


def ssd_chunked(
    op: Any, call: Call, x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, dt_bias: Any,
    past: Any, lengths: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """Any number of tokens: q=C, k=B for G heads, v=inflow for H heads, S transposed to (N,P)."""
    T, S = call.type("T"), call.type("S")
    heads, width, groups, states = (call.sizes[letter] for letter in "HPGN")
    x, dt, B, C = (b.to_fp32(op, value, T) for value in (x, dt, B, C))
    delta = _time_step(op, call, dt, dt_bias)
    valid, inflow_x = None, x
    if lengths is not None:
        rows = op.Unsqueeze(b.valid_positions(op, lengths, b.length_of(op, x)), [2])
        valid = op.Unsqueeze(rows, [3])
        delta = b.keep(op, rows, delta)
        inflow_x, B = b.keep(op, valid, x), b.keep(op, valid, B)
    inflow = op.Mul(inflow_x, op.Unsqueeze(delta, [3]))
    y, present = op.builder.opset("com.microsoft", 1).LinearAttention(
        op.Reshape(C, [0, 0, groups * states]),
        op.Reshape(B, [0, 0, groups * states]),
        b.label(op.Reshape(inflow, [0, 0, heads * width]), "inflow"),
        op.Transpose(b.to_fp32(op, past, S), perm=[0, 1, 3, 2]),
        b.label(op.Mul(delta, A), "log_decay"),
        q_num_heads=groups,
        kv_num_heads=heads,
        update_rule="gated",
        scale=1.0,
        _outputs=2,
    )
    y = op.Reshape(b.typed(y), [0, 0, heads, width])
    y = _finish(op, call, y, x, D, valid)
    return y, b.from_fp32(op, op.Transpose(b.typed(present), perm=[0, 1, 3, 2]), S)


def _time_step(op: Any, call: Call, dt: Any, dt_bias: Any) -> Any:
    """As :func:`ssm_export.ops._body.time_step`, with ONNX Runtime's one accurate Softplus.

    There are few steps per token in Mamba-2, so one node is cheaper than many fast ones.
    """
    if not call.attributes["dt_softplus"]:
        return b.time_step(op, dt, dt_bias, call.attributes)
    delta = op.Softplus(dt if dt_bias is None else op.Add(dt, dt_bias))
    return b.clamp_step(op, delta, call.attributes)


def _finish(op: Any, call: Call, y: Any, x: Any, D: Any, valid: Any) -> Any:
    if D is not None:
        y = op.Add(y, op.Mul(x, op.Unsqueeze(D, [1])))
    if valid is not None:
        y = b.keep(op, valid, y)
    return b.from_fp32(op, y, call.type("T"))


BODIES: Final[dict[tuple[str, str], Callable[..., Any]]] = {
    ("SsdScan", "step"): ssd_step,
    ("SsdScan", "chunked"): ssd_chunked,
    ("SelectiveScan", "chunked"): selective_tokens,
}
"""Operator and form to the body that ONNX Runtime gets."""
