"""SelectiveScan: the recurrence of Mamba-1 (S6), one decay per channel and state."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np

from ssm_export.ops import _body as b
from ssm_export.ops import _inputs
from ssm_export.ops.spec import AttributeValue, Call, Inputs, OpSpec, Outputs, Port, Tolerance

POSITIONS: Final = 8
"""Tokens of one group, which a chunk walks through one by one."""
GROUPS: Final = 4
"""Groups of one chunk, which go side by side; a chunk is POSITIONS·GROUPS tokens."""

NO_STEP: Final = -1e4
"""A dt whose softplus is exactly 0 in fp32: such a token leaves the state as it is."""

DOC = """
Selective scan of Mamba-1.

    delta = softplus(dt + dt_bias)                          (B, T, D)
    h_t   = exp(delta_t A) * h_{t-1} + (delta_t u_t) B_t    (B, D, N)
    y_t   = (h_t . C_t + D u_t) * silu(z_t)                 (B, T, D)

A < 0. dt_softplus = 0 leaves dt as it is. Arithmetic is fp32 whatever T and S are. With
sequence_lengths (B,), positions at or beyond a row's length leave its state as it is and give
zeros. Source: Gu and Dao 2023, algorithm 2; state-spaces/mamba selective_scan_interface.py.
"""


def reference(inputs: Inputs, attributes: Mapping[str, AttributeValue]) -> Outputs:
    """The recurrence in float64, token by token."""
    values = _inputs.as_float64(inputs)
    u, A, B, C = (values[name] for name in ("u", "A", "B", "C"))
    batch, time, channels = u.shape
    delta = _inputs.time_step(values["dt"], values.get("dt_bias"), attributes)
    skip, gate = values.get("D", np.zeros(channels)), values.get("z")
    lengths = _inputs.row_lengths(inputs, batch, time)
    y = np.zeros_like(u)
    present = values["past"].copy()
    for row in range(batch):
        for t in range(lengths[row]):
            decay = np.exp(delta[row, t, :, None] * A)
            inflow = np.outer(delta[row, t] * u[row, t], B[row, t])
            present[row] = decay * present[row] + inflow
            y[row, t] = present[row] @ C[row, t] + skip * u[row, t]
            if gate is not None:
                y[row, t] *= _inputs.silu(gate[row, t])
    return {"y": y, "present": present}


def make_inputs(
    rng: np.random.Generator,
    sizes: Mapping[str, int],
    omit: Collection[str] = (),
    ragged: bool = False,
) -> Inputs:
    """Valid inputs in float64 for ``dt_softplus = 1``; ``sizes`` has B, T, D and N."""
    batch, time, channels, states = (sizes[letter] for letter in "BTDN")
    normal = rng.standard_normal
    inputs: Inputs = {
        "u": normal((batch, time, channels)),
        "dt": _inputs.raw_time_step(rng, (batch, time, channels)),
        "A": -np.exp(rng.uniform(np.log(0.5), np.log(16.0), (channels, states))),
        "B": normal((batch, time, states)),
        "C": normal((batch, time, states)),
        "D": normal(channels),
        "z": normal((batch, time, channels)),
        "dt_bias": 0.1 * normal(channels),
        "past": normal((batch, channels, states)),
    }
    if ragged:
        inputs["sequence_lengths"] = _inputs.make_lengths(rng, batch, time)
    return {name: value for name, value in inputs.items() if name not in omit}


def prepare(op: Any, call: Call, u: Any, dt: Any, B: Any, dt_bias: Any, lengths: Any) -> Any:
    """u, delta and B in fp32, delta·u, and the mask (B,T,1) or None; padding adds nothing."""
    type_ = call.type("T")
    u, dt, B = (b.to_fp32(op, value, type_) for value in (u, dt, B))
    delta = b.time_step(op, dt, dt_bias, call.attributes)
    valid, inflow_u = None, u
    if lengths is not None:
        valid = op.Unsqueeze(b.valid_positions(op, lengths, b.length_of(op, u)), [2])
        delta, inflow_u, B = (b.keep(op, valid, value) for value in (delta, u, B))
    return u, delta, b.label(op.Mul(delta, inflow_u), "inflow"), B, valid


def finish(op: Any, call: Call, y: Any, u: Any, D: Any, z: Any, valid: Any) -> Any:
    """The skip, the gate, the mask and the cast of y (B,T,D)."""
    if D is not None:
        y = op.Add(y, op.Mul(u, D))
    if z is not None:
        y = op.Mul(y, b.silu(op, b.to_fp32(op, z, call.type("T"))))
    if valid is not None:
        y = b.keep(op, valid, y)
    return b.from_fp32(op, y, call.type("T"))


def step(
    op: Any, call: Call, u: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, dt_bias: Any,
    past: Any, lengths: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """One token, with the state as (B,N,D) so that broadcasting runs along the channels."""
    u, delta, inflow, B, valid = prepare(op, call, u, dt, B, dt_bias, lengths)
    C = b.to_fp32(op, C, call.type("T"))
    state = op.Transpose(b.to_fp32(op, past, call.type("S")), perm=[0, 2, 1])
    decay = op.Exp(op.Mul(delta, op.Transpose(A, perm=[1, 0])))
    B = op.Reshape(B, [0, call.sizes["N"], 1])
    state = op.Add(op.Mul(decay, state), op.Mul(B, inflow))
    y = finish(op, call, op.MatMul(C, state), u, D, z, valid)
    return y, b.from_fp32(op, op.Transpose(state, perm=[0, 2, 1]), call.type("S"))


def chunked(
    op: Any, call: Call, u: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, dt_bias: Any,
    past: Any, lengths: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """Any number of tokens: a Scan over chunks of GROUPS groups of POSITIONS tokens.

    Memory is that of one chunk's states, whatever T is, and the time steps too are made chunk by
    chunk, in the processor's cache; see :func:`_chunk` for what a chunk does.
    """
    type_, attributes = call.type("T"), call.attributes
    channels, states = call.sizes["D"], call.sizes["N"]
    length = b.length_of(op, u)
    u, dt, B, C = (b.to_fp32(op, value, type_) for value in (u, dt, B, C))
    valid, inflow_u = None, u
    no_step = NO_STEP if attributes["dt_softplus"] else 0.0
    if lengths is not None:
        valid = op.Unsqueeze(b.valid_positions(op, lengths, length), [2])
        inflow_u, B = b.keep(op, valid, u), b.keep(op, valid, B)
        dt = op.Where(valid, dt, no_step)
    chunks, padded, padding = b.chunk_counts(op, length, POSITIONS * GROUPS)
    pads = op.Concat([0, 0, 0, 0], padding, [0], axis=0)

    def arrange(x: Any, width: int, name: str, fill: float = 0.0) -> Any:
        """(B,T,W) → (chunks,B,GROUPS,POSITIONS,W), padded with ``fill``."""
        shape = op.Concat([0], chunks, [GROUPS, POSITIONS, width], axis=0)
        x = op.Reshape(op.Pad(x, pads, fill), shape)
        return b.label(op.Transpose(x, perm=[1, 0, 2, 3, 4]), name)

    A_rows = b.label(op.Transpose(A, perm=[1, 0]), "A_rows")
    start = op.Transpose(b.to_fp32(op, past, call.type("S")), perm=[0, 2, 1])

    def over_chunk(op: Any, state: Any, dt: Any, u: Any, B: Any, C: Any) -> Any:
        delta = b.time_step(op, dt, dt_bias, attributes)
        return _chunk(op, A_rows, state, delta, op.Mul(delta, u), B, C)

    sequences = [
        arrange(dt, channels, "dt_chunks", no_step),
        arrange(inflow_u, channels, "u_chunks"),
        arrange(B, states, "B_chunks"),
        arrange(C, states, "C_chunks"),
    ]
    names = ["state", "dt", "u", "B", "C", "y"]
    state, y = b.scan(op, over_chunk, [start], sequences, names, 1)
    shape = op.Concat([0], padded, [channels], axis=0)
    y = op.Reshape(op.Transpose(y, perm=[1, 0, 2, 3, 4]), shape)
    y = finish(op, call, op.Slice(y, [0], length, [1]), u, D, z, valid)
    return y, b.from_fp32(op, op.Transpose(state, perm=[0, 2, 1]), call.type("S"))


def _chunk(op: Any, A: Any, state: Any, delta: Any, inflow: Any, B: Any, C: Any) -> Any:
    """One chunk, with every state kept as (…,N,D): broadcasting then runs along the channels.

    The groups go side by side from a zero state (``own``). Their last states and their total
    decays give the state that each group inherits. What it inherits decays along the group
    (``inherited``) and adds to the outputs, which are linear in the state.

    Args:
        op: the builder.
        A: (N,D).
        state: (B,N,D) before the chunk.
        delta: (B,GROUPS,POSITIONS,D), as is ``inflow``; ``B`` and ``C`` end in N instead.

    Returns:
        the state after the chunk, and y (B,GROUPS,POSITIONS,D).
    """

    def positions(x: Any, axis: int = 2) -> Any:
        return op.Split(x, axis=axis, num_outputs=POSITIONS, _outputs=POSITIONS)

    def groups(x: Any) -> Any:
        return op.Split(x, axis=1, num_outputs=GROUPS, _outputs=GROUPS)

    total = op.ReduceSum(delta, [2], keepdims=1)
    total_decay = b.label(op.Exp(op.Mul(total, A)), "group_decay")
    delta, inflow, C = positions(delta), positions(inflow), positions(C)
    B = positions(op.Transpose(B, perm=[0, 1, 3, 2]), 3)
    decays: list[Any] = []
    own: list[Any] = []
    for r in range(POSITIONS):
        decays.append(b.label(op.Exp(op.Mul(delta[r], A)), "decay"))
        added = op.Mul(B[r], inflow[r])
        if own:
            added = op.Add(op.Mul(decays[r], own[-1]), added)
        own.append(b.label(added, "own"))
    carried = [op.Unsqueeze(state, [1])]
    for decay, last in zip(groups(total_decay), groups(own[-1]), strict=True):
        carried.append(b.label(op.Add(op.Mul(decay, carried[-1]), last), "carried"))
    inherited = b.label(op.Concat(*carried[:-1], axis=1), "inherited")
    outputs = []
    for r in range(POSITIONS - 1):
        inherited = b.label(op.Mul(decays[r], inherited), "inherited")
        outputs.append(op.Add(op.MatMul(C[r], own[r]), op.MatMul(C[r], inherited)))
    outputs.append(op.MatMul(C[-1], op.Concat(*carried[1:], axis=1)))
    return op.Squeeze(carried[-1], [1]), op.Concat(*outputs, axis=2)


SPEC = OpSpec(
    name="SelectiveScan",
    doc=DOC,
    inputs=(
        Port("u", "BTD", doc="Inputs of the recurrence."),
        Port("dt", "BTD", doc="Time steps before bias and softplus."),
        Port("A", "DN", "float32", doc="Negative decay rates."),
        Port("B", "BTN", doc="Input weights."),
        Port("C", "BTN", doc="Output weights."),
        Port("D", "D", "float32", optional=True, doc="Skip weights."),
        Port("z", "BTD", optional=True, doc="Gate, before its SiLU."),
        Port("dt_bias", "D", "float32", optional=True, doc="Added to dt before the softplus."),
        Port("past", "BDN", "S", doc="State before the first token."),
        Port("sequence_lengths", "B", "int32", optional=True, doc="Valid tokens of each row."),
    ),
    outputs=(
        Port("y", "BTD", doc="Outputs, gated where z is there."),
        Port("present", "BDN", "S", doc="State after the last token."),
    ),
    attributes={"dt_softplus": 1},
    reference=reference,
    make_inputs=make_inputs,
    bodies={"step": step, "chunked": chunked},
    tolerances={
        "fp32": Tolerance(6e-4, 2e-3, 1e-10),
        "fp16": Tolerance(3e-3, 5e-3, 2e-7),
        "bf16": Tolerance(3e-2, 5e-2, 1e-5),
    },
    sizes={"B": 2, "T": 16, "D": 24, "N": 8},
)
