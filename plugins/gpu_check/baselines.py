"""The scans in plain PyTorch: token by token, and in chunks. They are what is compared with.

Each takes the operator's inputs by port name, all optional ones included where the operator has
them, and gives (y, present) in the type it computes in. With float64 the sequential forms are the
truth for calls that are too long for the numpy references.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

Inputs = Mapping[str, Tensor]
Result = tuple[Tensor, Tensor]


def sequential(op: str, inputs: Inputs, kind: torch.dtype = torch.float32) -> Result:
    """One token after the other.

    Raises:
        KeyError: an operator that has no plain form here.
    """
    return _SEQUENTIAL[op]({name: value.to(kind) for name, value in inputs.items()})


def chunked(op: str, inputs: Inputs, kind: torch.dtype = torch.float32) -> Result:
    """Parallel inside chunks, one chunk after the other; the convolution is one ``conv1d``.

    Raises:
        KeyError: an operator that has no plain form here.
    """
    return _CHUNKED[op]({name: value.to(kind) for name, value in inputs.items()})


def _convolution(t: Inputs) -> Result:
    window = torch.cat([t["past"], t["x"]], 1)
    channels, taps = t["weight"].shape
    y = functional.conv1d(
        window.transpose(1, 2), t["weight"].unsqueeze(1), t.get("bias"), groups=channels
    )
    return functional.silu(y).transpose(1, 2), window[:, window.shape[1] - taps + 1 :]


def _convolution_by_token(t: Inputs) -> Result:
    window, outputs = t["past"], []
    for token in t["x"].unbind(1):
        window = torch.cat([window, token[:, None]], 1)
        y = (window * t["weight"].T).sum(1)
        outputs.append(functional.silu(y + t["bias"] if "bias" in t else y))
        window = window[:, 1:]
    return torch.stack(outputs, 1), window


def _selective_by_token(t: Inputs) -> Result:
    delta = functional.softplus(t["dt"] + t["dt_bias"] if "dt_bias" in t else t["dt"], threshold=50)
    state, outputs = t["past"], []
    for i in range(delta.shape[1]):
        step = delta[:, i, :, None]
        state = torch.exp(step * t["A"]) * state
        state = state + step * t["u"][:, i, :, None] * t["B"][:, i, None]
        outputs.append((state * t["C"][:, i, None]).sum(2))
    return _finished(t, torch.stack(outputs, 1)), state


def _selective_in_chunks(t: Inputs, chunk: int = 64) -> Result:
    """Inside a chunk, pairs (decay, inflow) are joined over distances 1, 2, 4, …"""
    delta = functional.softplus(t["dt"] + t["dt_bias"] if "dt_bias" in t else t["dt"], threshold=50)
    state, outputs = t["past"], []
    for begin in range(0, delta.shape[1], chunk):
        part = slice(begin, begin + chunk)
        step = delta[:, part, :, None]
        decay = torch.exp(step * t["A"])
        inflow = step * t["u"][:, part, :, None] * t["B"][:, part, None]
        distance = 1
        while distance < decay.shape[1]:
            inflow = torch.cat(
                [
                    inflow[:, :distance],
                    inflow[:, distance:] + decay[:, distance:] * inflow[:, :-distance],
                ],
                1,
            )
            decay = torch.cat([decay[:, :distance], decay[:, distance:] * decay[:, :-distance]], 1)
            distance *= 2
        states = inflow + decay * state[:, None]
        outputs.append((states * t["C"][:, part, None]).sum(3))
        state = states[:, -1]
    return _finished(t, torch.cat(outputs, 1)), state


def _finished(t: Inputs, y: Tensor) -> Tensor:
    if "D" in t:
        y = y + t["D"] * t["u"]
    return y * functional.silu(t["z"]) if "z" in t else y


def _ssd_by_token(t: Inputs) -> Result:
    delta, each = _ssd_step(t)
    state, outputs = t["past"], []
    for i in range(delta.shape[1]):
        row_b, row_c = (t[name][:, i].repeat_interleave(each, 1) for name in "BC")
        inflow = delta[:, i, :, None] * t["x"][:, i]
        state = torch.exp(delta[:, i] * t["A"])[:, :, None, None] * state
        state = state + inflow[..., None] * row_b[:, :, None]
        outputs.append((state * row_c[:, :, None]).sum(3))
    return _skipped(t, torch.stack(outputs, 1)), state


def _ssd_in_chunks(t: Inputs, chunk: int = 128) -> Result:
    """Inside a chunk, (C Bᵀ ∘ decays) x as matrix products, the state carried between chunks."""
    delta, each = _ssd_step(t)
    state, outputs = t["past"], []
    for begin in range(0, delta.shape[1], chunk):
        part = slice(begin, begin + chunk)
        step = delta[:, part].transpose(1, 2)
        total = torch.cumsum(step * t["A"][:, None], 2)
        rows_b, rows_c = (
            t[name][:, part].repeat_interleave(each, 2).transpose(1, 2) for name in "BC"
        )
        inflow = step[..., None] * t["x"][:, part].transpose(1, 2)
        decay = torch.exp((total[..., :, None] - total[..., None, :]).clamp(max=0.0)).tril()
        y = (rows_c @ rows_b.transpose(2, 3) * decay) @ inflow
        y = y + torch.exp(total)[..., None] * (rows_c @ state.transpose(2, 3))
        outputs.append(y.transpose(1, 2))
        left = torch.exp(total[..., -1:] - total)[..., None] * inflow
        state = torch.exp(total[..., -1])[..., None, None] * state + left.transpose(2, 3) @ rows_b
    return _skipped(t, torch.cat(outputs, 1)), state


def _ssd_step(t: Inputs) -> tuple[Tensor, int]:
    dt = t["dt"] + t["dt_bias"] if "dt_bias" in t else t["dt"]
    return functional.softplus(dt, threshold=50), t["x"].shape[2] // t["B"].shape[2]


def _skipped(t: Inputs, y: Tensor) -> Tensor:
    return y + t["D"][:, None] * t["x"] if "D" in t else y


_SEQUENTIAL = {
    "CausalConv1d": _convolution_by_token,
    "SelectiveScan": _selective_by_token,
    "SsdScan": _ssd_by_token,
}
_CHUNKED = {
    "CausalConv1d": _convolution,
    "SelectiveScan": _selective_in_chunks,
    "SsdScan": _ssd_in_chunks,
}
