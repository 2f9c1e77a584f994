"""The short causal convolution that most mixers begin with."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ssm_export.layers.basic import empty
from ssm_export.layers.scan_operators import causal_conv1d
from ssm_export.layers.stored import TAPS, Stored


class CausalConv1d(nn.Module):
    """Depthwise causal convolution with SiLU: x (B,T,D), past (B,K−1,D) → y (B,T,D), present.

    ``y_t = silu(bias + Σ_k weight[:, k] · window_{t+k})`` where the window is past then x.
    """

    STORED: ClassVar = {"weight": Stored("weight", TAPS), "bias": Stored("bias")}

    def __init__(self, channels: int, taps: int, *, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = empty(channels, taps, dtype=dtype)
        self.bias = empty(channels, dtype=dtype) if bias else None

    def forward(
        self, x: Tensor, past: Tensor, sequence_lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return causal_conv1d(x, self.weight, self.bias, past, sequence_lengths, activation="silu")
