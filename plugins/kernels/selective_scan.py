"""SelectiveScan on a GPU: one thread walks the tokens of a channel with all its states at hand.

The states of BLOCK_D channels are a tile (BLOCK_N, BLOCK_D) with the channels along the lanes, so
what differs by channel (dt, u, z, y) is one coalesced row per token, and the product with C is a
sum inside a thread. A prompt whose channels do not fill the chip is split along time: the first
launch gives every segment's final state from zero and the sum of its time steps; the second
starts each segment from the combination of those before it. The README derives the figures.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.ops import Call, OpSpec
from ssm_export_plugins.expressions import Operand, cdiv, constant, maximum, minimum, symbol
from ssm_export_plugins.plan import ALWAYS, Builder, Case, Chip, Plan, Workspace

MAX_STATES = 256
"""States of a channel; their tile has 512 elements or more in one warp."""

WARPS = 16
"""Warps that share a multiprocessor when time is split: 4 for each of its schedulers."""

SHORTEST = 64
"""Tokens of the shortest segment."""

WORTH = 6
"""Segments that a chip must have room for: two passes over few of them lose to one pass."""

TOKENS = 4
"""Tokens of a group, whose rows are loaded together, one group ahead of their use."""

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _step_size(dt, bias, SOFTPLUS: tl.constexpr):
    """softplus(dt + bias) = max(x, 0) + log1p(e), e = exp(-|x|); a polynomial gives log1p(e)/e."""
    x = dt.to(tl.float32) + bias
    if SOFTPLUS:
        e = tl.exp2(-tl.abs(x) * LOG2E)
        p = e * 0.005232693627476692 - 0.02950523979961872
        p = p * e + 0.07822596281766891
        p = p * e - 0.13663247227668762
        p = p * e + 0.19106008112430573
        p = p * e - 0.2484298199415207
        p = p * e + 0.3331909775733948
        p = p * e - 0.4999949336051941
        p = p * e + 0.9999999403953552
        x = tl.maximum(x, 0.0) + e * p
    return x


@triton.jit
def _gated(y, z):
    z = z.to(tl.float32)
    return y * (z / (1.0 + tl.exp2(-z * LOG2E)))


@triton.jit
def _row(pointer, d, inside):
    """(BLOCK_D,) of a vector over the channels; zeros where it is absent."""
    row = tl.zeros(d.shape, dtype=tl.float32)
    if pointer is not None:
        row += tl.load(pointer + d, mask=inside, other=0.0)
    return row


@triton.jit
def _tile(row, D: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr):
    """Indices and masks of a block's states, with the channels along the lanes of a warp.

    A load through the last offsets puts one channel in each lane: they count up along the channels,
    and the zero that a shift of the row gives hides that four of them make an aligned vector.

    Returns:
        channels, states, the masks of both (BLOCK_D,) and (BLOCK_N, BLOCK_D), and offsets of the
        states in (B,D,N) and in a slot (N,D) of the scratch memory.
    """
    zero = row >> 31
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    inside = d < D
    cells = inside[None, :] & (n < N)[:, None]
    cell = n[:, None] * D + d[None, :] + zero
    held = row.to(tl.int64) * (D * N) + d[None, :] * N + n[:, None]
    return d, n, inside, cells, held, cell


@triton.jit
def _gathered(pointer, d, FIRST: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr):
    """(BLOCK_N, BLOCK_D) in fp32 of (D,N), four states a load, with the channels along the lanes.

    A tile of four rows is one 16-byte load for each lane; larger ones are joined from them.
    """
    if BLOCK_N > 4:
        half: tl.constexpr = BLOCK_N // 2
        first = _gathered(pointer, d, FIRST, N, half)
        second = _gathered(pointer, d, FIRST + half, N, half)
        tile = tl.reshape(tl.permute(tl.join(first, second), (2, 0, 1)), (BLOCK_N, d.shape[0]))
    else:
        n = FIRST + tl.arange(0, BLOCK_N)
        at = pointer + d[None, :] * N + n[:, None]
        tile = tl.load(at, mask=(n < N)[:, None], other=0.0).to(tl.float32)
    return tile


@triton.jit
def _rows(u, dt, z, wide, D: tl.constexpr, TOKENS: tl.constexpr):
    """Rows (BLOCK_D,) of dt, u and z for TOKENS tokens; the gates are any rows without ``z``."""
    steps, inputs, gates = (), (), ()
    for k in tl.static_range(TOKENS):
        steps = steps + (tl.load(dt + wide + k * D),)
        inputs = inputs + (tl.load(u + wide + k * D),)
        gates = gates + (steps[k] if z is None else tl.load(z + wide + k * D),)
    return steps, inputs, gates


@triton.jit
def _tokens(
    steps, inputs, gates, B, C, z, y, wide, narrow, n, inside, rate, bias, weight, state, total,
    D: tl.constexpr, N: tl.constexpr, SOFTPLUS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """The recurrence over TOKENS tokens; ``y`` None computes the state and the summed steps."""
    rows_b, rows_c = (), ()
    for k in tl.static_range(TOKENS):
        if n.shape[0] == N:
            rows_b = rows_b + (tl.load(B + narrow + k * N),)
            if y is not None:
                rows_c = rows_c + (tl.load(C + narrow + k * N),)
        else:
            rows_b = rows_b + (tl.load(B + narrow + k * N, mask=n < N, other=0.0),)
            if y is not None:
                rows_c = rows_c + (tl.load(C + narrow + k * N, mask=n < N, other=0.0),)
    for k in tl.static_range(TOKENS):
        delta = _step_size(steps[k], bias, SOFTPLUS)
        x = inputs[k].to(tl.float32)
        added = rows_b[k].to(tl.float32)[:, None] * (delta * x)[None, :]
        state = tl.fma(tl.exp2(rate * delta[None, :]), state, added)
        if y is None:
            total += delta
        else:
            out = tl.sum(state * rows_c[k].to(tl.float32)[:, None], axis=0) + weight * x
            if z is not None:
                out = _gated(out, gates[k])
            tl.store(y + wide + k * D, out.to(y.dtype.element_ty), mask=inside)
    return state, total


@triton.jit
def _walk(
    u, dt, B, C, z, y, wide, narrow, tokens, n, inside, rate, bias, weight, state,
    D: tl.constexpr, N: tl.constexpr, SOFTPLUS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """``tokens`` tokens in groups of TOKENS, each group's rows loaded one group ahead.

    What is left of a group goes token by token, so nothing in the loop is masked by time. Channels
    beyond D read the last channel's rows.

    Args:
        wide, narrow: (BLOCK_D,) and (BLOCK_N,) offsets of the first token.

    Returns:
        the last state, the summed steps, and the offsets behind the last token.
    """
    total = tl.zeros(wide.shape, dtype=tl.float32)
    groups = tokens // TOKENS
    if groups > 0:
        steps, inputs, gates = _rows(u, dt, z, wide, D, TOKENS)
        for group in range(groups):
            ahead = tl.where(
                group + 1 < groups + tl.zeros(wide.shape, dtype=tl.int32), TOKENS * D, 0
            )
            later = _rows(u, dt, z, wide + ahead, D, TOKENS)
            # The assembler would sink these loads to their use in the next round.
            tl.debug_barrier()
            state, total = _tokens(
                steps, inputs, gates, B, C, z, y, wide, narrow, n, inside,
                rate, bias, weight, state, total, D, N, SOFTPLUS, TOKENS,
            )  # fmt: skip
            steps, inputs, gates = later
            wide += TOKENS * D
            narrow += TOKENS * N
    for _ in range(tokens - groups * TOKENS):
        steps, inputs, gates = _rows(u, dt, z, wide, D, 1)
        state, total = _tokens(
            steps, inputs, gates, B, C, z, y, wide, narrow, n, inside,
            rate, bias, weight, state, total, D, N, SOFTPLUS, 1,
        )  # fmt: skip
        wide += D
        narrow += N
    return state, total, wide


@triton.jit
def selective_scan_segments(
    u, dt, A, B, dt_bias, past, lengths, states, sums, T, SEGMENT,
    D: tl.constexpr, N: tl.constexpr, SOFTPLUS: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """The last state of one segment from zero, in the next segment's slot, and its summed steps.

    The first segment also copies ``past`` into its own slot, so that the second launch never reads
    ``past`` while another block writes ``present``.
    """
    row, segment = tl.program_id(2), tl.program_id(1)
    d, n, inside, cells, held, cell = _tile(row, D, N, BLOCK_D, BLOCK_N)
    slot = (row * (tl.num_programs(1) + 1) + segment).to(tl.int64)
    if segment == 0:
        before = tl.load(past + held, mask=cells, other=0.0)
        tl.store(states + slot * (D * N) + cell, before.to(tl.float32), mask=cells)
    start = segment * SEGMENT
    stop = tl.minimum(start + SEGMENT, T)
    if lengths is not None:
        stop = tl.minimum(tl.load(lengths + row), stop)
    rate = _gathered(A, tl.minimum(d, D - 1), 0, N, BLOCK_N) * LOG2E
    bias = _row(dt_bias, d, inside)
    # Zeros: the load that never happens gives the state its place in the lanes.
    never = segment + tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.int32) < 0
    state = tl.load(states + cell, mask=cells & never, other=0.0)
    first = row.to(tl.int64) * T + start
    state, total, _ = _walk(
        u, dt, B, None, None, None, first * D + tl.minimum(d, D - 1), first * N + n,
        tl.maximum(stop - start, 0), n, inside, rate, bias, None, state, D, N, SOFTPLUS, TOKENS,
    )  # fmt: skip
    tl.store(states + (slot + 1) * (D * N) + cell, state, mask=cells)
    tl.store(sums + (slot + 1) * D + d, total, mask=inside)


@triton.jit
def selective_scan_prefill(
    u, dt, A, B, C, skip, z, dt_bias, past, lengths, states, sums, y, present, T, SEGMENT,
    D: tl.constexpr, N: tl.constexpr, SOFTPLUS: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """y of one segment and, from the last segment, the state; without ``states`` there is one."""
    row, segment, segments = tl.program_id(2), tl.program_id(1), tl.num_programs(1)
    d, n, inside, cells, held, cell = _tile(row, D, N, BLOCK_D, BLOCK_N)
    start = segment * SEGMENT
    end = tl.minimum(start + SEGMENT, T)
    stop = end
    if lengths is not None:
        stop = tl.minimum(tl.load(lengths + row), end)
    rate = _gathered(A, tl.minimum(d, D - 1), 0, N, BLOCK_N) * LOG2E
    if states is not None:
        slot = (row * segments).to(tl.int64)
        state = tl.load(states + slot * (D * N) + cell, mask=cells, other=0.0)
        last = segment + tl.zeros([BLOCK_D], dtype=tl.int32)
        for s in range(1, segment + 1, 2):
            ends, steps = (), ()
            for k in tl.static_range(2):
                there = inside & (s + k <= last)
                at = (slot + s + k) * (D * N) + cell
                ends = ends + (tl.load(states + at, mask=cells & there[None, :], other=0.0),)
                at = (slot + s + k) * D + d
                steps = steps + (tl.load(sums + at, mask=there, other=0.0),)
            for k in tl.static_range(2):
                state = tl.fma(tl.exp2(rate * steps[k][None, :]), state, ends[k])
    else:
        # The only round adds zeros; its load, which never happens, gives the state its place.
        never = segment + tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.int32) < 0
        state = tl.load(A + cell, mask=cells & never, other=0.0)
        before = _gathered(past + row.to(tl.int64) * (D * N), tl.minimum(d, D - 1), 0, N, BLOCK_N)
        for _ in range(segments):
            again = tl.load(A + cell, mask=cells & never, other=0.0)
            state = before + state * again
    bias, weight = _row(dt_bias, d, inside), _row(skip, d, inside)
    first = row.to(tl.int64) * T + start
    state, _, wide = _walk(
        u, dt, B, C, z, y, first * D + tl.minimum(d, D - 1), first * N + n,
        tl.maximum(stop - start, 0), n, inside, rate, bias, weight, state, D, N, SOFTPLUS, TOKENS,
    )  # fmt: skip
    if lengths is not None:
        zeros = tl.zeros([BLOCK_D], dtype=tl.float32).to(y.dtype.element_ty)
        for _ in range(tl.maximum(stop, start), end):
            tl.store(y + wide, zeros, mask=inside)
            wide += D
    if segment == segments - 1:
        # Every thread has read what it needs of past before any of them writes present.
        tl.debug_barrier()
        tl.store(present + held, state.to(present.dtype.element_ty), mask=cells)


@triton.jit
def selective_scan_step(
    u, dt, A, B, C, skip, z, dt_bias, past, lengths, y, present,
    D: tl.constexpr, N: tl.constexpr, SOFTPLUS: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One token: a tile (BLOCK_D, BLOCK_N) of one row's state with the states along the lanes."""
    row = tl.program_id(1)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    inside = d < D
    cell = d[:, None] * N + n[None, :]
    cells = inside[:, None] & (n < N)[None, :]
    at = row.to(tl.int64) * D + d
    held = row.to(tl.int64) * D * N + cell
    before = tl.load(past + held, mask=cells, other=0.0)
    rate = tl.load(A + cell, mask=cells, other=0.0) * LOG2E
    x = tl.load(u + at, mask=inside, other=0.0).to(tl.float32)
    raw = tl.load(dt + at, mask=inside, other=0.0)
    row_b = tl.load(B + row * N + n, mask=n < N, other=0.0).to(tl.float32)
    row_c = tl.load(C + row * N + n, mask=n < N, other=0.0).to(tl.float32)
    delta = _step_size(raw, _row(dt_bias, d, inside), SOFTPLUS)
    decay = tl.exp2(rate * delta[:, None])
    state = decay * before.to(tl.float32) + (delta * x)[:, None] * row_b[None, :]
    out = tl.sum(state * row_c[None, :], axis=1) + _row(skip, d, inside) * x
    if z is not None:
        out = _gated(out, tl.load(z + at, mask=inside, other=0.0))
    after = state.to(present.dtype.element_ty)
    if lengths is not None:
        valid = tl.load(lengths + row) > 0
        out = tl.where(valid, out, 0.0)
        after = tl.where(valid, after, before)
    tl.store(y + at, out.to(y.dtype.element_ty), mask=inside)
    # Every thread has read what it needs of past before any of them writes present.
    tl.debug_barrier()
    tl.store(present + held, after, mask=cells)


def plans(spec: OpSpec, call: Call, chip: Chip) -> Iterator[Plan]:
    """Plans of one call; see :func:`ssm_export_plugins.kernels.plans`."""
    build = Builder(spec, call)
    channels, states = build.size("D"), build.size("N")
    if not 1 <= states <= MAX_STATES:
        raise SsmExportError(
            errors.KERNEL_UNSUPPORTED,
            f"'A' has {states} states per channel, the kernels take 1 to {MAX_STATES}",
            where=spec.name,
            fix="--lowering native",
        )
    tile = triton.next_power_of_2(states)
    inputs = {name: build.tensor(name) for name in ("u", "dt", "A", "B", "dt_bias", "past")}
    inputs["lengths"] = build.tensor("sequence_lengths")
    sizes = {"D": channels, "N": states, "BLOCK_N": tile}
    sizes["SOFTPLUS"] = bool(call.attributes["dt_softplus"])
    rest = {name: build.tensor(name) for name in ("C", "z", "y", "present")}
    rest["skip"] = build.tensor("D")
    B, T = symbol("B"), build.size("T")
    width = max(1, min(triton.next_power_of_2(channels), 1024 // tile))
    step = build.launch(
        selective_scan_step, (cdiv(channels, width), B), BLOCK_D=width, **inputs, **rest, **sizes
    )
    if T == 1:
        yield build.plan(Case(ALWAYS, (step,)))
        return
    width = max(1, min(32, 512 // tile))
    blocks = -(-channels // width)
    most = max(1, chip.multiprocessors * WARPS // blocks)
    split = {"BLOCK_D": width, "TOKENS": TOKENS, "num_warps": 1}
    whole = build.launch(
        selective_scan_prefill, (blocks, 1, B), T=T, SEGMENT=T, states=None, sums=None,
        **inputs, **rest, **sizes, **split,
    )  # fmt: skip
    single = Case(T.equals(1), (step,))
    if most < WORTH:
        yield build.plan(single, Case(ALWAYS, (whole,)))
        return
    segments = _segments(most, B, T)
    slots = minimum(most, B * cdiv(T, SHORTEST))
    ends = Workspace("states", "float32", slots * (channels * states))
    sums = Workspace("sums", "float32", slots * channels)
    length = cdiv(T, maximum(segments, 1) * TOKENS) * TOKENS
    local = build.launch(
        selective_scan_segments, (blocks, segments - 1, B), T=T, SEGMENT=length,
        states=ends, sums=sums, **inputs, **sizes, **split,
    )  # fmt: skip
    final = build.launch(
        selective_scan_prefill, (blocks, segments, B), T=T, SEGMENT=length, states=ends, sums=sums,
        **{**inputs, "past": None}, **rest, **sizes, **split,
    )  # fmt: skip
    fills = (constant(WORTH) <= constant(most) // B).also(constant(3) <= segments)
    yield build.plan(single, Case(fills, (local, final)), Case(ALWAYS, (whole,)), label="split")
    yield build.plan(single, Case(ALWAYS, (whole,)), label="whole")


def _segments(most: int, B: Operand, T: Operand) -> Operand:
    """Segments of a row: as many as fill the chip, which has room for ``most`` in all."""
    return minimum(constant(most) // B, cdiv(T, SHORTEST))
