"""Two byte-level language models whose state_dict keys are the ones transformers writes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from scan import selective_scan, ssd_chunked
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of one model. `heads`, `head_dim`, `groups` and `chunk` are used by Mamba-2 only."""

    family: str
    hidden: int = 160
    layers: int = 5
    state: int = 16
    expand: int = 2
    conv: int = 4
    dt_rank: int = 10
    heads: int = 10
    head_dim: int = 32
    groups: int = 2
    chunk: int = 64
    vocab: int = 256
    eps: float = 1e-5
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    dt_floor: float = 1e-4

    @property
    def inner(self) -> int:
        """Width after the expansion."""
        return self.expand * self.hidden


SHAPES = {
    "mamba": Shape(family="mamba"),
    "mamba2": Shape(family="mamba2", state=48),
}


def initial_dt_bias(count: int, shape: Shape) -> Tensor:
    """Inverse softplus of steps drawn log-uniformly in [dt_min, dt_max]; (count,) float32."""
    span = math.log(shape.dt_max) - math.log(shape.dt_min)
    dt = torch.exp(torch.rand(count) * span + math.log(shape.dt_min)).clamp(min=shape.dt_floor)
    return dt + torch.log(-torch.expm1(-dt))


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same shape."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class GatedRMSNorm(nn.Module):
    """Gate by silu(z), then an RMS norm within each group: norm_before_gate = False."""

    def __init__(self, width: int, groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.groups, self.eps = groups, eps

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """(..., width) each, to the same shape."""
        gated = (y * F.silu(z)).unflatten(-1, (self.groups, -1))
        return F.rms_norm(gated, (gated.shape[-1],), None, self.eps).flatten(-2) * self.weight


class CausalConv(nn.Module):
    """Depthwise causal convolution and silu; weight (C, 1, W), bias (C,)."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(taps)
        self.weight = nn.Parameter(torch.empty(channels, 1, taps).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, dim: int) -> Tensor:
        """x with time on axis `dim` (0 or 1) and channels last; same shape out."""
        taps, steps = self.weight.shape[-1], x.shape[dim]
        front = (0, 0) * (x.dim() - 1 - dim) + (taps - 1, 0)
        padded = F.pad(x, front)
        columns = self.weight[:, 0].t().contiguous()
        out = torch.addcmul(self.bias, padded.narrow(dim, taps - 1, steps), columns[taps - 1])
        for k in range(taps - 1):
            out = torch.addcmul(out, padded.narrow(dim, k, steps), columns[k])
        return F.silu(out)


class MambaMixer(nn.Module):
    """Mamba-1 (S6) mixer."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.split = [s.dt_rank, s.state, s.state]
        self.in_proj = nn.Linear(s.hidden, 2 * s.inner, bias=False)
        self.conv1d = CausalConv(s.inner, s.conv)
        self.x_proj = nn.Linear(s.inner, s.dt_rank + 2 * s.state, bias=False)
        self.dt_proj = nn.Linear(s.dt_rank, s.inner, bias=True)
        nn.init.uniform_(self.dt_proj.weight, -(s.dt_rank**-0.5), s.dt_rank**-0.5)
        self.dt_proj.bias.data.copy_(initial_dt_bias(s.inner, s))
        ladder = torch.arange(1, s.state + 1, dtype=torch.float32)
        self.A_log = nn.Parameter(ladder.log().expand(s.inner, -1).contiguous())
        self.D = nn.Parameter(torch.ones(s.inner))
        self.out_proj = nn.Linear(s.inner, s.hidden, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        """(B, T, hidden) to the same shape; time-major inside."""
        x, z = self.in_proj(u.transpose(0, 1).contiguous()).chunk(2, dim=-1)
        x = self.conv1d(x, 0)
        delta, b, c = self.x_proj(x).split(self.split, dim=-1)
        dt = F.softplus(self.dt_proj(delta))
        y = selective_scan(x, dt, -torch.exp(self.A_log).t(), b, c)
        y = torch.addcmul(y, x, self.D)
        out: Tensor = self.out_proj(y * F.silu(z))
        return out.transpose(0, 1)


class Mamba2Mixer(nn.Module):
    """Mamba-2 (SSD) mixer with grouped B and C."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.channels = s.inner + 2 * s.groups * s.state
        self.in_proj = nn.Linear(s.hidden, s.inner + self.channels + s.heads, bias=False)
        self.conv1d = CausalConv(self.channels, s.conv)
        self.dt_bias = nn.Parameter(initial_dt_bias(s.heads, s))
        ladder = torch.arange(1, s.heads + 1, dtype=torch.float32)
        self.A_log = nn.Parameter(ladder.log())
        self.D = nn.Parameter(torch.ones(s.heads))
        self.norm = GatedRMSNorm(s.inner, s.groups, s.eps)
        self.out_proj = nn.Linear(s.inner, s.hidden, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        """(B, T, hidden) to the same shape."""
        s = self.s
        z, xbc, dt = self.in_proj(u).split([s.inner, self.channels, s.heads], dim=-1)
        xbc = self.conv1d(xbc, 1)
        gn = s.groups * s.state
        x, b, c = xbc.split([s.inner, gn, gn], dim=-1)
        x = x.unflatten(-1, (s.heads, s.head_dim))
        dt = F.softplus(dt + self.dt_bias)
        b, c = (v.unflatten(-1, (s.groups, s.state)) for v in (b, c))
        y = ssd_chunked(x, dt, -torch.exp(self.A_log), b, c, s.chunk)
        y = torch.addcmul(y, x, self.D[:, None])
        out: Tensor = self.out_proj(self.norm(y.flatten(-2), z))
        return out


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.norm = RMSNorm(s.hidden, s.eps)
        self.mixer: nn.Module = MambaMixer(s) if s.family == "mamba" else Mamba2Mixer(s)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, hidden) to the same shape."""
        out: Tensor = x + self.mixer(self.norm(x))
        return out


class Backbone(nn.Module):
    """Embedding, blocks and final norm."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(s.vocab, s.hidden)
        self.layers = nn.ModuleList(Block(s) for _ in range(s.layers))
        self.norm_f = RMSNorm(s.hidden, s.eps)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) int64 to (B, T, hidden) float32."""
        x = self.embeddings(ids)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.norm_f(x)
        return out


class ByteLM(nn.Module):
    """Language model over bytes with the output tied to the embedding."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.shape = s
        self.backbone = Backbone(s)
        nn.init.normal_(self.backbone.embeddings.weight, std=0.05)
        for layer in self.backbone.layers:
            layer.mixer.out_proj.weight.data.div_(math.sqrt(s.layers))  # type: ignore

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) int64 to logits (B, T, vocab) float32."""
        return F.linear(self.backbone(ids), self.backbone.embeddings.weight)

    def loss(self, ids: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Cross entropy in nats of (B, T) targets."""
        return F.cross_entropy(self(ids).flatten(0, 1), targets.flatten(), reduction=reduction)
