"""CausalConv1d on a GPU: depthwise taps over time, the last K−1 inputs as state.

Prefill gives each block a tile of time and channels and loads the tile once per tap, shifted by
one token: only the first load comes from memory, the others from the cache. Everything that
touches the state happens in the block of the first tile, which reads ``past`` before it writes
``present``, so both may be one buffer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import triton
import triton.language as tl

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.ops import Call, OpSpec
from ssm_export_plugins.expressions import cdiv, symbol
from ssm_export_plugins.plan import (
    ALWAYS,
    Argument,
    Builder,
    Case,
    Chip,
    Launch,
    Plan,
    Tensor,
    Workspace,
)

MAX_TAPS = 8


@triton.jit
def activated(y, SILU: tl.constexpr):
    """y, or its SiLU."""
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    return y


@triton.jit
def causal_conv1d_prefill(
    x, weight, bias, past, lengths, y, present, T,
    D: tl.constexpr, K: tl.constexpr, SILU: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One tile (BLOCK_T, BLOCK_D) of y; the first tile of a row also writes its state."""
    parts: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    tile, part, row = tl.program_id(0) // parts, tl.program_id(0) % parts, tl.program_id(1)
    d = part * BLOCK_D + tl.arange(0, BLOCK_D)
    ahead = tl.arange(0, BLOCK_T)
    t = tile * BLOCK_T + ahead
    inside = d < D
    length = T
    if lengths is not None:
        length = tl.load(lengths + row)
    total = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    if bias is not None:
        total += tl.load(bias + d, mask=inside, other=0.0).to(tl.float32)[None, :]
    valid = (t < length)[:, None] & inside[None, :]
    # A row may hold more elements than 32 bits count: only what a tile spans is an int32.
    base = (row.to(tl.int64) * T + tile * BLOCK_T) * D
    for k in tl.static_range(K):
        tap = tl.load(weight + d * K + k, mask=inside, other=0.0).to(tl.float32)
        source = ahead[:, None] + (k - (K - 1))
        there = valid & (t[:, None] + (k - (K - 1)) >= 0)
        value = tl.load(x + base + source * D + d[None, :], mask=there, other=0.0)
        total += value.to(tl.float32) * tap[None, :]
    if K > 1:
        if tile == 0:
            before = row.to(tl.int64) * (K - 1) * D
            for k in tl.static_range(K - 1):
                tap = tl.load(weight + d * K + k, mask=inside, other=0.0).to(tl.float32)
                source = t[:, None] + k
                carried = tl.load(
                    past + before + source * D + d[None, :],
                    mask=valid & (source < K - 1),
                    other=0.0,
                )
                total += carried.to(tl.float32) * tap[None, :]
    result = tl.where(valid, activated(total, SILU), 0.0)
    tl.store(
        y + base + ahead[:, None] * D + d[None, :],
        result.to(y.dtype.element_ty),
        mask=(t < T)[:, None] & inside[None, :],
    )
    if K > 1:
        if tile == 0:
            before = row.to(tl.int64) * (K - 1) * D
            state = ()
            for k in tl.static_range(K - 1):
                last = length - (K - 1) + k + tl.zeros([BLOCK_D], dtype=tl.int64)
                newer = tl.load(x + base + last * D + d, mask=inside & (last >= 0), other=0.0)
                older = tl.load(
                    past + before + (last + K - 1) * D + d,
                    mask=inside & (last < 0),
                    other=0.0,
                )
                state = state + (tl.where(last < 0, older, newer),)
            # Every thread has read what it needs of past before any of them writes present.
            tl.debug_barrier()
            for k in tl.static_range(K - 1):
                tl.store(present + before + k * D + d, state[k], mask=inside)


@triton.jit
def causal_conv1d_step(
    x, weight, bias, past, lengths, y, present,
    D: tl.constexpr, K: tl.constexpr, SILU: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One token: BLOCK_D channels of one row; each thread owns its channels' whole state."""
    row = tl.program_id(1)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = d < D
    x_raw = tl.load(x + row.to(tl.int64) * D + d, mask=inside, other=0.0)
    total = x_raw.to(tl.float32) * tl.load(weight + d * K + K - 1, mask=inside, other=0.0).to(
        tl.float32
    )
    if bias is not None:
        total += tl.load(bias + d, mask=inside, other=0.0).to(tl.float32)
    valid = inside
    if lengths is not None:
        valid = inside & (tl.load(lengths + row) > 0)
    before = row.to(tl.int64) * (K - 1) * D
    window = ()
    for k in tl.static_range(K - 1):
        carried = tl.load(past + before + k * D + d, mask=inside, other=0.0)
        tap = tl.load(weight + d * K + k, mask=inside, other=0.0).to(tl.float32)
        total += carried.to(tl.float32) * tap
        window = window + (carried,)
    window = window + (x_raw,)
    result = tl.where(valid, activated(total, SILU), 0.0)
    tl.store(y + row.to(tl.int64) * D + d, result.to(y.dtype.element_ty), mask=inside)
    # Every thread has read what it needs of past before any of them writes present.
    tl.debug_barrier()
    for k in tl.static_range(K - 1):
        kept = tl.where(valid, window[k + 1], window[k])
        tl.store(present + before + k * D + d, kept, mask=inside)


def plans(spec: OpSpec, call: Call, chip: Chip) -> Iterator[Plan]:
    """Plans of one call; see :func:`ssm_export_plugins.kernels.plans`."""
    build = Builder(spec, call)
    names = ("x", "weight", "bias", "past", "y", "present")
    shared = shared_arguments(build, **{name: build.tensor(name) for name in names})
    step = step_launch(build, shared)
    T = build.size("T")
    if T == 1:
        yield build.plan(Case(ALWAYS, (step,)))
        return
    for rows, width in ((32, 128), (16, 128)):
        prefill = prefill_launch(build, shared, rows, width)
        yield build.plan(
            Case(T.equals(1), (step,)), Case(ALWAYS, (prefill,)), label=f"{rows}x{width}"
        )


def shared_arguments(build: Builder, **tensors: Tensor | Workspace | None) -> dict[str, Argument]:
    """The arguments of both kernels.

    Args:
        build: its operator has an input ``weight`` (D, K) and an attribute ``activation``.
        tensors: x, weight, bias, past, y and present.

    Raises:
        SsmExportError: ``KERNEL_UNSUPPORTED`` for too many taps.
    """
    taps = build.size("K")
    if not 1 <= taps <= MAX_TAPS:
        raise SsmExportError(
            errors.KERNEL_UNSUPPORTED,
            f"'weight' has {taps} taps, the kernels take 1 to {MAX_TAPS}",
            where=build.spec.name,
            fix="--lowering native",
        )
    return {
        **tensors,
        "lengths": build.tensor("sequence_lengths"),
        "D": build.size("D"),
        "K": taps,
        "SILU": build.call.attributes["activation"] == "silu",
    }


def step_launch(build: Builder, shared: Mapping[str, Argument]) -> Launch:
    """One token of every row."""
    grid = (cdiv(build.size("D"), 256), symbol("B"))
    return build.launch(causal_conv1d_step, grid, num_warps=4, BLOCK_D=256, **shared)


def prefill_launch(
    build: Builder, shared: Mapping[str, Argument], rows: int = 32, width: int = 128
) -> Launch:
    """A prompt of every row, in tiles of so many tokens and channels."""
    T = symbol("T")
    return build.launch(
        causal_conv1d_prefill,
        (cdiv(T, rows) * -(-build.size("D") // width), symbol("B")),
        T=T,
        BLOCK_T=rows,
        BLOCK_D=width,
        **shared,
    )
