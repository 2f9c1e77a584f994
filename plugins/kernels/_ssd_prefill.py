"""Prompts of SsdScan, and of linear attention with one decay per head.

Both recurrences are ``S_t = exp(l_t) S_{t-1} + k_t ⊗ v_t`` and ``o_t = S_t q_t``; SsdScan's ``B``,
``C`` and ``x`` are keys, queries and values here. The derivation is in README.md of this folder.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ssm_export_plugins.kernels._ssd_step import step_and_decay

WHOLE, ENDS, REST = 0, 1, 2
"""Passes of the prefill: everything at once; the segments' end states; the segments' outputs."""


@triton.jit
def _power_below(bound):
    """The largest power of two that is no larger, and its inverse; bound in [2^-126, 2^127)."""
    bits = bound.to(tl.int32, bitcast=True) & 0x7F800000
    return bits.to(tl.float32, bitcast=True), (0x7F000000 - bits).to(tl.float32, bitcast=True)


@triton.jit
def _piece(k: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """The indices of piece 0 or 1 of an axis that is cut into FIRST + SECOND."""
    if k == 0:
        return tl.arange(0, FIRST)
    else:
        return FIRST + tl.arange(0, SECOND)


@triton.jit
def _rows(base, i, valid, stride, column, WIDTH: tl.constexpr, POLICY: tl.constexpr):
    """Columns of rows i, [Q, columns]; zeros where a row is not valid or a column beyond WIDTH."""
    mask = valid[:, None] & (column < WIDTH)[None, :]
    return tl.load(
        base + i[:, None] * stride + column[None, :],
        mask=mask,
        other=0.0,
        eviction_policy=POLICY,
    )


@triton.jit
def _at(base, n, p, P: tl.constexpr, N: tl.constexpr, KEY_MAJOR: tl.constexpr):
    """Pointers to a piece of a state, as a tile [N, P], and the mask of what is inside."""
    inside = (n < N)[:, None] & (p < P)[None, :]
    if KEY_MAJOR:
        pointers = base + n[:, None] * P + p[None, :]
    else:
        pointers = base + n[:, None] + p[None, :] * N
    return pointers, inside


@triton.jit
def ssd_scan_prefill(
    x, dt, A, B, C, D, dt_bias, past, lengths, y, present, ends, totals, T, span,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, KEY_HEADS: tl.constexpr,
    QUERY_HEADS: tl.constexpr, SCALE: tl.constexpr, GIVEN: tl.constexpr, SOFTPLUS: tl.constexpr,
    DT_MIN: tl.constexpr, DT_MAX: tl.constexpr, KEY_MAJOR: tl.constexpr, PASS: tl.constexpr,
    Q: tl.constexpr, P0: tl.constexpr, P1: tl.constexpr, N0: tl.constexpr, N1: tl.constexpr,
    PARTS: tl.constexpr, TWICE: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Walk the chunks of one segment of one head of one row, with the state [N, P] in registers.

    Grid: heads, segments of ``span`` tokens (a multiple of Q), rows. P is P0 or P0 + P1 (the last
    one padded), N likewise. PASS 1 writes end states to ``ends`` and their log2 decays to
    ``totals``, slot 0 being a copy of ``past``; PASS 2 begins from there, so ``present`` may be
    the buffer of ``past``. Where PACKED is not 0, a token's x, B and C lie in this order in that
    many elements of one buffer, which all three point to.
    """
    segment, row = tl.program_id(1), tl.program_id(2)
    head, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    NA: tl.constexpr = 2 if N1 > 0 else 1
    NB: tl.constexpr = 2 if P1 > 0 else 1
    QUERIES: tl.constexpr = QUERY_HEADS // H if QUERY_HEADS > H else 1
    X_ROW: tl.constexpr = PACKED if PACKED > 0 else H * P
    B_ROW: tl.constexpr = PACKED if PACKED > 0 else KEY_HEADS * N
    C_ROW: tl.constexpr = PACKED if PACKED > 0 else QUERY_HEADS * N
    B_AT: tl.constexpr = H * P if PACKED > 0 else 0
    C_AT: tl.constexpr = H * P + KEY_HEADS * N if PACKED > 0 else 0
    HALF: tl.constexpr = x.dtype.element_ty == tl.float16
    kind: tl.constexpr = x.dtype.element_ty
    FOLD: tl.constexpr = kind != tl.float32 and not GIVEN and DT_MIN >= 0
    EXACT: tl.constexpr = kind == tl.float32
    i = tl.arange(0, Q)
    lower = i[:, None] >= i[None, :]
    first = segment * span
    end = tl.minimum(first + span, T)
    last = end
    if lengths is not None:
        last = tl.minimum(end, tl.load(lengths + row))
    rate = 0.0
    bias = 0.0
    skip = 0.0
    if A is not None:
        rate = tl.load(A + head)
    if dt_bias is not None:
        bias = tl.load(dt_bias + head)
    if D is not None:
        skip = tl.load(D + head)
    tokens = row.to(tl.int64) * T
    own = (row.to(tl.int64) * H + head) * (N * P)
    slots = tl.num_programs(2).to(tl.int64) * H
    slot = row * H + head
    ns, ps = (), ()
    for a in tl.static_range(NA):
        ns = ns + (_piece(a, N0, N1),)
    for b in tl.static_range(NB):
        ps = ps + (part * P0 + _piece(b, P0, P1),)
    opening = tl.zeros([1, 1], tl.int32) + segment == 0
    state = ()
    for a in tl.static_range(NA):
        for b in tl.static_range(NB):
            tile = tl.zeros([N1 if a > 0 else N0, P1 if b > 0 else P0], tl.float32)
            if PASS == 2:
                begin = (slot + slots * tl.minimum(segment, 1)) * (N * P)
                at, inside = _at(ends + begin, ns[a], ps[b], P, N, True)
                tile += tl.load(at, mask=inside, other=0.0)
            elif past is not None:
                at, inside = _at(past + own, ns[a], ps[b], P, N, KEY_MAJOR)
                tile += tl.load(at, mask=inside & opening, other=0.0)
            if PASS == 1:
                at, inside = _at(ends + slot.to(tl.int64) * (N * P), ns[a], ps[b], P, N, True)
                tl.store(at, tile, mask=inside & opening)
            state = state + (tile,)
    if PASS == 2:
        for before in range(2, segment + 1):
            kept = tl.exp2(tl.load(totals + slot + slots * before))
            combined = ()
            for a in tl.static_range(NA):
                for b in tl.static_range(NB):
                    at, inside = _at(
                        ends + (slot + slots * before) * (N * P), ns[a], ps[b], P, N, True
                    )
                    tile = tl.load(at, mask=inside, other=0.0)
                    combined = combined + (state[a * NB + b] * kept + tile,)
            state = combined

    log_total = first * 0.0
    unit = log_total + 1.0
    dt_base = dt
    raw = tl.zeros([Q], tl.float32)
    if dt is not None:
        dt_base = dt + tokens * H + head
        raw += tl.load(dt_base + (first + i) * H, mask=first + i < last, other=0.0)
    for start in range(first, last, Q):
        valid = start + i < last
        at_chunk = tokens + start
        following = tl.zeros([Q], tl.float32)
        if dt is not None:
            t = start + Q + i
            following += tl.load(dt_base + t * H, mask=t < last, other=0.0)
        values, keys = (), ()
        for b in tl.static_range(NB):
            base = x + at_chunk * X_ROW + head * P
            values = values + (_rows(base, i, valid, X_ROW, ps[b], P, ""),)
        for a in tl.static_range(NA):
            base = B + at_chunk * B_ROW + (B_AT + head // (H // KEY_HEADS) * N)
            keys = keys + (_rows(base, i, valid, B_ROW, ns[a], N, ""),)
        delta, decay = step_and_decay(raw, bias, rate, valid, GIVEN, SOFTPLUS, DT_MIN, DT_MAX)
        raw = following
        if EXACT:
            # Sums of integers are exact, and those of the rest are small: after a strong decay a
            # difference of sums keeps the digits that one long sum would have lost.
            whole = tl.floor(decay + 0.5)
            levels = tl.cumsum(whole, 0)
            decay -= whole
            level = tl.sum(tl.where(i == Q - 1, levels, 0.0), 0)
        sums = tl.cumsum(decay, 0)
        # Not the sum of decay, which rounds otherwise: the last token's share has to be exact.
        total = tl.sum(tl.where(i == Q - 1, sums, 0.0), 0)

        if PASS != 1:
            row_sums = sums[:, None]
            reach = 1.0
            if HALF:
                largest = tl.max(tl.abs(state[0]))
                for k in tl.static_range(1, NA * NB):
                    largest = tl.maximum(largest, tl.max(tl.abs(state[k])))
                power, inverse = _power_below(tl.maximum(largest * unit, 1e-12))
                reach = power * 0.00006103515625
                shift = unit * inverse * 16384.0
            carried = ()
            for k in tl.static_range(NA * NB):
                tile = state[k]
                if HALF:
                    tile *= shift
                carried = carried + (tile.to(kind),)
            goal = sums
            if FOLD:
                goal = sums - tl.log2(tl.maximum(delta, 1e-37))
            for r in tl.static_range(QUERIES):
                query_head = head * QUERIES + r
                if QUERY_HEADS <= H:
                    query_head = head // (H // QUERY_HEADS)
                queries = ()
                for a in tl.static_range(NA):
                    base = C + at_chunk * C_ROW + (C_AT + query_head * N)
                    queries = queries + (_rows(base, i, valid, C_ROW, ns[a], N, ""),)
                scores = tl.zeros([Q, Q], tl.float32)
                for a in tl.static_range(NA):
                    scores = tl.dot(queries[a], tl.trans(keys[a]), scores, input_precision="tf32x3")
                gaps = row_sums - goal[None, :]
                if EXACT:
                    gaps += levels[:, None] - levels[None, :]
                scores *= tl.exp2(tl.where(lower, gaps, float("-inf")))
                if not (GIVEN or FOLD):
                    scores *= delta[None, :]
                if D is not None:
                    scores += tl.where(i[:, None] == i[None, :], skip, 0.0)
                factor = tl.exp2(row_sums + levels[:, None] if EXACT else row_sums)
                if HALF:
                    highest = tl.maximum(tl.max(tl.abs(scores), 1), 1e-12)[:, None]
                    power, inverse = _power_below(highest)
                    scores *= inverse * 16384.0
                    factor *= inverse * (reach * 16384.0)
                    undo = power * (0.00006103515625 * SCALE)
                inner = scores.to(kind)
                for b in tl.static_range(NB):
                    out = tl.zeros([Q, P1 if b > 0 else P0], tl.float32)
                    for a in tl.static_range(NA):
                        out = tl.dot(queries[a], carried[a * NB + b], out, input_precision="tf32x3")
                    out *= factor
                    out = tl.dot(inner, values[b], out, input_precision="tf32x3")
                    if HALF:
                        out *= undo
                    elif SCALE != 1.0:
                        out *= SCALE
                    outputs = y + ((at_chunk * H + head) * QUERIES + r) * P
                    tl.store(
                        outputs + i[:, None] * (H * QUERIES * P) + ps[b][None, :],
                        out.to(kind),
                        mask=(start + i < end)[:, None] & (ps[b] < P)[None, :],
                    )

        rest = total - sums
        if EXACT:
            rest += level - levels
            total += level
        share = tl.exp2(rest) * delta
        kept = tl.exp2(total)
        if HALF:
            power, inverse = _power_below(tl.maximum(tl.max(share, 0), 1e-18))
            share *= inverse * 0.5
            kept *= unit * (inverse * 0.5)
            unit = power * 2.0
        if TWICE:
            keys = ()
            for a in tl.static_range(NA):
                base = B + at_chunk * B_ROW + (B_AT + head // (H // KEY_HEADS) * N)
                keys = keys + (_rows(base, i, valid, B_ROW, ns[a], N, "evict_last"),)
        updated = ()
        for a in tl.static_range(NA):
            for b in tl.static_range(NB):
                inflow = (values[b].to(tl.float32) * share[:, None]).to(kind)
                tile = tl.dot(
                    tl.trans(keys[a]), inflow, state[a * NB + b] * kept, input_precision="tf32x3"
                )
                updated = updated + (tile,)
        state = updated
        if PASS == 1:
            log_total += total

    if PASS == 1:
        ended = slot + slots * (segment + 1)
        for a in tl.static_range(NA):
            for b in tl.static_range(NB):
                at, inside = _at(ends + ended * (N * P), ns[a], ps[b], P, N, True)
                tile = state[a * NB + b]
                if HALF:
                    tile *= unit
                tl.store(at, tile, mask=inside)
        tl.store(totals + ended, log_total)
    else:
        if lengths is not None:
            done = first + tl.cdiv(tl.maximum(last - first, 0), Q) * Q
            for start in range(done, end, Q):
                for b in tl.static_range(NB):
                    for r in tl.static_range(QUERIES):
                        outputs = y + (((tokens + start) * H + head) * QUERIES + r) * P
                        tl.store(
                            outputs + i[:, None] * (H * QUERIES * P) + ps[b][None, :],
                            tl.zeros([Q, P1 if b > 0 else P0], kind),
                            mask=(start + i < end)[:, None] & (ps[b] < P)[None, :],
                        )
        if segment == tl.num_programs(1) - 1:
            # Every thread has read its part of past before any of them writes present.
            tl.debug_barrier()
            for a in tl.static_range(NA):
                for b in tl.static_range(NB):
                    to, within = _at(present + own, ns[a], ps[b], P, N, KEY_MAJOR)
                    final = state[a * NB + b]
                    if HALF:
                        final *= unit
                    tl.store(to, final.to(present.dtype.element_ty), mask=within)
