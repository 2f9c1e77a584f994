"""CausalConvWithState on a GPU: the taps of CausalConv1d with channels first, so along memory.

Prefill gives each block a tile of channels and time, and time runs along a row of memory. The tile
is loaded once per tap, shifted by one token; the first load comes from memory, the others from the
cache. Rows begin at multiples of 16 bytes only where the length is a multiple of eight, so there
are two variants: that one loads and stores whole vectors. Everything that touches the state
happens in the blocks of the first tile, which read ``past_state`` before they write
``present_state``, so both may be one buffer.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.ops import Call, OpSpec
from ssm_export_plugins.expressions import cdiv, symbol
from ssm_export_plugins.kernels.causal_conv1d import MAX_TAPS, activated
from ssm_export_plugins.plan import ALWAYS, Builder, Case, Chip, Plan

VECTOR = 8


@triton.jit
def causal_conv_with_state_prefill(
    x, weight, bias, past, y, present, units,
    D: tl.constexpr, K: tl.constexpr, SILU: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """One tile (BLOCK_D, BLOCK_T) of y over units·UNIT tokens; the first tiles write the state."""
    tile, part, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    T = units * UNIT
    d = part * BLOCK_D + tl.arange(0, BLOCK_D)
    t = tile * BLOCK_T + tl.arange(0, BLOCK_T)
    inside = d < D
    valid = inside[:, None] & (t < T)[None, :]
    base = (row.to(tl.int64) * D + d) * T
    before = (row.to(tl.int64) * D + d) * (K - 1)
    total = tl.zeros([BLOCK_D, BLOCK_T], dtype=tl.float32)
    if bias is not None:
        total += tl.load(bias + d, mask=inside, other=0.0).to(tl.float32)[:, None]
    for k in tl.static_range(K):
        tap = tl.load(weight + d * K + k, mask=inside, other=0.0).to(tl.float32)
        source = t + (k - (K - 1))
        value = tl.load(
            x + base[:, None] + source[None, :], mask=valid & (source >= 0)[None, :], other=0.0
        )
        total += value.to(tl.float32) * tap[:, None]
    if K > 1:
        if tile == 0:
            if past is not None:
                for k in tl.static_range(K - 1):
                    tap = tl.load(weight + d * K + k, mask=inside, other=0.0).to(tl.float32)
                    source = t + k
                    carried = tl.load(
                        past + before[:, None] + source[None, :],
                        mask=valid & (source < K - 1)[None, :],
                        other=0.0,
                    )
                    total += carried.to(tl.float32) * tap[:, None]
    tl.store(
        y + base[:, None] + t[None, :],
        activated(total, SILU).to(y.dtype.element_ty),
        mask=valid,
    )
    if K > 1:
        if tile == 0:
            state = ()
            for k in tl.static_range(K - 1):
                last = T - (K - 1) + k + tl.zeros([BLOCK_D], dtype=tl.int32)
                kept = tl.load(x + base + last, mask=inside & (last >= 0), other=0.0)
                if past is not None:
                    older = tl.load(
                        past + before + (last + K - 1), mask=inside & (last < 0), other=0.0
                    )
                    kept = tl.where(last < 0, older, kept)
                state = state + (kept,)
            # Every thread has read what it needs of past before any of them writes present.
            tl.debug_barrier()
            for k in tl.static_range(K - 1):
                tl.store(present + before + k, state[k], mask=inside)


@triton.jit
def causal_conv_with_state_step(
    x, weight, bias, past, y, present,
    D: tl.constexpr, K: tl.constexpr, SILU: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One token: BLOCK_D channels of one row; each thread owns its channels' whole state."""
    row = tl.program_id(1)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = d < D
    x_raw = tl.load(x + row.to(tl.int64) * D + d, mask=inside, other=0.0)
    tap = tl.load(weight + d * K + (K - 1), mask=inside, other=0.0)
    total = x_raw.to(tl.float32) * tap.to(tl.float32)
    if bias is not None:
        total += tl.load(bias + d, mask=inside, other=0.0).to(tl.float32)
    before = (row.to(tl.int64) * D + d) * (K - 1)
    window = ()
    for k in tl.static_range(K - 1):
        if past is not None:
            carried = tl.load(past + before + k, mask=inside, other=0.0)
            tap = tl.load(weight + d * K + k, mask=inside, other=0.0)
            total += carried.to(tl.float32) * tap.to(tl.float32)
        else:
            carried = tl.zeros([BLOCK_D], dtype=x_raw.dtype)
        window = window + (carried,)
    window = window + (x_raw,)
    result = activated(total, SILU)
    tl.store(y + row.to(tl.int64) * D + d, result.to(y.dtype.element_ty), mask=inside)
    for k in tl.static_range(K - 1):
        tl.store(present + before + k, window[k + 1], mask=inside)


def plans(spec: OpSpec, call: Call, chip: Chip) -> Iterator[Plan]:
    """Plans of one call; see :func:`ssm_export_plugins.kernels.plans`."""
    build = Builder(spec, call)
    channels, taps = build.size("D"), build.size("K")
    if not 1 <= taps <= MAX_TAPS:
        raise SsmExportError(
            errors.KERNEL_UNSUPPORTED,
            f"'weight' has {taps} taps, the kernels take 1 to {MAX_TAPS}",
            where=spec.name,
        )
    shared = {
        "x": build.tensor("input"),
        "weight": build.tensor("weight"),
        "bias": build.tensor("bias"),
        "past": build.tensor("past_state"),
        "y": build.tensor("output"),
        "present": build.tensor("present_state"),
        "D": channels,
        "K": taps,
        "SILU": call.attributes["activation"] != "none",
    }
    B, T = symbol("B"), build.size("T")
    step = build.launch(
        causal_conv_with_state_step, (cdiv(channels, 128), B), num_warps=4, BLOCK_D=128, **shared
    )
    if T == 1:
        yield build.plan(Case(ALWAYS, (step,)))
        return
    for rows, width in ((4, 256), (2, 256)):
        whole, any_length = (
            build.launch(
                causal_conv_with_state_prefill,
                (cdiv(T, width), cdiv(channels, rows), B),
                units=T // unit,
                UNIT=unit,
                BLOCK_D=rows,
                BLOCK_T=width,
                **shared,
            )
            for unit in (VECTOR, 1)
        )
        yield build.plan(
            Case(T.equals(1), (step,)),
            Case((T // VECTOR * VECTOR).equals(T), (whole,)),
            Case(ALWAYS, (any_length,)),
            label=f"{rows}x{width}",
        )
