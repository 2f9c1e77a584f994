"""The Mamba-1 mixer: gated selective scan (Gu & Dao 2023, algorithm 2)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ssm_export.layers.basic import Linear, empty
from ssm_export.layers.convolution import CausalConv1d
from ssm_export.layers.scan_operators import selective_scan
from ssm_export.layers.state import MixerState
from ssm_export.layers.stored import NEGATIVE_EXP, TRANSPOSED, Stored


class DtProjection(nn.Module):
    """``rank (B,T,R) → dt (B,T,D)`` without its bias, which the scan adds in fp32."""

    STORED: ClassVar = {"weight": Stored("weight", TRANSPOSED)}

    def __init__(self, rank: int, inner: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = empty(rank, inner, dtype=dtype)

    def forward(self, rank: Tensor) -> Tensor:
        return rank @ self.weight


class MambaMixer(nn.Module):
    """Mamba-1: ``hidden (B,T,M), conv (B,K−1,D), ssm (B,D,N) → out (B,T,M), conv, ssm``.

    ``x, z = in_proj(hidden)``; ``x = silu(conv(x))``; ``dt, B, C = x_proj(x)``;
    ``out = out_proj(scan(x, dt_proj(dt), A, B, C, D) · silu(z))``.
    """

    STORED: ClassVar = {
        "A": Stored("A_log", NEGATIVE_EXP),
        "D": Stored("D"),
        "dt_bias": Stored("dt_proj.bias"),
    }

    def __init__(
        self,
        *,
        width: int,
        inner: int,
        state_size: int,
        rank: int,
        taps: int,
        bias: bool,
        conv_bias: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.inner, self.state_size, self.rank, self.taps = inner, state_size, rank, taps
        self.in_proj = Linear(width, 2 * inner, bias=bias, dtype=dtype)
        self.conv1d = CausalConv1d(inner, taps, bias=conv_bias, dtype=dtype)
        self.x_proj = Linear(inner, rank + 2 * state_size, bias=False, dtype=dtype)
        self.dt_proj = DtProjection(rank, inner, dtype=dtype)
        self.A = empty(inner, state_size, dtype=torch.float32)
        self.D = empty(inner, dtype=torch.float32)
        self.dt_bias = empty(inner, dtype=torch.float32)
        self.out_proj = Linear(inner, width, bias=bias, dtype=dtype)

    def states(self) -> tuple[MixerState, ...]:
        """The states this mixer carries, in the order ``forward`` takes and gives them."""
        return (
            MixerState("conv", (self.taps - 1, self.inner), "B,K-1,D", recurrent=False),
            MixerState("ssm", (self.inner, self.state_size), "B,D,N", recurrent=True),
        )

    def forward(
        self, hidden: Tensor, past: tuple[Tensor, ...], sequence_lengths: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        past_conv, past_ssm = past
        x, z = self.in_proj(hidden).split([self.inner, self.inner], dim=-1)
        x, present_conv = self.conv1d(x, past_conv, sequence_lengths)
        sizes = [self.rank, self.state_size, self.state_size]
        rank, B, C = self.x_proj(x).split(sizes, dim=-1)
        dt = self.dt_proj(rank)
        y, present_ssm = selective_scan(
            x, dt, self.A, B, C, self.D, z, self.dt_bias, past_ssm, sequence_lengths,
            dt_softplus=True,
        )  # fmt: skip
        return self.out_proj(y), (present_conv, present_ssm)
