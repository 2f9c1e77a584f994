"""The Mamba-2 mixer: state-space duality (Dao & Gu 2024, section 7)."""

from __future__ import annotations

from typing import ClassVar, Final

import torch
from torch import Tensor, nn

from ssm_export.layers.basic import Linear, RMSNorm, empty, silu, to_accumulator
from ssm_export.layers.convolution import CausalConv1d
from ssm_export.layers.scan_operators import ssd_scan
from ssm_export.layers.state import MixerState
from ssm_export.layers.stored import NEGATIVE_EXP, Stored

CHUNK_SIZE: Final = 64
"""Tokens that go through matrix products together. The result does not depend on it, so a config's
own value, tuned for training, is not taken: on a CPU 512 tokens took 9.9 ms with 64, 11.2 with 128
and 15.3 with 256 (24 heads of 64, state 128)."""


class Mamba2Mixer(nn.Module):
    """Mamba-2: ``hidden (B,T,M), conv (B,K−1,D+2GN), ssm (B,H,P,N) → out (B,T,M), conv, ssm``.

    ``z, xBC, dt = in_proj(hidden)``; ``x, B, C = silu(conv(xBC))``; ``y = ssd(x, dt, A, B, C, D)``;
    ``out = out_proj(norm(y · silu(z)))`` where the norm runs over each of the G groups.
    """

    STORED: ClassVar = {
        "A": Stored("A_log", NEGATIVE_EXP),
        "D": Stored("D"),
        "dt_bias": Stored("dt_bias"),
    }

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        head_width: int,
        state_size: int,
        groups: int,
        taps: int,
        bias: bool,
        conv_bias: bool,
        epsilon: float,
        dt_limit: tuple[float, float],
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.state_size, self.groups, self.taps = state_size, groups, taps
        self.dt_limit = dt_limit
        self.inner = heads * head_width
        self.conv_channels = self.inner + 2 * groups * state_size
        self.in_proj = Linear(
            width, self.inner + self.conv_channels + heads, bias=bias, dtype=dtype
        )
        self.conv1d = CausalConv1d(self.conv_channels, taps, bias=conv_bias, dtype=dtype)
        self.A = empty(heads, dtype=torch.float32)
        self.D = empty(heads, dtype=torch.float32)
        self.dt_bias = empty(heads, dtype=torch.float32)
        self.norm = RMSNorm(self.inner, epsilon, groups=groups, dtype=dtype)
        self.out_proj = Linear(self.inner, width, bias=bias, dtype=dtype)

    def states(self) -> tuple[MixerState, ...]:
        """The states this mixer carries, in the order ``forward`` takes and gives them."""
        ssm = (self.heads, self.head_width, self.state_size)
        return (
            MixerState("conv", (self.taps - 1, self.conv_channels), "B,K-1,D", recurrent=False),
            MixerState("ssm", ssm, "B,H,P,N", recurrent=True),
        )

    def forward(
        self, hidden: Tensor, past: tuple[Tensor, ...], sequence_lengths: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        past_conv, past_ssm = past
        sizes = [self.inner, self.conv_channels, self.heads]
        z, xBC, dt = self.in_proj(hidden).split(sizes, dim=-1)
        xBC, present_conv = self.conv1d(xBC, past_conv, sequence_lengths)
        shared = self.groups * self.state_size
        x, B, C = xBC.split([self.inner, shared, shared], dim=-1)
        y, present_ssm = ssd_scan(
            x.unflatten(-1, (self.heads, self.head_width)),
            dt,
            self.A,
            B.unflatten(-1, (self.groups, self.state_size)),
            C.unflatten(-1, (self.groups, self.state_size)),
            self.D,
            self.dt_bias,
            past_ssm,
            sequence_lengths,
            dt_softplus=True,
            dt_min=self.dt_limit[0],
            dt_max=self.dt_limit[1],
            chunk_size=CHUNK_SIZE,
        )
        gated = to_accumulator(y.flatten(-2)) * silu(to_accumulator(z))
        return self.out_proj(self.norm(gated)), (present_conv, present_ssm)
