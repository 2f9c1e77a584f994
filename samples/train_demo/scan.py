"""Selective scans fast enough to train on one CPU core.

`selective_scan` is the Mamba-1 recurrence with a hand-written adjoint: autograd never sees the
time loop. `ssd_chunked` is the Mamba-2 recurrence in its chunked matrix form, plain autograd.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

BLOCK = 8
"""Time steps handled per block in the Mamba-1 scan: small enough to stay in the core's cache."""

LOG2_E = 1.0 / math.log(2.0)


class SelectiveScan(torch.autograd.Function):
    """h_t = exp(dt_t A) h_{t-1} + (dt_t x_t) B_t ; y_t = C_t . h_t, time-major, float32.

    Shapes: x, dt (T, B, D); A (N, D), negative; Bm, Cm (T, B, N); result y (T, B, D).
    The state is laid out (B, N, D) so that the innermost axis is long and contiguous.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, A: Tensor, Bm: Tensor, Cm: Tensor) -> Tensor:
        """Run the recurrence from a zero state; keeps the state before each block."""
        steps, batch, width = x.shape
        n = A.shape[0]
        y = torch.empty_like(x)
        rate = A * LOG2_E  # exp2 is about three times as fast as exp here
        drive = dt * x
        decay, states = x.new_empty(2, BLOCK, batch, n, width)
        entry = x.new_empty(-(-steps // BLOCK), batch, n, width)
        state = x.new_zeros(batch, n, width)
        for index, lo in enumerate(range(0, steps, BLOCK)):
            hi = min(lo + BLOCK, steps)
            q = hi - lo
            entry[index] = state
            a = torch.mul(dt[lo:hi, :, None, :], rate, out=decay[:q]).exp2_()
            h = torch.mul(drive[lo:hi, :, None, :], Bm[lo:hi, :, :, None], out=states[:q])
            h[0].addcmul_(a[0], entry[index])
            for t in range(1, q):
                h[t].addcmul_(a[t], h[t - 1])
            state = h[q - 1]
            torch.bmm(
                Cm[lo:hi].view(q * batch, 1, n),
                h.view(q * batch, n, width),
                out=y[lo:hi].view(q * batch, 1, width),
            )
        ctx.save_for_backward(x, dt, A, Bm, Cm, entry, drive)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        """Adjoint: the reverse recurrence g_t = C_t gy_t + exp(dt_{t+1} A) g_{t+1}.

        Each block's states are computed again from the state kept at its entry.
        """
        x, dt, A, Bm, Cm, entry, drive = ctx.saved_tensors
        gy = grads[0].contiguous()
        steps, batch, width = x.shape
        n = A.shape[0]
        rate = A * LOG2_E
        g_drive, g_dt = torch.empty_like(x), torch.zeros_like(x)
        g_b, g_c = torch.empty_like(Bm), torch.empty_like(Cm)
        g_a = x.new_zeros(batch, n, width)
        decay, states, adjoint, scratch = x.new_empty(4, BLOCK, batch, n, width)
        carry = x.new_zeros(batch, n, width)
        for index in range(entry.shape[0] - 1, -1, -1):
            lo = index * BLOCK
            hi = min(lo + BLOCK, steps)
            q = hi - lo
            flat = q * batch
            a = torch.mul(dt[lo:hi, :, None, :], rate, out=decay[:q]).exp2_()
            h = torch.mul(drive[lo:hi, :, None, :], Bm[lo:hi, :, :, None], out=states[:q])
            h[0].addcmul_(a[0], entry[index])
            for t in range(1, q):
                h[t].addcmul_(a[t], h[t - 1])
            work = torch.mul(h, gy[lo:hi, :, None, :], out=scratch[:q])
            torch.sum(work, -1, out=g_c[lo:hi])
            g = torch.mul(gy[lo:hi, :, None, :], Cm[lo:hi, :, :, None], out=adjoint[:q])
            g[q - 1].add_(carry)
            for t in range(q - 2, -1, -1):
                g[t].addcmul_(a[t + 1], g[t + 1])
            torch.mul(a[0], g[0], out=carry)
            g3 = g.view(flat, n, width)
            torch.bmm(Bm[lo:hi].view(flat, 1, n), g3, out=g_drive[lo:hi].view(flat, 1, width))
            torch.mul(g, drive[lo:hi, :, None, :], out=work)
            torch.sum(work, -1, out=g_b[lo:hi])
            g.mul_(a)
            g[0].mul_(entry[index])
            if q > 1:
                g[1:].mul_(h[: q - 1])
            for t in range(q):
                g_a.addcmul_(g[t], dt[lo + t, :, None, :])
            rows = g_dt[lo:hi].view(flat, width)
            for k in range(n):
                rows.addcmul_(g3[:, k], A[k])
        g_dt.addcmul_(g_drive, x)
        return g_drive * dt, g_dt, g_a.sum(0), g_b, g_c


def selective_scan(x: Tensor, dt: Tensor, A: Tensor, Bm: Tensor, Cm: Tensor) -> Tensor:
    """Differentiable Mamba-1 scan; shapes as in `SelectiveScan`."""
    return SelectiveScan.apply(  # type: ignore[no-any-return, no-untyped-call]
        x.contiguous(), dt.contiguous(), A.contiguous(), Bm.contiguous(), Cm.contiguous()
    )


def ssd_chunked(x: Tensor, dt: Tensor, A: Tensor, Bm: Tensor, Cm: Tensor, chunk: int) -> Tensor:
    """Mamba-2 scan from a zero state, chunked matrix form, float32.

    Shapes: x (B, T, H, P), dt (B, T, H), A (H,) negative, Bm and Cm (B, T, G, N) with H a
    multiple of G; result y (B, T, H, P). T need not be a multiple of `chunk`.
    """
    batch, steps, heads, _ = x.shape
    groups, n = Bm.shape[2], Bm.shape[3]
    per = heads // groups
    pad = -steps % chunk
    if pad:
        x, Bm, Cm = (torch.nn.functional.pad(v, (0, 0, 0, 0, 0, pad)) for v in (x, Bm, Cm))
        dt = torch.nn.functional.pad(dt, (0, 0, 0, pad))
    c = (steps + pad) // chunk
    drive = (x * dt[..., None]).view(batch, c, chunk, groups, per, -1)
    drive = drive.permute(0, 1, 3, 4, 2, 5)  # (B, c, G, R, Q, P)
    b = Bm.view(batch, c, chunk, groups, n).permute(0, 1, 3, 2, 4)  # (B, c, G, Q, N)
    cc = Cm.view(batch, c, chunk, groups, n).permute(0, 1, 3, 2, 4)
    log_decay = (dt * A).view(batch, c, chunk, groups, per).permute(0, 1, 3, 4, 2)
    cum = log_decay.cumsum(-1)  # (B, c, G, R, Q)
    upper = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).triu(1)
    mask = (cum[..., :, None] - cum[..., None, :]).masked_fill(upper, -torch.inf).exp()
    scores = (cc @ b.transpose(-1, -2))[:, :, :, None] * mask  # (B, c, G, R, Q, Q)
    y = scores @ drive
    tail = (cum[..., -1:] - cum).exp()[..., None] * drive
    added = b.transpose(-1, -2)[:, :, :, None] @ tail  # (B, c, G, R, N, P)
    total = cum[..., -1].exp()[..., None, None]
    state = torch.zeros_like(added[:, 0])
    before = []
    for k in range(c):
        before.append(state)
        state = total[:, k] * state + added[:, k]
    carried = cc[:, :, :, None] @ torch.stack(before, 1)
    y = y + cum.exp()[..., None] * carried
    y = y.permute(0, 1, 4, 2, 3, 5).reshape(batch, steps + pad, heads, -1)
    return y[:, :steps]
