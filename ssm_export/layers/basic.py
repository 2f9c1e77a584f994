"""Projections, norms, embedding and head: the parts that carry no state."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssm_export.layers.stored import SAME, TRANSPOSED, Stored


def empty(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """A parameter without values; models are built empty and their weights are streamed in."""
    return nn.Parameter(torch.empty(*shape, dtype=dtype), requires_grad=False)


class Linear(nn.Module):
    """``x (…, inputs) → x @ weight + bias (…, outputs)`` with weight (inputs, outputs)."""

    STORED: ClassVar = {"weight": Stored("weight", TRANSPOSED), "bias": Stored("bias")}

    def __init__(self, inputs: int, outputs: int, *, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = empty(inputs, outputs, dtype=dtype)
        self.bias = empty(outputs, dtype=dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x²) + epsilon) · weight`` over the last axis, computed in fp32 or wider.

    ``groups`` normalises that many equal parts of the axis on their own, as Mamba-2's gated norm
    does. The result has the type of ``weight``.
    """

    STORED: ClassVar = {"weight": Stored("weight")}

    def __init__(self, width: int, epsilon: float, *, dtype: torch.dtype, groups: int = 1) -> None:
        super().__init__()
        self.weight = empty(width, dtype=dtype)
        self.epsilon = epsilon
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        wide = to_accumulator(x)
        width = wide.shape[-1]
        if self.groups > 1:
            wide = wide.reshape(*wide.shape[:-1], self.groups, width // self.groups)
        normalised = wide / torch.sqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        if self.groups > 1:
            normalised = normalised.reshape(*normalised.shape[:-2], width)
        return normalised.to(self.weight.dtype) * self.weight


class Embedding(nn.Module):
    """``ids (B,T) → weight[ids] (B,T,M)``."""

    STORED: ClassVar = {"weight": Stored("weight", SAME)}

    def __init__(self, vocabulary: int, width: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = empty(vocabulary, width, dtype=dtype)

    def forward(self, ids: Tensor) -> Tensor:
        return functional.embedding(ids, self.weight)


class Head(nn.Module):
    """``x (B,T,M) → logits (B,T,V)`` with weight (V,M), the orientation embeddings are tied in."""

    STORED: ClassVar = {"weight": Stored("weight", SAME)}

    def __init__(self, vocabulary: int, width: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = empty(vocabulary, width, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return project_to_vocabulary(x, self.weight)


def project_to_vocabulary(x: Tensor, weight: Tensor) -> Tensor:
    """``x (B,T,M) @ weight (V,M)ᵀ → (B,T,V)``: one Gemm, so that a tied weight is stored once."""
    return functional.linear(x.to(weight.dtype), weight)


def silu(x: Tensor) -> Tensor:
    """``x · sigmoid(x)``."""
    return x * torch.sigmoid(x)


def to_accumulator(x: Tensor) -> Tensor:
    """``x`` in fp32, or in fp64 when it is fp64 (the reference run)."""
    return x if x.dtype == torch.float64 else x.float()
