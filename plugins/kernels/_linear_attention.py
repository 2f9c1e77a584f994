"""The kernels of LinearAttention: token by token, and chunks in matrix products.

With l the cumulated log decay within a chunk and S the state before it, the tokens of a chunk write
rows u_t to the state: S_t = e^{l_t} S + sum_{j<=t} e^{l_t - l_j} k_j u_j^T. With the delta rule

    u_t = beta_t (v_t - e^{l_t} S^T k_t - sum_{j<t} e^{l_t - l_j} (k_j . k_t) u_j)

which is one triangular system per chunk, (I + A) u = diag(beta) (v - e^l K S), with A_tj = beta_t
e^{l_t - l_j} (k_t . k_j) below the diagonal. (I + A)^-1 diag(beta) depends on no state, so a first
launch solves it for all chunks at once, and the second goes through the chunks of a head in turn.

Decays between two tokens are summed from one to the other, not taken as the difference of two
long sums: a reset (a decay of 0, whose logarithm is -inf) then costs no digits and gives no NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def linear_attention_scan(
    query, key, value, past, decay, beta, output, present, T,
    H: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, V: tl.constexpr, SCALE: tl.constexpr,
    GATES: tl.constexpr, BETAS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """All tokens of one head and BLOCK_V columns of its state, which stay in registers.

    GATES is the last size of decay: 0 without, H for one per head, H·K for one per key channel;
    BETAS that of beta: 0, 1 or H. The next token is loaded while the current one is computed.
    """
    part, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    k = tl.arange(0, BLOCK_K)
    v = part * BLOCK_V + tl.arange(0, BLOCK_V)
    in_k, in_v = k < K, v < V
    cells = (row.to(tl.int64) * H + head) * K * V + k[:, None] * V + v[None, :]
    in_state = in_k[:, None] & in_v[None, :]
    state = tl.zeros([BLOCK_K, BLOCK_V], dtype=tl.float32)
    if past is not None:
        state += tl.load(past + cells, mask=in_state, other=0.0).to(tl.float32)
    first = row.to(tl.int64) * T
    ahead = _token(
        query, key, value, decay, beta, first, head, k, v, in_k, in_v,
        H, GROUP, K, V, GATES, BETAS,
    )  # fmt: skip
    for t in range(T):
        keys, values, gate, rate, queries = ahead
        following = first + tl.minimum(t + 1, T - 1)
        ahead = _token(
            query, key, value, decay, beta, following, head, k, v, in_k, in_v,
            H, GROUP, K, V, GATES, BETAS,
        )  # fmt: skip
        if GATES == H:
            state = state * tl.exp(gate)
        elif GATES > 0:
            state = state * tl.exp(gate)[:, None]
        if BETAS > 0:
            values = rate * (values - tl.sum(state * keys[:, None], axis=0))
        state += keys[:, None] * values[None, :]
        for g in tl.static_range(GROUP):
            read = tl.sum(state * queries[g][:, None], axis=0) * SCALE
            place = ((first + t) * H + head) * GROUP + g
            tl.store(output + place * V + v, read.to(output.dtype.element_ty), mask=in_v)
    # Every thread has read what it needs of past before any of them writes present.
    tl.debug_barrier()
    tl.store(present + cells, state.to(present.dtype.element_ty), mask=in_state)


@triton.jit
def _token(
    query, key, value, decay, beta, token, head, k, v, in_k, in_v,
    H: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    GATES: tl.constexpr, BETAS: tl.constexpr,
):  # fmt: skip
    """Key, value, log decay, beta and the queries of one token of a head, in fp32."""
    at = token * H + head
    keys = tl.load(key + at * K + k, mask=in_k, other=0.0).to(tl.float32)
    values = tl.load(value + at * V + v, mask=in_v, other=0.0).to(tl.float32)
    gate = keys
    if GATES == H:
        gate = tl.load(decay + at).to(tl.float32)
    elif GATES > 0:
        gate = tl.load(decay + at * K + k, mask=in_k, other=0.0).to(tl.float32)
    rate = values
    if BETAS > 0:
        rate = tl.load(beta + token * BETAS + head % BETAS).to(tl.float32)
    queries = ()
    for g in tl.static_range(GROUP):
        one = tl.load(query + (at * GROUP + g) * K + k, mask=in_k, other=0.0)
        queries = queries + (one.to(tl.float32),)
    return keys, values, gate, rate, queries


@triton.jit
def _gates(decay, first, t, T, head, H: tl.constexpr):
    """Log decay of each token of a chunk; tokens beyond T have none."""
    return tl.load(decay + (first + t) * H + head, mask=t < T, other=0.0).to(tl.float32)


@triton.jit
def _product(given, wide, total):
    """total + given · wide, where given is of the inputs' type and wide fp32, to fp32 accuracy.

    A factor of 16 bits meets a high and a low part of the other one, so that nothing is rounded
    to 16 bits: bf16 parts for bf16, TF32 parts, which keep the range of fp32, for fp16.
    """
    if given.dtype == tl.bfloat16:
        high = wide.to(tl.bfloat16)
        low = (wide - high.to(tl.float32)).to(tl.bfloat16)
        total = tl.dot(given, high, total)
        total = tl.dot(given, low, total)
    elif given.dtype == tl.float16:
        bits = wide.to(tl.int32, bitcast=True) & -8192
        high = bits.to(tl.float32, bitcast=True)
        total = tl.dot(given.to(tl.float32), high, total, input_precision="tf32")
        total = tl.dot(given.to(tl.float32), wide - high, total, input_precision="tf32")
    else:
        total = tl.dot(given, wide, total, input_precision="tf32x3")
    return total


@triton.jit
def linear_attention_solve(
    key, decay, beta, solved, T,
    H: tl.constexpr, K: tl.constexpr, GATES: tl.constexpr, BETAS: tl.constexpr,
    CHUNK: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """(I + A)^-1 diag(beta) of one chunk and head, by forward substitution row by row.

    ``solved`` is (B, H, chunks, CHUNK, CHUNK) in fp32.
    """
    chunk, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = row.to(tl.int64) * T
    i = tl.arange(0, CHUNK)
    t = chunk * CHUNK + i
    # Element (j, t) of the transposed A, so that a row of A is a sum along the second axis.
    below = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
    for begin in range(0, K, PIECE):
        k = begin + tl.arange(0, PIECE)
        keys = tl.load(
            key + ((first + t) * H + head)[:, None] * K + k[None, :],
            mask=(t < T)[:, None] & (k < K)[None, :],
            other=0.0,
        )
        below = tl.dot(keys, tl.trans(keys), below, input_precision="tf32x3")
    rate = tl.load(beta + (first + t) * BETAS + head % BETAS, mask=t < T, other=0.0)
    rate = rate.to(tl.float32)
    below *= rate[None, :]
    before = i[:, None] < i[None, :]
    if GATES > 0:
        gates = _gates(decay, first, t, T, head, H)
        below *= tl.exp(tl.cumsum(tl.where(before, gates[None, :], 0.0), axis=1))
    below = tl.where(before, below, 0.0)
    inverse = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    for step in range(1, CHUNK):
        weights = tl.sum(tl.where(i[None, :] == step, below, 0.0), axis=1)
        change = tl.sum(weights[:, None] * inverse, axis=0)
        inverse -= tl.where(i[:, None] == step, change[None, :], 0.0)
    chunks = tl.num_programs(0)
    place = ((row.to(tl.int64) * H + head) * chunks + chunk) * CHUNK * CHUNK
    tl.store(solved + place + i[:, None] * CHUNK + i[None, :], inverse * rate[None, :])


@triton.jit
def linear_attention_chunks(
    query, key, value, past, decay, solved, output, carried, present, T,
    H: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, V: tl.constexpr, SCALE: tl.constexpr,
    GATES: tl.constexpr, CHUNK: tl.constexpr, PIECE: tl.constexpr, BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """All chunks of one head and BLOCK_V columns of its state.

    The state is held in fp32 in ``carried``, or in ``present`` where that is fp32, and visited in
    pieces of PIECE rows; the block's own cells stay in the cache, and registers are left for
    products. PRECISION is that of the products of which no factor is an input.
    """
    part, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    held = present if carried is None else carried
    first = row.to(tl.int64) * T
    i = tl.arange(0, CHUNK)
    v = part * BLOCK_V + tl.arange(0, BLOCK_V)
    piece = tl.arange(0, PIECE)
    cells = (row.to(tl.int64) * H + head) * K * V + piece[:, None] * V + v[None, :]
    for begin in range(0, K, PIECE):
        inside = (begin + piece < K)[:, None] & (v < V)[None, :]
        start = tl.zeros([PIECE, BLOCK_V], dtype=tl.float32)
        if past is not None:
            start += tl.load(past + cells + begin * V, mask=inside, other=0.0).to(tl.float32)
        tl.store(held + cells + begin * V, start, mask=inside)
    chunks = tl.cdiv(T, CHUNK)
    for chunk in range(chunks):
        # What any thread wrote to the state is there for all of them after the barrier.
        tl.debug_barrier()
        t = chunk * CHUNK + i
        at = (first + t) * H + head
        in_values = (t < T)[:, None] & (v < V)[None, :]
        recalled = tl.zeros([CHUNK, BLOCK_V], dtype=tl.float32)
        for begin in range(0, K, PIECE):
            k = begin + piece
            state = tl.load(
                held + cells + begin * V, mask=(k < K)[:, None] & (v < V)[None, :], other=0.0
            )
            keys = tl.load(
                key + at[:, None] * K + k[None, :],
                mask=(t < T)[:, None] & (k < K)[None, :],
                other=0.0,
            )
            recalled = _product(keys, state, recalled)
        if GATES > 0:
            gates = _gates(decay, first, t, T, head, H)
            reach = tl.exp(tl.cumsum(gates, axis=0))
            recalled *= reach[:, None]
        written = tl.load(value + at[:, None] * V + v[None, :], mask=in_values, other=0.0)
        written = written.to(tl.float32) - recalled
        place = ((row.to(tl.int64) * H + head) * chunks + chunk) * CHUNK * CHUNK
        rates = tl.load(solved + place + i[:, None] * CHUNK + i[None, :])
        written = tl.dot(rates, written, input_precision=PRECISION)
        for g in range(GROUP):
            scores = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
            read = tl.zeros([CHUNK, BLOCK_V], dtype=tl.float32)
            for begin in range(0, K, PIECE):
                k = begin + piece
                state = tl.load(
                    held + cells + begin * V, mask=(k < K)[:, None] & (v < V)[None, :], other=0.0
                )
                in_keys = (t < T)[:, None] & (k < K)[None, :]
                keys = tl.load(key + at[:, None] * K + k[None, :], mask=in_keys, other=0.0)
                asked = query + (at * GROUP + g)[:, None] * K + k[None, :]
                queries = tl.load(asked, mask=in_keys, other=0.0)
                scores = tl.dot(queries, tl.trans(keys), scores, input_precision="tf32x3")
                read = _product(queries, state, read)
            causal = i[:, None] >= i[None, :]
            if GATES > 0:
                between = tl.where(i[:, None] > i[None, :], gates[:, None], 0.0)
                scores *= tl.exp(tl.cumsum(between, axis=0))
                read *= reach[:, None]
            scores = tl.where(causal, scores, 0.0)
            read = tl.dot(scores, written, read, input_precision=PRECISION) * SCALE
            answers = output + (at * GROUP + g)[:, None] * V + v[None, :]
            tl.store(answers, read.to(output.dtype.element_ty), mask=in_values)
        kept = 1.0
        if GATES > 0:
            after = tl.sum(tl.where(i[:, None] > i[None, :], gates[:, None], 0.0), axis=0)
            written *= tl.exp(after)[:, None]
            kept = tl.exp(tl.sum(gates, axis=0))
        # Every thread has read the state before any of them writes it.
        tl.debug_barrier()
        for begin in range(0, K, PIECE):
            k = begin + piece
            inside = (k < K)[:, None] & (v < V)[None, :]
            state = tl.load(held + cells + begin * V, mask=inside, other=0.0)
            keys = tl.load(
                key + at[None, :] * K + k[:, None],
                mask=(k < K)[:, None] & (t < T)[None, :],
                other=0.0,
            )
            state = _product(keys, written, state * kept)
            tl.store(held + cells + begin * V, state, mask=inside)
    if carried is not None:
        tl.debug_barrier()
        for begin in range(0, K, PIECE):
            inside = (begin + piece < K)[:, None] & (v < V)[None, :]
            state = tl.load(carried + cells + begin * V, mask=inside, other=0.0)
            tl.store(present + cells + begin * V, state.to(present.dtype.element_ty), mask=inside)
