"""ConvSsdScan on a GPU: a prompt's convolution feeds SsdScan's kernels; a token takes one launch.

The scan reads x, B and C where the convolution wrote them, side by side in one scratch buffer.
For one token every block convolves the channels that it needs. All heads of a group read the
conv state of its B and C, which may be overwritten in place, so the last block to finish writes
it: the blocks count themselves in ``tickets``, which the last one leaves at zero.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.ops import Call, OpSpec
from ssm_export.ops._fused import groups
from ssm_export_plugins.expressions import cdiv, symbol
from ssm_export_plugins.kernels import causal_conv1d
from ssm_export_plugins.kernels._ssd_step import step_and_decay
from ssm_export_plugins.kernels.causal_conv1d import activated
from ssm_export_plugins.kernels.ssd_scan import packed_cases, scan_constants
from ssm_export_plugins.plan import Builder, Case, Chip, Launch, Persistent, Plan, Workspace

MAX_TICKETS = 4096
"""Rows times groups that one launch counts: 16 KB for each layer. Beyond, a token takes two."""


@triton.jit
def _window(x, past, d, inside, D: tl.constexpr, K: tl.constexpr):
    """The K inputs of channels d, oldest first; x and past point to their row."""
    window = ()
    for k in tl.static_range(K - 1):
        window = window + (tl.load(past + k * D + d, mask=inside, other=0.0),)
    return window + (tl.load(x + d, mask=inside, other=0.0),)


@triton.jit
def _convolved(window, weight, bias, d, inside, valid, K: tl.constexpr, SILU: tl.constexpr):
    """The convolution of a window in fp32, activated; zeros where not valid."""
    total = tl.zeros(d.shape, tl.float32)
    if bias is not None:
        total += tl.load(bias + d, mask=inside, other=0.0)
    for k in tl.static_range(K):
        tap = tl.load(weight + d * K + k, mask=inside, other=0.0).to(tl.float32)
        total += window[k].to(tl.float32) * tap
    return tl.where(inside & valid, activated(total, SILU), 0.0)


@triton.jit
def _keep(present, window, d, inside, valid, D: tl.constexpr, K: tl.constexpr):
    """The last K-1 inputs of channels d, of which the newest counts where valid."""
    for k in tl.static_range(K - 1):
        tl.store(present + k * D + d, tl.where(valid, window[k + 1], window[k]), mask=inside)


@triton.jit
def conv_ssd_scan_step(
    xBC, weight, bias, past_conv, dt, A, D, dt_bias, past_ssm, lengths,
    y, present_conv, present_ssm, tickets,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, G: tl.constexpr, K: tl.constexpr,
    SILU: tl.constexpr, SOFTPLUS: tl.constexpr, DT_MIN: tl.constexpr, DT_MAX: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One token: BLOCK_P columns of the state of one head of one row, all of N."""
    part, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    CHANNELS: tl.constexpr = H * P + 2 * G * N
    group = head // (H // G)
    p, n = part * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    place = (row.to(tl.int64) * H + head) * (P * N) + p[:, None] * N + n[None, :]
    inside = (p < P)[:, None] & (n < N)[None, :]
    state = tl.load(past_ssm + place, mask=inside, other=0.0).to(tl.float32)
    at_x, at_B = head * P + p, H * P + group * N + n
    at_C = at_B + G * N
    x_row = xBC + row.to(tl.int64) * CHANNELS
    past_row = past_conv + row.to(tl.int64) * ((K - 1) * CHANNELS)
    window_x = _window(x_row, past_row, at_x, p < P, CHANNELS, K)
    window_B = _window(x_row, past_row, at_B, n < N, CHANNELS, K)
    window_C = _window(x_row, past_row, at_C, n < N, CHANNELS, K)
    length = tl.zeros([1], tl.int32) + 1
    if lengths is not None:
        length += tl.load(lengths + row) - 1
    valid = length > 0
    value = _convolved(window_x, weight, bias, at_x, p < P, valid, K, SILU)
    key = _convolved(window_B, weight, bias, at_B, n < N, valid, K, SILU)
    query = _convolved(window_C, weight, bias, at_C, n < N, valid, K, SILU)
    shift = 0.0
    if dt_bias is not None:
        shift = tl.load(dt_bias + head)
    raw = tl.load(dt + row.to(tl.int64) * H + head).to(tl.float32) + tl.zeros([1], tl.float32)
    delta, decay = step_and_decay(
        raw, shift, tl.load(A + head), valid, False, SOFTPLUS, DT_MIN, DT_MAX
    )
    state = state * tl.exp2(decay)[:, None] + (value * delta)[:, None] * key[None, :]
    out = tl.sum(state * query[None, :], 1)
    if D is not None:
        out += tl.load(D + head) * value
    tl.store(y + (row.to(tl.int64) * H + head) * P + p, out.to(y.dtype.element_ty), mask=p < P)
    # All threads have read both states before one writes, and before this block is counted.
    tl.debug_barrier()
    tl.store(present_ssm + place, state.to(present_ssm.dtype.element_ty), mask=inside)
    if K > 1:
        present_row = present_conv + row.to(tl.int64) * ((K - 1) * CHANNELS)
        _keep(present_row, window_x, at_x, p < P, valid, CHANNELS, K)
        ticket = tickets + row * G + group
        blocks = (H // G) * tl.num_programs(0)
        if tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu") == blocks - 1:
            _keep(present_row, window_B, at_B, n < N, valid, CHANNELS, K)
            _keep(present_row, window_C, at_C, n < N, valid, CHANNELS, K)
            tl.store(ticket, 0)


def plans(spec: OpSpec, call: Call, chip: Chip) -> Iterator[Plan]:
    """Plans of one call; see :func:`ssm_export_plugins.kernels.plans`.

    Raises:
        SsmExportError: ``KERNEL_UNSUPPORTED`` naming the operator and the tensor.
    """
    build = Builder(spec, call)
    channels, heads, width, states = (build.size(letter) for letter in "DHPN")
    shared_by = groups(channels, heads, width, states)
    if not shared_by:
        raise SsmExportError(
            errors.KERNEL_UNSUPPORTED,
            f"'xBC' has {channels} channels, which are not {heads} heads of {width} and two times "
            f"some groups of {states}",
            where=spec.name,
            fix="--lowering native",
        )
    B, T = symbol("B"), build.size("T")
    kind = build.operands["xBC"].type
    convolved = Workspace("convolved", kind, B * T * channels)
    conv = causal_conv1d.shared_arguments(
        build,
        x=build.tensor("xBC"),
        weight=build.tensor("weight"),
        bias=build.tensor("bias"),
        past=build.tensor("past_conv"),
        y=convolved,
        present=build.tensor("present_conv"),
    )
    countable = (B * shared_by) <= MAX_TICKETS
    step = Case(countable, (_step(build, shared_by),))
    conv_step = causal_conv1d.step_launch(build, conv)
    for label, (first, *others) in packed_cases(build, chip, convolved, shared_by):
        two = Case(first.when, (conv_step, *first.launches))
        if T == 1:
            yield build.plan(step, two, label=label)
            continue
        one = Case(first.when.also(countable), step.launches)
        prefill = causal_conv1d.prefill_launch(build, conv)
        prompts = (Case(other.when, (prefill, *other.launches)) for other in others)
        yield build.plan(one, two, *prompts, label=label)


def _step(build: Builder, shared_by: int) -> Launch:
    """One token: 8 KB of state to a block, as in SsdScan."""
    heads, width, states = (build.size(letter) for letter in "HPN")
    block_n = 1 << (states - 1).bit_length()
    elements = 4096 if build.operands["present_ssm"].type == "float16" else 2048
    block_p = max(1, min(elements // block_n, 1 << (width - 1).bit_length()))
    names = ("xBC", "weight", "bias", "past_conv", "dt", "A", "D", "dt_bias", "past_ssm", "y",
             "present_conv", "present_ssm")  # fmt: skip
    constants = scan_constants(build.call)
    return build.launch(
        conv_ssd_scan_step,
        (cdiv(width, block_p), heads, symbol("B")),
        **{name: build.tensor(name) for name in names},
        lengths=build.tensor("sequence_lengths"),
        tickets=Persistent("tickets", "int32", MAX_TICKETS),
        H=heads,
        P=width,
        N=states,
        G=shared_by,
        K=build.size("K"),
        SILU=build.call.attributes["activation"] == "silu",
        BLOCK_P=block_p,
        BLOCK_N=block_n,
        **{name: constants[name] for name in ("SOFTPLUS", "DT_MIN", "DT_MAX")},
    )
