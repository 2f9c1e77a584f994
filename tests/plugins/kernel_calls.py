"""Calls of operators for the kernels: chips, plans, poisoned tensors, and runs of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import torch
from one_call import rounded

from ssm_export.ops import Call, OpSpec
from ssm_export_plugins import kernels
from ssm_export_plugins.gpu_check import correctness
from ssm_export_plugins.launch import run
from ssm_export_plugins.plan import Chip, Plan

ORIN = Chip((8, 7), 166_912, 8)
H100 = Chip((9, 0), 232_448, 132)
ADA = Chip((8, 9), 101_376, 58)
VAST = Chip((9, 0), 232_448, 4096)
"""No real chip: so many multiprocessors that whatever can be split is."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def call_of(
    spec: OpSpec,
    inputs: Mapping[str, np.ndarray],
    types: Mapping[str, str],
    step: bool = False,
    **attributes: Any,
) -> Call:
    """The call that takes exactly these inputs, for any B, and any T unless ``step``."""
    sizes: dict[str, int] = {}
    for port in spec.inputs:
        if port.name in inputs:
            sizes.update(zip(port.axes, inputs[port.name].shape, strict=True))
    free = {"B", "-"} if step else {"B", "-", "T"}
    return Call(
        present=frozenset(inputs),
        attributes={**spec.attributes, **attributes},
        sizes={letter: size for letter, size in sizes.items() if letter not in free},
        types=types,
    )


def make_plan(spec: OpSpec, call: Call, chip: Chip = H100, choice: int = 0) -> Plan:
    """The best plan, or a later choice."""
    found = list(kernels.plans(spec, call, chip))
    return found[min(choice, len(found) - 1)]


def to_torch(array: np.ndarray) -> torch.Tensor:
    """A contiguous copy on the device under test; bfloat16 keeps its bits."""
    if array.dtype == ml_dtypes.bfloat16:
        bits = torch.from_numpy(np.ascontiguousarray(array).view(np.int16).copy())
        return bits.view(torch.bfloat16).to(DEVICE)
    return torch.from_numpy(np.ascontiguousarray(array).copy()).to(DEVICE)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The values in float64."""
    return tensor.detach().cpu().to(torch.float64).numpy()


def poisoned(plan: Plan, sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Outputs full of NaN, so that an element nobody writes is seen."""
    return correctness.poisoned(plan, sizes, DEVICE)


def poisoned_memory() -> Any:
    """A context in which fresh memory holds NaN, or a huge integer: a plan's scratch buffers."""
    fresh = torch.empty

    def filled(*size: Any, **options: Any) -> torch.Tensor:
        made = fresh(*size, **options)
        return made.fill_(float("nan") if made.is_floating_point() else 2**30)

    return mock.patch.object(torch, "empty", filled)


def poison_padding(spec: OpSpec, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs with NaN at and beyond every row's length."""
    poisonous = dict(inputs)
    for port in spec.inputs:
        if "T" in port.axes and port.name in inputs:
            poisonous[port.name] = inputs[port.name].copy()
            for row, length in enumerate(inputs["sequence_lengths"]):
                poisonous[port.name][row, length:] = np.nan
    return poisonous


def run_plan(
    spec: OpSpec,
    inputs: Mapping[str, np.ndarray],
    types: Mapping[str, str],
    *,
    step: bool = False,
    chip: Chip = H100,
    choice: int = 0,
    in_place: bool = False,
    **attributes: Any,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Run one call on poisoned memory; gives the rounded inputs and the outputs in float64."""
    feeds = rounded(spec, inputs, types)
    plan = make_plan(spec, call_of(spec, feeds, types, step, **attributes), chip, choice)
    tensors = {name: to_torch(value) for name, value in feeds.items()}
    batch, time = next(iter(feeds.values())).shape[:2]
    outputs = poisoned(plan, {"B": batch, "T": time})
    if in_place:
        for port in spec.outputs:
            if "T" not in port.axes:
                outputs[port.name] = tensors[port.name.replace("present", "past")]
    with poisoned_memory():
        made = run(plan, tensors, outputs)
    return feeds, {name: to_numpy(tensor) for name, tensor in made.items()}
