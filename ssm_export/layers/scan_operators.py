"""The scan operators as torch operators ``ssm_export::<name>``, defined from their OpSpecs.

The eager implementations here are the sequential recurrences, in fp32 or, for fp64 inputs, fp64.
They exist to be traced and to be the PyTorch truth of a bundle, not to be fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ssm_export.layers.basic import silu, to_accumulator
from ssm_export.ops import all_ops
from ssm_export.ops.spec import DOMAIN, OpSpec

_SCHEMA_TYPES = {int: "int", float: "float", str: "str"}


def _schema(spec: OpSpec) -> str:
    """The torch schema of an operator: inputs in port order, then the attributes."""
    inputs = [f"Tensor{'?' if port.optional else ''} {port.name}" for port in spec.inputs]
    attributes = [f"{_SCHEMA_TYPES[type(v)]} {name}" for name, v in spec.attributes.items()]
    outputs = ", ".join("Tensor" for _ in spec.outputs)
    return f"{spec.name}({', '.join(inputs + attributes)}) -> ({outputs})"


def _valid(time: int, batch: int, lengths: Tensor | None, device: torch.device) -> list[Tensor]:
    """For each token, which rows (B,) it belongs to."""
    if lengths is None:
        return [torch.ones(batch, dtype=torch.bool, device=device)] * time
    return [lengths > t for t in range(time)]


def _rows(mask: Tensor, like: Tensor) -> Tensor:
    """A (B,) mask shaped to broadcast over ``like``."""
    return mask.reshape(-1, *[1] * (like.dim() - 1))


def _time_step(dt: Tensor, dt_bias: Tensor | None, softplus: int) -> Tensor:
    dt = to_accumulator(dt)
    if dt_bias is not None:
        dt = dt + dt_bias
    return torch.nn.functional.softplus(dt, threshold=60.0) if softplus else dt


def _causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor,
    sequence_lengths: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor]:
    time, taps = x.shape[1], weight.shape[1]
    window = torch.cat([past, x], dim=1)
    wide, kernel = to_accumulator(window), to_accumulator(weight)
    y = wide[:, :time] * kernel[:, 0]
    for k in range(1, taps):
        y = y + wide[:, k : k + time] * kernel[:, k]
    if bias is not None:
        y = y + bias
    if activation == "silu":
        y = silu(y)
    if sequence_lengths is None:
        return y.to(x.dtype), window[:, time:].clone()
    valid = torch.arange(time, device=x.device)[None] < sequence_lengths[:, None]
    y = torch.where(valid[..., None], y, 0.0)
    last = sequence_lengths[:, None].long() + torch.arange(taps - 1, device=x.device)
    present = torch.take_along_dim(window, last[..., None], dim=1)
    return y.to(x.dtype), present


def _selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    past: Tensor,
    sequence_lengths: Tensor | None,
    dt_softplus: int,
) -> tuple[Tensor, Tensor]:
    batch, time, _ = u.shape
    wide = to_accumulator(u)
    delta = _time_step(dt, dt_bias, dt_softplus)
    b, c = to_accumulator(B), to_accumulator(C)
    state = past.to(delta.dtype)
    outputs = []
    for t, valid in enumerate(_valid(time, batch, sequence_lengths, u.device)):
        decay = torch.exp(delta[:, t, :, None] * A)
        update = decay * state + (delta[:, t] * wide[:, t])[..., None] * b[:, t, None, :]
        state = torch.where(_rows(valid, state), update, state)
        outputs.append(torch.where(valid[:, None], (state @ c[:, t, :, None])[..., 0], 0.0))
    y = torch.stack(outputs, dim=1)
    if D is not None:
        y = y + wide * D
    if z is not None:
        y = y * silu(to_accumulator(z))
    if sequence_lengths is not None:
        inside = torch.arange(time, device=u.device)[None] < sequence_lengths[:, None]
        y = torch.where(inside[..., None], y, 0.0)
    return y.to(u.dtype), state.to(past.dtype)


def _ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    past: Tensor,
    sequence_lengths: Tensor | None,
    dt_softplus: int,
    dt_min: float,
    dt_max: float,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    batch, time, heads, _ = x.shape
    wide = to_accumulator(x)
    delta = _time_step(dt, dt_bias, dt_softplus).clamp(dt_min, dt_max)
    repeats = heads // B.shape[2]
    b = to_accumulator(B).repeat_interleave(repeats, dim=2)
    c = to_accumulator(C).repeat_interleave(repeats, dim=2)
    state = past.to(delta.dtype)
    outputs = []
    for t, valid in enumerate(_valid(time, batch, sequence_lengths, x.device)):
        decay = torch.exp(delta[:, t] * A)[..., None, None]
        update = (
            decay * state + (delta[:, t, :, None] * wide[:, t])[..., None] * b[:, t, :, None, :]
        )
        state = torch.where(_rows(valid, state), update, state)
        outputs.append((state @ c[:, t, :, :, None])[..., 0])
    y = torch.stack(outputs, dim=1)
    if D is not None:
        y = y + wide * D[:, None]
    if sequence_lengths is not None:
        inside = torch.arange(time, device=x.device)[None] < sequence_lengths[:, None]
        y = torch.where(inside[..., None, None], y, 0.0)
    return y.to(x.dtype), state.to(past.dtype)


_EAGER: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "CausalConv1d": _causal_conv1d,
    "SelectiveScan": _selective_scan,
    "SsdScan": _ssd_scan,
}

_LIBRARY = torch.library.Library(DOMAIN, "DEF")


def _define(spec: OpSpec) -> None:
    """Define one torch operator with its eager implementation and its fake."""
    _LIBRARY.define(_schema(spec))
    name = f"{DOMAIN}::{spec.name}"
    ports = [port.name for port in spec.inputs]
    sequence = ports[0]

    def fake(*arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
        values = {**dict(zip(ports, arguments, strict=False)), **named}
        return torch.empty_like(values[sequence]), torch.empty_like(values["past"])

    torch.library.impl(name, "CompositeExplicitAutograd", lib=_LIBRARY)(_EAGER[spec.name])
    torch.library.register_fake(name, fake, lib=_LIBRARY)


for _spec in all_ops().values():
    _define(_spec)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor,
    sequence_lengths: Tensor | None,
    *,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """x (B,T,D), weight (D,K), bias (D), past (B,K−1,D) → y (B,T,D), present (B,K−1,D)."""
    operator = torch.ops.ssm_export.CausalConv1d
    y, present = operator(x, weight, bias, past, sequence_lengths, activation)
    return y, present


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    past: Tensor,
    sequence_lengths: Tensor | None,
    *,
    dt_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """u, dt (B,T,D), A (D,N), B, C (B,T,N), past (B,D,N) → y (B,T,D), present (B,D,N)."""
    operator = torch.ops.ssm_export.SelectiveScan
    y, present = operator(u, dt, A, B, C, D, z, dt_bias, past, sequence_lengths, int(dt_softplus))
    return y, present


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    past: Tensor,
    sequence_lengths: Tensor | None,
    *,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """x (B,T,H,P), dt (B,T,H), A (H), B, C (B,T,G,N), past (B,H,P,N) → y, present."""
    operator = torch.ops.ssm_export.SsdScan
    y, present = operator(
        x, dt, A, B, C, D, dt_bias, past, sequence_lengths,
        int(dt_softplus), dt_min, dt_max, chunk_size,
    )  # fmt: skip
    return y, present
