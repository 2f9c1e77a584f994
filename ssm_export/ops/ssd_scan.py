"""SsdScan: the recurrence of Mamba-2 (state-space duality), one decay per head."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ssm_export.ops import _body as b
from ssm_export.ops import _inputs
from ssm_export.ops.spec import AttributeValue, Call, Inputs, OpSpec, Outputs, Port, Tolerance

DOC = """
State-space dual scan of Mamba-2; head h uses B and C of group h // (H / G).

    delta = clamp(softplus(dt + dt_bias), dt_min, dt_max)       (B, T, H)
    h_t   = exp(delta_t A) h_{t-1} + (delta_t x_t) outer B_t    (B, H, P, N)
    y_t   = h_t C_t + D x_t                                     (B, T, H, P)

A < 0. dt_softplus = 0 leaves dt as it is before the clamp. Arithmetic is fp32 whatever T and S
are. With sequence_lengths (B,), positions at or beyond a row's length leave its state as it is and
give zeros. chunk_size is the number of tokens that go through matrix products together; it does
not change the result. Source: Dao and Gu 2024, section 6; state-spaces/mamba ssd_combined.py.
"""


def reference(inputs: Inputs, attributes: Mapping[str, AttributeValue]) -> Outputs:
    """The recurrence in float64, token by token."""
    values = _inputs.as_float64(inputs)
    x, A = values["x"], values["A"]
    batch, time, heads, _ = x.shape
    repeats = heads // values["B"].shape[2]
    B, C = (np.repeat(values[name], repeats, axis=2) for name in "BC")
    delta = _inputs.time_step(values["dt"], values.get("dt_bias"), attributes)
    skip = values.get("D", np.zeros(heads))
    lengths = _inputs.row_lengths(inputs, batch, time)
    y = np.zeros_like(x)
    present = values["past"].copy()
    for row in range(batch):
        for t in range(lengths[row]):
            inflow = delta[row, t, :, None] * x[row, t]
            decay = np.exp(delta[row, t] * A)[:, None, None]
            present[row] = decay * present[row] + inflow[:, :, None] * B[row, t][:, None, :]
            y[row, t] = np.einsum("hpn,hn->hp", present[row], C[row, t])
            y[row, t] += skip[:, None] * x[row, t]
    return {"y": y, "present": present}


def make_inputs(
    rng: np.random.Generator,
    sizes: Mapping[str, int],
    omit: Collection[str] = (),
    ragged: bool = False,
) -> Inputs:
    """Valid inputs in float64 for ``dt_softplus = 1``; ``sizes`` has B, T, H, P, G and N."""
    batch, time, heads, width, groups, states = (sizes[letter] for letter in "BTHPGN")
    normal = rng.standard_normal
    inputs: Inputs = {
        "x": normal((batch, time, heads, width)),
        "dt": _inputs.raw_time_step(rng, (batch, time, heads)),
        "A": -np.exp(rng.uniform(0.0, np.log(16.0), heads)),
        "B": normal((batch, time, groups, states)) / np.sqrt(states),
        "C": normal((batch, time, groups, states)),
        "D": normal(heads),
        "dt_bias": 0.1 * normal(heads),
        "past": normal((batch, heads, width, states)) / np.sqrt(states),
    }
    if ragged:
        inputs["sequence_lengths"] = _inputs.make_lengths(rng, batch, time)
    return {name: value for name, value in inputs.items() if name not in omit}


def step(
    op: Any, call: Call, x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, dt_bias: Any,
    past: Any, lengths: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """One token, with heads split into (G, H/G) so that B and C broadcast over their group."""
    T, S = call.type("T"), call.type("S")
    heads, width, groups, states = (call.sizes[letter] for letter in "HPGN")
    each = heads // groups
    x, dt, B, C = (b.to_fp32(op, value, T) for value in (x, dt, B, C))
    delta = b.time_step(op, dt, dt_bias, call.attributes)
    valid, inflow_x = None, x
    if lengths is not None:
        valid = b.has_token(op, lengths, [1, 2, 3])
        inflow_x, B = b.keep(op, valid, x), b.keep(op, valid, B)
        delta = b.keep(op, op.Squeeze(valid, [3]), delta)
    decay = op.Reshape(op.Exp(op.Mul(delta, A)), [0, groups, each, 1, 1])
    inflow = op.Mul(inflow_x, op.Unsqueeze(delta, [3]))
    inflow = op.Reshape(inflow, [0, groups, each, width, 1])
    B_row = op.Reshape(B, [0, groups, 1, 1, states])
    state = op.Reshape(b.to_fp32(op, past, S), [0, groups, each, width, states])
    state = op.Add(op.Mul(decay, state), op.Mul(inflow, B_row))
    y = op.MatMul(
        op.Reshape(state, [0, groups, each * width, states]), op.Reshape(C, [0, groups, states, 1])
    )
    y = op.Reshape(y, [0, 1, heads, width])
    if D is not None:
        y = op.Add(y, op.Mul(x, op.Unsqueeze(D, [1])))
    if valid is not None:
        y = b.keep(op, valid, y)
    present = op.Reshape(state, [0, heads, width, states])
    return b.from_fp32(op, y, T), b.from_fp32(op, present, S)


def chunked(
    op: Any, call: Call, x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, dt_bias: Any,
    past: Any, lengths: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """Any number of tokens: a Scan over chunks of ``chunk_size``, matrix products inside."""
    T, S = call.type("T"), call.type("S")
    heads, width, groups, states = (call.sizes[letter] for letter in "HPGN")
    chunk = int(call.attributes["chunk_size"])
    each = heads // groups
    length = b.length_of(op, x)
    x, dt, B, C = (b.to_fp32(op, value, T) for value in (x, dt, B, C))
    delta = b.time_step(op, dt, dt_bias, call.attributes)
    valid, inflow_x = None, x
    if lengths is not None:
        rows = op.Unsqueeze(b.valid_positions(op, lengths, length), [2])
        valid = op.Unsqueeze(rows, [3])
        delta = b.keep(op, rows, delta)
        inflow_x, B = b.keep(op, valid, x), b.keep(op, valid, B)
    inflow = b.label(op.Mul(inflow_x, op.Unsqueeze(delta, [3])), "inflow")
    log_decay = b.label(op.Mul(delta, A), "log_decay")
    chunks, padded, padding = b.chunk_counts(op, length, chunk)

    def arrange(value: Any, rank: int, width: int, name: str) -> Any:
        """(B,T,…) of G equal parts → (chunks,B,G,Q,width), padded with zeros."""
        pads = op.Concat([0] * (rank + 1), padding, [0] * (rank - 2), axis=0)
        shape = op.Concat([0], chunks, [chunk, groups, width], axis=0)
        value = op.Reshape(op.Pad(value, pads), shape)
        return b.label(op.Transpose(value, perm=[1, 0, 3, 2, 4]), name)

    sequences = [
        arrange(log_decay, 3, each, "log_decay_chunks"),
        arrange(inflow, 4, each * width, "inflow_chunks"),
        arrange(B, 4, states, "B_chunks"),
        arrange(C, 4, states, "C_chunks"),
    ]
    start = op.Reshape(b.to_fp32(op, past, S), [0, groups, each * width, states])
    start = op.Transpose(start, perm=[0, 1, 3, 2])
    causal = b.label(op.Constant(value=b.tensor(np.tril(np.ones((chunk, chunk), bool)))), "causal")

    def over_chunk(op: Any, state: Any, log_decay: Any, inflow: Any, B: Any, C: Any) -> Any:
        return _chunk(op, (chunk, each, width), causal, state, log_decay, inflow, B, C)

    names = ["state", "log_decay", "inflow", "B", "C", "y"]
    state, y = b.scan(op, over_chunk, [start], sequences, names, 1)
    y = op.Transpose(y, perm=[1, 0, 3, 2, 4])
    y = op.Reshape(y, op.Concat([0], padded, [heads, width], axis=0))
    y = op.Slice(y, [0], length, [1])
    if D is not None:
        y = op.Add(y, op.Mul(x, op.Unsqueeze(D, [1])))
    if valid is not None:
        y = b.keep(op, valid, y)
    present = op.Reshape(op.Transpose(state, perm=[0, 1, 3, 2]), [0, heads, width, states])
    return b.from_fp32(op, y, T), b.from_fp32(op, present, S)


def _chunk(
    op: Any, sizes: tuple[int, int, int], causal: Any,
    state: Any, log_decay: Any, inflow: Any, B: Any, C: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """One chunk in matrix products; E = H/G heads share B and C.

    With l the cumulated log decay, ``y_i = sum_{j<=i} exp(l_i - l_j) (C_i . B_j) inflow_j +
    exp(l_i) C_i S`` and ``S' = exp(l_Q) S + sum_j exp(l_Q - l_j) B_j inflow_j``. Differences of l
    are clamped to 0 before exp, so rounding cannot make a decay grow. They are small where l is
    large, so l is kept in two parts: multiples of 1/1024, whose sums are exact in fp32, and the
    rest, whose sums stay below 1/32.

    Args:
        op: the builder.
        sizes: Q, E, P.
        causal: (Q,Q) bool, the lower triangle.
        state: S (B,G,N,E·P).
        log_decay: (B,G,Q,E); inflow (B,G,Q,E·P); B, C (B,G,Q,N).

    Returns:
        S' and y (B,G,Q,E·P).
    """
    chunk, each, width = sizes
    coarse = b.label(op.Mul(op.Round(op.Mul(log_decay, 1024.0)), 1 / 1024), "coarse")
    parts = [op.CumSum(coarse, 2), op.CumSum(op.Sub(log_decay, coarse), 2)]
    total = b.label(op.Add(*parts), "cumulated")
    by_head = [op.Transpose(part, perm=[0, 1, 3, 2]) for part in parts]
    gaps = [op.Sub(op.Unsqueeze(part, [4]), op.Unsqueeze(part, [3])) for part in by_head]
    decay = b.label(op.Exp(op.Min(op.Add(*gaps), 0.0)), "decay")
    scores = op.MatMul(C, op.Transpose(B, perm=[0, 1, 3, 2]))
    scores = b.label(op.Where(causal, scores, 0.0), "scores")
    heads = b.label(op.Reshape(inflow, [0, 0, chunk, each, width]), "inflow_heads")
    y = op.MatMul(
        op.Mul(decay, op.Unsqueeze(scores, [2])), op.Transpose(heads, perm=[0, 1, 3, 2, 4])
    )
    y = b.label(op.Transpose(y, perm=[0, 1, 3, 2, 4]), "y_inside")
    carried = op.Reshape(op.MatMul(C, state), [0, 0, chunk, each, width])
    carried = op.Mul(carried, op.Unsqueeze(op.Exp(total), [4]))
    y = op.Reshape(op.Add(y, carried), [0, 0, chunk, each * width])
    ends = [op.Slice(part, [chunk - 1], [chunk], [2]) for part in parts]
    to_end = op.Add(*(op.Sub(end, part) for end, part in zip(ends, parts, strict=True)))
    kept = op.Exp(op.Min(to_end, 0.0))
    kept = op.Reshape(op.Mul(heads, op.Unsqueeze(kept, [4])), [0, 0, chunk, each * width])
    flow = op.MatMul(op.Transpose(B, perm=[0, 1, 3, 2]), kept)
    remains = op.Exp(op.Unsqueeze(op.Add(*ends), [4]))
    remains = op.Expand(remains, [1, 1, 1, each, width])
    remains = op.Reshape(remains, [0, 0, 1, each * width])
    return op.Add(op.Mul(state, remains), flow), y


SPEC = OpSpec(
    name="SsdScan",
    doc=DOC,
    inputs=(
        Port("x", "BTHP", doc="Inputs of the recurrence."),
        Port("dt", "BTH", doc="Time steps before bias, softplus and clamp."),
        Port("A", "H", "float32", doc="Negative decay rates."),
        Port("B", "BTGN", doc="Input weights of each group of heads."),
        Port("C", "BTGN", doc="Output weights of each group of heads."),
        Port("D", "H", "float32", optional=True, doc="Skip weights."),
        Port("dt_bias", "H", "float32", optional=True, doc="Added to dt before the softplus."),
        Port("past", "BHPN", "S", doc="State before the first token."),
        Port("sequence_lengths", "B", "int32", optional=True, doc="Valid tokens of each row."),
    ),
    outputs=(
        Port("y", "BTHP", doc="Outputs."),
        Port("present", "BHPN", "S", doc="State after the last token."),
    ),
    attributes={"dt_softplus": 1, "dt_min": 0.0, "dt_max": float("inf"), "chunk_size": 64},
    reference=reference,
    make_inputs=make_inputs,
    bodies={"step": step, "chunked": chunked},
    tolerances={
        "fp32": Tolerance(3e-4, 1e-3, 1e-10),
        "fp16": Tolerance(5e-3, 1e-2, 2e-7),
        "bf16": Tolerance(1e-2, 5e-2, 1e-5),
    },
    sizes={"B": 2, "T": 16, "H": 4, "P": 8, "G": 2, "N": 16},
)
