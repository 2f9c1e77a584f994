"""Times the rows, each after its result was compared with the float64 scan on the same inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from ssm_export.ops import all_ops
from ssm_export_plugins import kernels
from ssm_export_plugins.gpu_check import baselines, machine, others, timing
from ssm_export_plugins.gpu_check.correctness import (
    Case,
    Tensors,
    Variant,
    difference,
    make_call,
    make_inputs,
    poisoned,
    tolerance,
)
from ssm_export_plugins.gpu_check.rows import EXP2_PER_CLOCK, Row
from ssm_export_plugins.launch import prepare
from ssm_export_plugins.plan import Chip, Plan

SAME: Final = 0.02
"""Largest relative difference between another implementation's y and the truth."""


@dataclass(frozen=True)
class Measured:
    """What was found for a row; times in µs, None where something was not run.

    Args:
        row: the row.
        figures: name to value, as they are written.
        notes: why something was not run.
        problem: what is wrong with our own result; then there are no figures.
    """

    row: Row
    figures: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problem: str | None = None


def measure(
    rows: Sequence[Row], chip: Chip, mamba_ssm: Path | None, device: str = "cuda"
) -> list[Measured]:
    """Time rows on the current GPU.

    Args:
        rows: what to time.
        chip: what the plans are made for.
        mamba_ssm: a source tree of mamba-ssm, where the package is not installed.
        device: torch's name of the GPU.
    """
    if mamba_ssm is not None:
        others.use_source_tree(mamba_ssm)
    bandwidth, clock = timing.copy_bandwidth(), machine.sm_clock_hz()
    exp2_rate = clock and clock * EXP2_PER_CLOCK * chip.multiprocessors
    found = []
    for row in rows:
        try:
            found.append(_measure(row, chip, bandwidth, exp2_rate, device))
        except (torch.cuda.OutOfMemoryError, MemoryError):
            found.append(Measured(row, notes=("not timed: out of memory",)))
        torch.cuda.empty_cache()
    return found


def case_of(row: Row) -> Case:
    """A row as a case of correctness, with every optional input."""
    return Case(
        all_ops()[row.op],
        Variant(sizes=row.sizes),
        {"T": "float16", "S": row.state},
        row.sizes["B"],
        row.sizes["T"],
        step=row.step,
    )


def row_inputs(row: Row, device: str) -> Tensors:
    """Inputs of a row; a prompt begins with an empty state, as others' kernels can only do."""
    tensors, _ = make_inputs(case_of(row), device)
    if not row.step:
        tensors["past"].zero_()
    return tensors


def problem_of(row: Row, plan: Plan, inputs: Tensors, truth: Mapping[str, torch.Tensor]) -> str:
    """What is wrong with a plan's result; empty where nothing is."""
    case, device = case_of(row), inputs["past"].device.type
    outputs = poisoned(plan, {"B": case.batch, "T": case.length}, device)
    launch, made = prepare(plan, inputs, outputs)
    launch()
    for port in case.spec.outputs:
        bound = tolerance(case.spec, case.types, port.type)
        actual, expected = (
            tensors[port.name].to(torch.float64).cpu().numpy() for tensors in (made, truth)
        )
        problem = difference(actual, expected, bound)
        if problem:
            return f"plan {plan.label or 'only'}: '{port.name}' {problem}"
    return ""


def _measure(
    row: Row, chip: Chip, bandwidth: float, exp2_rate: float | None, device: str
) -> Measured:
    inputs = row_inputs(row, device)
    y, present = baselines.sequential(row.op, inputs, torch.float64)
    truth = {"y": y, "present": present}
    spec = all_ops()[row.op]
    notes: list[str] = []
    times: dict[str, float] = {}
    actual_bytes = 0
    for number, plan in enumerate(kernels.plans(spec, make_call(case_of(row), inputs), chip)):
        label = plan.label or f"plan {number + 1}"
        try:
            problem = problem_of(row, plan, inputs, truth)
            if problem:
                return Measured(row, problem=problem)
            calls, actual_bytes = _rotated(plan, inputs)
            times[label] = timing.time_graph(calls)
        except Exception as error:  # a plan that needs too much of this GPU; others may run
            if type(error).__name__ != "OutOfResources":
                return Measured(row, problem=f"plan {label}: {type(error).__name__}: {error}")
            notes.append(f"plan {label}: {error}")
    if not times:
        return Measured(row, problem="no plan runs on this GPU: " + "; ".join(notes))
    first, best = next(iter(times)), min(times, key=lambda label: times[label])
    floor, bound = row.floor(bandwidth, exp2_rate)
    rate = actual_bytes / (times[first] * 1e-6)
    figures: dict[str, Any] = {
        "time_us": times[first],
        "plan": first,
        "best_plan": best,
        "best_plan_us": times[best],
        "bytes": actual_bytes,
        "gb_per_s": rate / 1e9,
        "copy_share_percent": 100 * rate / bandwidth,
        "copy_gb_per_s": bandwidth / 1e9,
        "floor_us": floor,
        "floor_bound": bound,
    }
    figures |= _compared(row, inputs, y, notes)
    return Measured(row, figures, tuple(notes))


def _rotated(plan: Plan, inputs: Tensors) -> tuple[list[Callable[[], None]], int]:
    """Launches on several sets of tensors, and the bytes that one reads and writes.

    The state is written in place, as decoding does.
    """
    launch, made = prepare(plan, inputs, {"present": inputs["past"].clone()})
    tensors = [*inputs.values(), *made.values()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    calls = [launch]
    for _ in range(timing.sets_needed(size, machine.l2_bytes()) - 1):
        copies = {name: tensor.clone() for name, tensor in inputs.items()}
        calls.append(prepare(plan, copies, {"present": copies["past"]})[0])
    return calls, size


def _compared(row: Row, inputs: Tensors, truth: torch.Tensor, notes: list[str]) -> dict[str, Any]:
    """Times of other implementations, each only where its y is right."""
    found: dict[str, Any] = {"mamba_ssm_us": None, "mamba_ssm_kernel": None}
    try:
        call, found["mamba_ssm_kernel"] = others.mamba_ssm_call(row.op, inputs, row.step)
    except ImportError as error:
        notes.append(f"mamba-ssm: not installed ({error})")
    except Exception as error:  # one of another version fails in its own ways
        notes.append(f"mamba-ssm: {type(error).__name__}: {error}")
    else:
        size = sum(tensor.numel() * tensor.element_size() for tensor in inputs.values())
        count = timing.sets_needed(2 * size, machine.l2_bytes())
        try:
            copies = [{n: v.clone() for n, v in inputs.items()} for _ in range(count - 1)]
            calls = [call] + [others.mamba_ssm_call(row.op, c, row.step)[0] for c in copies]
            _timed("mamba_ssm", call, truth, found, notes, lambda: timing.time_graph(calls))
        except Exception as error:  # likewise
            notes.append(f"mamba-ssm: {type(error).__name__}: {error}")
    forms = {"torch_loop": baselines.sequential, "torch_chunked": baselines.chunked}
    repetitions = 10 if row.step else 3
    for name, form in forms.items():
        found[f"{name}_us"] = None
        plain = functools.partial(_output, form, row, inputs)
        time = functools.partial(timing.time_eager, plain, repetitions)
        try:
            _timed(name, plain, truth, found, notes, time)
        except torch.cuda.OutOfMemoryError:
            notes.append(f"{name}: out of memory")
    return found


def _output(form: Callable[..., Any], row: Row, inputs: Tensors) -> torch.Tensor:
    """What a baseline computes, without the state."""
    y: torch.Tensor = form(row.op, inputs)[0]
    return y


def _timed(
    name: str,
    call: Callable[[], torch.Tensor],
    truth: torch.Tensor,
    found: dict[str, Any],
    notes: list[str],
    time: Callable[[], float],
) -> None:
    off = relative_difference(call(), truth)
    if off > SAME:
        notes.append(f"{name}: not timed, its y is off by {off:.2g}")
        return
    found[f"{name}_us"] = time()


def relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """‖a − e‖ / ‖e‖; infinite where a has NaN."""
    error = float((actual.to(torch.float64) - expected).norm() / expected.norm())
    return error if np.isfinite(error) else float("inf")
