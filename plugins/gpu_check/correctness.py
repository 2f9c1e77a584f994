"""Every kernel against the float64 reference of its operator, on the same rounded inputs.

Inputs are rounded through torch, outputs are full of NaN before a launch, and so is the padding
of ragged batches. On a GPU every plan is also captured in a CUDA graph and replayed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch

from ssm_export.ops import Call, OpSpec, Tolerance, all_ops, fused_ops
from ssm_export_plugins import kernels, standard
from ssm_export_plugins.launch import prepare
from ssm_export_plugins.plan import Chip, Plan

PRECISION: Final = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
TYPES: Final = tuple(PRECISION)
STATES: Final = ("float32", "float16")
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Variant:
    """A way to call an operator: attributes, inputs left out, and sizes, as far as not default."""

    attributes: Mapping[str, Any] = field(default_factory=dict)
    omit: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)


def _attention(rule: str, decay: int = 2, **sizes: int) -> Variant:
    takes = {"linear": (), "gated": ("decay",), "delta": ("beta",)}.get(rule, ("decay", "beta"))
    omit = tuple(name for name in ("decay", "beta") if name not in takes)
    attributes = {"update_rule": rule, "q_num_heads": 4, "kv_num_heads": 2}
    return Variant(attributes, omit, {"H": 2, "G": 2, "g": decay, **sizes})


VARIANTS: Final[Mapping[str, tuple[Variant, ...]]] = {
    "CausalConv1d": (
        Variant(),
        Variant({"activation": "none"}, ("bias",)),
        Variant(sizes={"K": 2, "D": 300}),
        Variant(sizes={"K": 8, "D": 7}),
    ),
    "SelectiveScan": (
        Variant(),
        Variant(omit=("D", "z", "dt_bias")),
        Variant(sizes={"D": 160, "N": 16}),
        Variant(sizes={"D": 5, "N": 5}),
    ),
    "SsdScan": (
        Variant(),
        Variant(omit=("D", "dt_bias")),
        Variant(sizes={"H": 4, "P": 64, "G": 1, "N": 128}),
        Variant(sizes={"H": 4, "P": 80, "G": 2, "N": 128}),
        Variant(sizes={"H": 2, "P": 96, "G": 1, "N": 64}),
    ),
    "ConvSsdScan": (
        Variant(),
        Variant(omit=("bias", "D", "dt_bias")),
        Variant(sizes={"H": 4, "P": 64, "G": 1, "N": 128}),
        Variant(sizes={"H": 4, "P": 80, "G": 2, "N": 128}),
    ),
    "LinearAttention": (
        _attention("gated_delta"),
        _attention("gated", decay=32, K=16),
        _attention("delta"),
        _attention("linear"),
    ),
}
"""Ways to call an operator, the first at every length; another one is called in its default way."""


@dataclass(frozen=True)
class Effort:
    """How much is checked."""

    lengths: tuple[int, ...]
    other_lengths: tuple[int, ...]
    batches: tuple[int, ...]
    every_plan: bool


FULL: Final = Effort((1, 2, 63, 64, 65, 1000), (1, 65), (1, 3), True)
QUICK: Final = Effort((1, 65, 200), (65,), (3,), False)
INTERPRETED: Final = Effort((1, 2, 65), (5,), (3,), True)
INTERPRETED_QUICK: Final = Effort((1, 5), (), (3,), False)


def effort_of(quick: bool, interpret: bool) -> Effort:
    """The effort that the options ask for."""
    if interpret:
        return INTERPRETED_QUICK if quick else INTERPRETED
    return QUICK if quick else FULL


@dataclass(frozen=True)
class Case:
    """One set of inputs; all plans of its call are run on it."""

    spec: OpSpec
    variant: Variant
    types: Mapping[str, str]
    batch: int
    length: int
    step: bool = False
    ragged: bool = False

    def __str__(self) -> str:
        sizes = {**dict(self.variant.sizes), "B": self.batch, "T": self.length}
        words = [self.spec.name, f"{self.types['T']}/{self.types['S']}"]
        words += [f"{letter}={size}" for letter, size in sizes.items()]
        words += [f"{name}={value}" for name, value in self.variant.attributes.items()]
        words += [f"without {name}" for name in self.variant.omit]
        return " ".join(words + ["step"] * self.step + ["ragged"] * self.ragged)


@dataclass(frozen=True)
class Finding:
    """What the checks of one operator found.

    Args:
        op: the operator.
        runs: how many launches of a plan were compared.
        problems: what is red.
        notes: plans that the chip cannot run, and the like.
    """

    op: str
    runs: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def checked_operators() -> tuple[str, ...]:
    """Every operator that has kernels, ours and the standard's."""
    known = (*all_ops(), *fused_ops(), *standard.names())
    return tuple(name for name in known if kernels.has_kernels(name))


def spec_of(op: str) -> OpSpec:
    """The contract of an operator, ours or the standard's."""
    return standard.get(op) if op in standard.names() else (all_ops() | fused_ops())[op]


def cases(spec: OpSpec, effort: Effort) -> Iterator[Case]:
    """The first variant in every type at every length; the others in two types at few."""
    variants = VARIANTS.get(spec.name, (Variant(),))
    states = STATES if any(port.type == "S" for port in spec.inputs) else STATES[:1]
    has_lengths = any(port.name == "sequence_lengths" for port in spec.inputs)
    for kind, state in itertools.product(TYPES, states):
        types = {"T": kind, "S": state}
        for length, batch in itertools.product(effort.lengths, effort.batches):
            yield Case(spec, variants[0], types, batch, length)
            if has_lengths and batch > 1:
                yield Case(spec, variants[0], types, batch, length, ragged=True)
        yield Case(spec, variants[0], types, effort.batches[-1], 1, step=True)
    for variant, kind in itertools.product(variants[1:], ("float16", "float32")):
        for length in effort.other_lengths:
            types = {"T": kind, "S": "float32"}
            yield Case(spec, variant, types, effort.batches[-1], length, ragged=has_lengths)


def check_operator(op: str, chip: Chip, device: str, effort: Effort) -> Finding:
    """Run every case of an operator."""
    problems: list[str] = []
    notes: dict[str, None] = {}
    runs = 0
    for case in cases(spec_of(op), effort):
        try:
            found = check_case(case, chip, device, effort.every_plan)
        except Exception as error:  # whatever a kernel does, the other cases are to be seen too
            problems.append(f"{case}: {type(error).__name__}: {error}")
            continue
        runs += found.runs
        problems += found.problems
        notes.update(dict.fromkeys(found.notes))
    return Finding(op, runs, tuple(problems), tuple(notes))


def check_case(case: Case, chip: Chip, device: str, every_plan: bool = True) -> Finding:
    """Run the plans of one case, fresh and in place; captured and replayed on a GPU."""
    inputs, exact = make_inputs(case, device)
    attributes = {**case.spec.attributes, **case.variant.attributes}
    with np.errstate(all="ignore"):
        expected = case.spec.reference(exact, attributes)
    found = list(kernels.plans(case.spec, make_call(case, inputs), chip))
    problems: list[str] = []
    notes: list[str] = []
    runs = 0
    for plan in found if every_plan else found[:1]:
        where = f"{case} plan {plan.label or 'only'}"
        try:
            for in_place in (False, True):
                problem = _run(case, plan, dict(inputs), expected, device, in_place)
                runs += 1
                if problem:
                    problems.append(f"{where}{' in place' * in_place}: {problem}")
        except Exception as error:  # another plan may run where one needs too much of the chip
            if type(error).__name__ != "OutOfResources":
                raise
            notes.append(f"{case.spec.name} plan {plan.label or 'only'}: {error}")
    if not runs:
        problems.append(f"{case}: none of {len(found)} plans runs on this GPU")
    return Finding(case.spec.name, runs, tuple(problems), tuple(notes))


def _run(
    case: Case,
    plan: Plan,
    inputs: Tensors,
    expected: Mapping[str, np.ndarray],
    device: str,
    in_place: bool,
) -> str | None:
    sizes = {"B": case.batch, "T": case.length}
    outputs = poisoned(plan, sizes, device)
    if in_place:
        for name in outputs:
            past = name.replace("present", "past")
            if past != name and past in inputs:
                outputs[name] = inputs[past] = inputs[past].clone()
    launch, made = prepare(plan, inputs, outputs)
    launch()
    for port in case.spec.outputs:
        bound = tolerance(case.spec, case.types, port.type)
        actual = made[port.name].detach().cpu().to(torch.float64).numpy()
        problem = difference(actual, expected[port.name], bound)
        if problem:
            return f"'{port.name}' {problem}"
    if device == "cuda" and not in_place:
        return replay_problem(launch, made)
    return None


def make_inputs(case: Case, device: str) -> tuple[Tensors, dict[str, np.ndarray]]:
    """Inputs on the device, poisoned beyond the row lengths, and their values in float64."""
    spec = case.spec
    rng = np.random.default_rng(case.length * 8 + case.batch)
    sizes = {**spec.sizes, **case.variant.sizes, "B": case.batch, "T": case.length}
    exact = spec.make_inputs(rng, sizes, case.variant.omit, case.ragged)
    lengths = exact.get("sequence_lengths")
    tensors: Tensors = {}
    for port in spec.inputs:
        if port.name not in exact:
            continue
        name, kind = port.name, getattr(torch, case.types.get(port.type, port.type))
        tensor = torch.from_numpy(np.ascontiguousarray(exact[name])).to(kind)
        if kind.is_floating_point:
            exact[name] = tensor.to(torch.float64).numpy()
            if lengths is not None and port.axes.startswith("BT"):
                for row, length in enumerate(lengths):
                    tensor[row, int(length) :] = float("nan")
        tensors[name] = tensor.to(device)
    return tensors, exact


def make_call(case: Case, inputs: Mapping[str, torch.Tensor]) -> Call:
    """The call for any batch, and any length unless the case is a step."""
    spec, free = case.spec, ("B",) if case.step else ("B", "T")
    if spec.name in standard.names():
        shapes = {
            port.name: [
                axis if axis in free else size
                for axis, size in zip(port.axes, inputs[port.name].shape, strict=True)
            ]
            for port in spec.inputs
            if port.name in inputs
        }
        types = {name: str(value.dtype).removeprefix("torch.") for name, value in inputs.items()}
        return standard.call(spec.name, shapes, types, case.variant.attributes)
    sizes: dict[str, int] = {}
    for port in spec.inputs:
        if port.name in inputs:
            sizes.update(zip(port.axes, inputs[port.name].shape, strict=True))
    return Call(
        present=frozenset(inputs),
        attributes={**spec.attributes, **case.variant.attributes},
        sizes={letter: size for letter, size in sizes.items() if letter not in (*free, "-")},
        types=case.types,
    )


def poisoned(plan: Plan, sizes: Mapping[str, int], device: str) -> Tensors:
    """Outputs full of NaN, so that an element nobody writes is seen."""
    return {
        out.name: torch.full(
            [size if isinstance(size, int) else sizes[size] for size in out.shape],
            float("nan"),
            dtype=getattr(torch, out.type),
            device=device,
        )
        for out in plan.outputs
    }


def tolerance(spec: OpSpec, types: Mapping[str, str], letter: str) -> Tolerance:
    """That of the coarser of the I/O type and the output's own type."""
    return spec.tolerances[
        PRECISION[max(types["T"], types.get(letter, "float32"), key=TYPES.index)]
    ]


def difference(actual: np.ndarray, expected: np.ndarray, bound: Tolerance) -> str | None:
    """What is wrong with an output; None where every element and the mean are within bounds."""
    if actual.shape != expected.shape:
        return f"has shape {actual.shape} instead of {expected.shape}"
    if not np.isfinite(actual).all():
        return f"has {int((~np.isfinite(actual)).sum())} elements that are not finite"
    off = np.abs(actual - expected)
    beyond = off - (bound.absolute + bound.relative * np.abs(expected))
    if beyond.max(initial=-1.0) > 0.0:
        index = tuple(map(int, np.unravel_index(int(beyond.argmax()), beyond.shape)))
        return (
            f"is wrong in {int((beyond > 0).sum())} of {beyond.size} elements; at {index} it is "
            f"{actual[index]:.6g} instead of {expected[index]:.6g}"
        )
    error = float(np.square(off).sum())
    mean = error / max(float(np.square(expected).sum()), 1e-300) if error else 0.0
    return f"has NMSE {mean:.2e}, at most {bound.nmse:.0e}" if mean > bound.nmse else None


def replay_problem(launch: Any, outputs: Mapping[str, torch.Tensor]) -> str | None:
    """Capture a launch in a CUDA graph, replay it on poisoned outputs and compare bit by bit."""
    before = {name: tensor.clone() for name, tensor in outputs.items()}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    for _ in range(2):
        for tensor in outputs.values():
            tensor.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        for name, tensor in outputs.items():
            if not torch.equal(tensor, before[name]):
                return f"'{name}' differs when a captured graph is replayed"
    return None
