"""mamba-ssm's kernels on our inputs, where they can be imported.

``selective_scan_cuda`` for Mamba-1 prefill, ``selective_state_update`` for steps,
``mamba_chunk_scan_combined`` for Mamba-2 prefill, ``causal_conv1d`` for the convolution. Layouts
that differ from ours are made beforehand, so no copy is timed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Tensors = Mapping[str, torch.Tensor]
Call = Callable[[], Any]


def use_source_tree(path: Path) -> None:
    """Make ``mamba_ssm`` the package of a source tree, without what its ``__init__`` imports."""
    package = types.ModuleType("mamba_ssm")
    package.__path__ = [str(path / "mamba_ssm")]
    sys.modules["mamba_ssm"] = package
    if importlib.util.find_spec("einops") is None:
        stand_in: Any = types.ModuleType("einops")
        stand_in.rearrange, stand_in.repeat = _rearrange, _repeat
        sys.modules["einops"] = stand_in


def _rearrange(tensor: torch.Tensor, pattern: str, **sizes: int) -> torch.Tensor:
    """The two patterns of einops that mamba-ssm's forward pass uses."""
    if pattern == "... p n -> ... (p n)":
        return tensor.flatten(-2)
    if pattern == "... (p n) -> ... p n":
        return tensor.unflatten(-1, (-1, sizes["n"]))
    raise NotImplementedError(f"einops is not installed, and {pattern!r} is not known")


def _repeat(tensor: torch.Tensor, pattern: str, **sizes: int) -> torch.Tensor:
    """mamba-ssm imports it; the forward passes that are timed do not call it."""
    raise NotImplementedError(f"einops is not installed, and {pattern!r} is not known")


def mamba_ssm_call(op: str, t: Tensors, step: bool) -> tuple[Call, str]:
    """A call of mamba-ssm's kernel that gives y in our layout, and the kernel's name.

    Raises:
        ImportError: it is not installed; the message says what is missing.
    """
    if op == "CausalConv1d":
        return _convolution(t, step)
    if op == "SelectiveScan":
        return _selective_step(t) if step else _selective_prefill(t)
    if op == "SsdScan":
        return _ssd_step(t) if step else _ssd_prefill(t)
    raise ImportError(f"mamba-ssm has nothing for {op}")


def _convolution(t: Tensors, step: bool) -> tuple[Call, str]:
    package = importlib.import_module("causal_conv1d")
    # Both kernels want channels first or, for prefill, the layout of channels last.
    past = t["past"].transpose(1, 2)
    if step:
        newest = torch.zeros_like(past[..., :1])
        state = torch.cat([newest, past], 2).contiguous()
        x = t["x"][:, 0].contiguous()

        def one() -> torch.Tensor:
            made: torch.Tensor = package.causal_conv1d_update(
                x, state, t["weight"], t["bias"], "silu"
            )
            return made[:, None]

        return one, "causal_conv1d_update"

    x = t["x"].transpose(1, 2)

    def whole() -> torch.Tensor:
        made: torch.Tensor = package.causal_conv1d_fn(
            x, t["weight"], t["bias"], initial_states=past, activation="silu"
        )
        return made.transpose(1, 2)

    return whole, "causal_conv1d_fn"


def _state_update(arguments: dict[str, Any], shape: tuple[int, ...]) -> tuple[Call, str]:
    module = importlib.import_module("mamba_ssm.ops.triton.selective_state_update")

    def call() -> torch.Tensor:
        made: torch.Tensor = module.selective_state_update(**arguments, dt_softplus=True)
        return made.view(shape)

    return call, "selective_state_update"


def _selective_step(t: Tensors) -> tuple[Call, str]:
    arguments: dict[str, Any] = {
        "state": t["past"].clone(),
        **{name: t[ours][:, 0] for name, ours in zip("xzBC", "uzBC", strict=True)},
        "dt": t["dt"][:, 0],
        **{name: t[name] for name in ("A", "D", "dt_bias")},
    }
    return _state_update(arguments, tuple(t["u"].shape))


def _ssd_step(t: Tensors) -> tuple[Call, str]:
    batch, _, heads, width = t["x"].shape
    states = t["B"].shape[3]
    arguments: dict[str, Any] = {
        "state": t["past"].clone(),
        **{name: t[name][:, 0] for name in "xBC"},
        "dt": t["dt"][:, 0, :, None].expand(batch, heads, width),
        "A": t["A"][:, None, None].expand(heads, width, states),
        "D": t["D"][:, None].expand(heads, width),
        "dt_bias": t["dt_bias"][:, None].expand(heads, width),
    }
    return _state_update(arguments, tuple(t["x"].shape))


def _selective_prefill(t: Tensors) -> tuple[Call, str]:
    """It starts from a state of zeros; that much less work is in its favour."""
    module = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    importlib.import_module("selective_scan_cuda")
    first = {
        name: t[ours].transpose(1, 2).contiguous()
        for name, ours in (("u", "u"), ("delta", "dt"), ("B", "B"), ("C", "C"), ("z", "z"))
    }

    def call() -> torch.Tensor:
        made: torch.Tensor = module.selective_scan_fn(
            **first, A=t["A"], D=t["D"], delta_bias=t["dt_bias"], delta_softplus=True,
            return_last_state=True,
        )[0]  # fmt: skip
        return made.transpose(1, 2)

    return call, "selective_scan_cuda"


def _ssd_prefill(t: Tensors) -> tuple[Call, str]:
    module = importlib.import_module("mamba_ssm.ops.triton.ssd_combined")

    def call() -> torch.Tensor:
        made: torch.Tensor = module.mamba_chunk_scan_combined(
            *(t[name] for name in ("x", "dt", "A", "B", "C")), chunk_size=256, D=t["D"],
            dt_bias=t["dt_bias"], initial_states=t["past"], dt_softplus=True,
            return_final_states=True,
        )[0]  # fmt: skip
        return made

    return call, "mamba_chunk_scan_combined"
