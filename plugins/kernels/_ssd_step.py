"""One token of SsdScan, or of linear attention with one decay per head; see ``_ssd_prefill``."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
STRONGEST = tl.constexpr(-160.0)
"""A token's log2 decay is no lower: 2^-160 is 0 in fp32 already, and -inf would give NaN."""


@triton.jit
def _softplus(v):
    """log(1 + exp(v)) in fp32, accurate far below zero: log1p(u) = 2 atanh(u / (2 + u))."""
    u = tl.exp(-tl.abs(v))
    z = u / (2.0 + u)
    s = z * z
    series = 1.0 / 13 + s * (1.0 / 15)
    series = 1.0 / 9 + s * (1.0 / 11 + s * series)
    series = 1.0 / 3 + s * (1.0 / 5 + s * (1.0 / 7 + s * series))
    return tl.maximum(v, 0.0) + 2.0 * z * (1.0 + s * series)


@triton.jit
def step_and_decay(
    raw, bias, rate, valid,
    GIVEN: tl.constexpr, SOFTPLUS: tl.constexpr, DT_MIN: tl.constexpr, DT_MAX: tl.constexpr,
):  # fmt: skip
    """Δ and the log2 of the decay; both 0 where not valid. GIVEN: raw is the log decay itself."""
    if GIVEN:
        delta = tl.where(valid, 1.0, 0.0)
        decay = tl.maximum(raw * LOG2E, STRONGEST)
    else:
        delta = raw + bias
        if SOFTPLUS:
            delta = _softplus(delta)
        delta = tl.minimum(tl.maximum(delta, DT_MIN), DT_MAX)
        delta = tl.where(valid, delta, 0.0)
        decay = tl.maximum(delta * (rate * LOG2E), STRONGEST)
    return delta, tl.where(valid, decay, 0.0)


@triton.jit
def ssd_scan_step(
    x, dt, A, B, C, D, dt_bias, past, lengths, y, present,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, KEY_HEADS: tl.constexpr,
    QUERY_HEADS: tl.constexpr, SCALE: tl.constexpr, GIVEN: tl.constexpr, SOFTPLUS: tl.constexpr,
    DT_MIN: tl.constexpr, DT_MAX: tl.constexpr, KEY_MAJOR: tl.constexpr,
    PACKED: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One token: BLOCK_P columns of the state of one head of one row, all of N.

    PACKED as in the prefill.
    """
    part, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    QUERIES: tl.constexpr = QUERY_HEADS // H if QUERY_HEADS > H else 1
    X_ROW: tl.constexpr = PACKED if PACKED > 0 else H * P
    B_ROW: tl.constexpr = PACKED if PACKED > 0 else KEY_HEADS * N
    C_ROW: tl.constexpr = PACKED if PACKED > 0 else QUERY_HEADS * N
    B_AT: tl.constexpr = H * P if PACKED > 0 else 0
    C_AT: tl.constexpr = H * P + KEY_HEADS * N if PACKED > 0 else 0
    p, n = part * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    inside = (p < P)[:, None] & (n < N)[None, :]
    place = p[:, None] * N + n[None, :]
    if KEY_MAJOR:
        place = p[:, None] + n[None, :] * P
    place += (row.to(tl.int64) * H + head) * (P * N)
    state = tl.zeros([BLOCK_P, BLOCK_N], tl.float32)
    if past is not None:
        state += tl.load(past + place, mask=inside, other=0.0)
    token = row.to(tl.int64)
    length = tl.zeros([1], tl.int32) + 1
    if lengths is not None:
        length += tl.load(lengths + row) - 1
    valid = length > 0
    raw, rate, bias = 0.0, 0.0, 0.0
    if dt is not None:
        raw = tl.load(dt + token * H + head).to(tl.float32)
    if A is not None:
        rate = tl.load(A + head)
    if dt_bias is not None:
        bias = tl.load(dt_bias + head)
    raw += tl.zeros([1], tl.float32)
    delta, decay = step_and_decay(raw, bias, rate, valid, GIVEN, SOFTPLUS, DT_MIN, DT_MAX)
    value = tl.load(x + token * X_ROW + head * P + p, mask=(p < P) & valid, other=0.0)
    value = value.to(tl.float32)
    key = tl.load(
        B + token * B_ROW + (B_AT + head // (H // KEY_HEADS) * N) + n,
        mask=(n < N) & valid,
        other=0.0,
    ).to(tl.float32)
    state = state * tl.exp2(decay)[:, None] + (value * delta)[:, None] * key[None, :]
    skip = tl.zeros([BLOCK_P], tl.float32)
    if D is not None:
        skip += tl.load(D + head) * value
    for r in tl.static_range(QUERIES):
        query_head = head * QUERIES + r
        if QUERY_HEADS <= H:
            query_head = head // (H // QUERY_HEADS)
        query = tl.load(
            C + token * C_ROW + (C_AT + query_head * N) + n, mask=(n < N) & valid, other=0.0
        ).to(tl.float32)
        out = tl.sum(state * query[None, :], 1) * SCALE + skip
        tl.store(
            y + ((token * H + head) * QUERIES + r) * P + p, out.to(y.dtype.element_ty), mask=p < P
        )
    # Threads may hold copies of one element: all have read past before one writes present.
    tl.debug_barrier()
    tl.store(present + place, state.to(present.dtype.element_ty), mask=inside)
