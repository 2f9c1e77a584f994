"""Every kernel against its operator's float64 reference, interpreted or on a GPU.

The tests find the operators that have kernels by themselves. ``ODD``, ``OTHER`` and ``BEYOND`` say
what is particular to one: its odd sizes, its other attributes, and a size that is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import (
    DEVICE,
    H100,
    ORIN,
    VAST,
    call_of,
    make_plan,
    poison_padding,
    run_plan,
    to_torch,
)
from one_call import PRECISION, assert_within, rounded

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.ops import OpSpec, all_ops, fused_ops
from ssm_export_plugins import kernels
from ssm_export_plugins.launch import run
from ssm_export_plugins.plan import Plan

OPS = [spec for spec in (all_ops() | fused_ops()).values() if kernels.has_kernels(spec.name)]
KINDS = ("float32", "float16", "bfloat16")
TINY = {"D": 6, "N": 5, "K": 4, "H": 2, "G": 1, "P": 4}
ODD: Mapping[str, tuple[Mapping[str, int], ...]] = {
    "CausalConv1d": ({"K": 1}, {"K": 2, "D": 1}, {"K": 5, "D": 7}, {"K": 8, "D": 33}),
    "SelectiveScan": ({"N": 1, "D": 1}, {"N": 2}, {"N": 5, "D": 33}, {"N": 24, "D": 17},
                      {"N": 64, "D": 9}, {"N": 256, "D": 3}),
    "SsdScan": ({"H": 1, "G": 1, "P": 1, "N": 1}, {"H": 6, "G": 2, "P": 5, "N": 3},
                {"H": 3, "G": 3, "P": 24, "N": 20}, {"H": 1, "G": 1, "P": 80, "N": 96}),
    "ConvSsdScan": ({"H": 1, "G": 1, "P": 1, "N": 1, "K": 1}, {"H": 6, "G": 2, "P": 5, "N": 3},
                    {"H": 3, "G": 3, "P": 24, "N": 20, "K": 8}, {"H": 1, "G": 1, "P": 80, "N": 96}),
}  # fmt: skip
"""Sizes that are no power of two, the smallest, and the largest."""

OTHER: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "CausalConv1d": ({"activation": "none"},),
    "SelectiveScan": ({"dt_softplus": 0},),
    "SsdScan": ({"dt_softplus": 0}, {"dt_min": 0.01, "dt_max": 0.1}),
    "ConvSsdScan": ({"activation": "none"}, {"dt_softplus": 0}, {"dt_min": 0.01, "dt_max": 0.1}),
}
"""Attributes other than the defaults."""

BEYOND: Mapping[str, tuple[Mapping[str, int], str]] = {
    "CausalConv1d": ({"K": 9}, "weight"),
    "SelectiveScan": ({"N": 257}, "A"),
    "ConvSsdScan": ({"N": 257}, "past_ssm"),
}
"""A size that no kernel takes, and the tensor whose size it is."""

LEAST: Mapping[str, int] = {"ConvSsdScan": 3}
"""Sizes at least in any call: in a single y that cancels, what is rounded before it is all."""

by_name = pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.name)
by_type = pytest.mark.parametrize("kind", KINDS)


def of(table: Mapping[str, Any]) -> Any:
    """One case for each entry of a table, and none for operators that it does not name."""
    cases = [(spec, entry) for spec in OPS for entry in table.get(spec.name, ())]
    ids = [
        "-".join([spec.name, *(f"{key}{value}" for key, value in entry.items())])
        for spec, entry in cases
    ]
    return pytest.mark.parametrize(("spec", "entry"), cases, ids=ids)


def tiny(spec: OpSpec, **sizes: int) -> dict[str, int]:
    return {**{letter: TINY.get(letter, size) for letter, size in spec.sizes.items()}, **sizes}


def states(spec: OpSpec) -> list[str]:
    """Outputs that are a state, of which an input ``past`` is the start."""
    return [port.name for port in spec.outputs if "T" not in port.axes]


def check(
    spec: OpSpec,
    feeds: dict[str, np.ndarray],
    made: Mapping[str, np.ndarray],
    kind: str,
    state: str = "float32",
    **attributes: object,
) -> None:
    """Outputs within the tolerance of their type; a state's is the coarser of its and the I/O's."""
    expected = spec.reference(feeds, {**spec.attributes, **attributes})
    assert set(made) == set(expected)
    for port in spec.outputs:
        coarser = max(kind, state if port.type == "S" else kind, key=KINDS.index)
        tolerance = spec.tolerances[PRECISION[coarser]]
        assert_within(made[port.name], expected[port.name], tolerance, port.name)


@by_name
@by_type
@pytest.mark.parametrize("length", [1, 2, 65])
def test_prefill(spec: OpSpec, kind: str, length: int) -> None:
    rng = np.random.default_rng(length)
    ragged = length % 2 == 1
    inputs = spec.make_inputs(rng, {**spec.sizes, "T": length, "B": 2 + ragged}, (), ragged)
    feeds, made = run_plan(spec, inputs, {"T": kind, "S": "float32"})
    check(spec, feeds, made, kind)


@by_name
@pytest.mark.parametrize("length", [63, 64])
@pytest.mark.parametrize("batch", [1, 3])
def test_prefill_around_a_block(spec: OpSpec, length: int, batch: int) -> None:
    rng = np.random.default_rng(length)
    inputs = spec.make_inputs(rng, tiny(spec, T=length, B=batch), (), batch == 3)
    feeds, made = run_plan(spec, inputs, {"T": "float32", "S": "float32"})
    check(spec, feeds, made, "float32")


@by_name
def test_long_prefill(spec: OpSpec) -> None:
    inputs = spec.make_inputs(np.random.default_rng(0), tiny(spec, T=1000, B=1), (), False)
    feeds, made = run_plan(spec, inputs, {"T": "float32", "S": "float32"}, chip=ORIN)
    check(spec, feeds, made, "float32")


@by_name
@by_type
@pytest.mark.parametrize("batch", [1, 3])
def test_step(spec: OpSpec, kind: str, batch: int) -> None:
    rng = np.random.default_rng(batch)
    inputs = spec.make_inputs(rng, {**spec.sizes, "T": 1, "B": batch}, (), batch == 3)
    feeds, made = run_plan(spec, inputs, {"T": kind, "S": "float32"}, step=True)
    check(spec, feeds, made, kind)


@by_name
@pytest.mark.parametrize("chip", [ORIN, VAST], ids=["orin", "vast"])
def test_every_plan_of_every_chip(spec: OpSpec, chip: Any) -> None:
    """Whatever way a chip chooses, few and long rows, split along time or not, gives the same."""
    types = {"T": "float32", "S": "float32"}
    inputs = spec.make_inputs(np.random.default_rng(5), tiny(spec, T=133, B=1), (), False)
    feeds = rounded(spec, inputs, types)
    labels = [plan.label for plan in kernels.plans(spec, call_of(spec, feeds, types), chip)]
    assert len(set(labels)) == len(labels)
    for choice in range(len(labels)):
        feeds, made = run_plan(spec, inputs, types, chip=chip, choice=choice)
        check(spec, feeds, made, "float32")


@by_name
@by_type
def test_split_along_time(spec: OpSpec, kind: str) -> None:
    """Several rows of unlike lengths, one of them empty, in every segment that a chip makes."""
    rng = np.random.default_rng(6)
    inputs = spec.make_inputs(rng, tiny(spec, T=131, B=3), (), True)
    inputs["sequence_lengths"] = np.array([131, 70, 0], dtype=np.int32)
    feeds, made = run_plan(
        spec, poison_padding(spec, inputs), {"T": kind, "S": "float32"}, chip=VAST, in_place=True
    )
    check(spec, feeds, made, kind)


@by_name
def test_each_optional_input_left_out(spec: OpSpec) -> None:
    for port in spec.inputs:
        for length in (1, 5) if port.optional else ():
            sizes = tiny(spec, T=length, B=2)
            inputs = spec.make_inputs(np.random.default_rng(1), sizes, (port.name,), True)
            assert inputs.pop(port.name, None) is None or port.name == "sequence_lengths"
            types = {"T": "float16", "S": "float32"}
            feeds, made = run_plan(spec, inputs, types, step=length == 1)
            check(spec, feeds, made, "float16")


@by_name
def test_no_optional_input(spec: OpSpec) -> None:
    left_out = tuple(port.name for port in spec.inputs if port.optional)
    types = {"T": "bfloat16", "S": "float32"}
    for length in (1, 131):
        sizes = tiny(spec, T=length, B=1)
        inputs = spec.make_inputs(np.random.default_rng(1), sizes, left_out, False)
        feeds, made = run_plan(spec, inputs, types, step=length == 1, chip=VAST)
        check(spec, feeds, made, "bfloat16")


@by_name
@pytest.mark.parametrize("step", [True, False], ids=["step", "prefill"])
def test_padding_does_not_matter(spec: OpSpec, step: bool) -> None:
    """NaN beyond a row's length reaches neither its outputs, which are zeros, nor its state."""
    inputs = spec.make_inputs(
        np.random.default_rng(2), tiny(spec, T=1 if step else 9, B=3), (), True
    )
    lengths = [1, 0, 1] if step else [9, 4, 0]
    inputs["sequence_lengths"] = np.array(lengths, dtype=np.int32)
    feeds, made = run_plan(
        spec, poison_padding(spec, inputs), {"T": "float32", "S": "float32"}, step=step
    )
    check(spec, feeds, made, "float32")
    for row, length in enumerate(lengths):
        assert not made[spec.outputs[0].name][row, length:].any()


@by_name
@pytest.mark.parametrize("length", [1, 7])
def test_state_in_place(spec: OpSpec, length: int) -> None:
    inputs = spec.make_inputs(np.random.default_rng(3), {**spec.sizes, "T": length}, (), True)
    feeds, made = run_plan(
        spec, inputs, {"T": "float16", "S": "float32"}, step=length == 1, in_place=True
    )
    check(spec, feeds, made, "float16")


@by_name
@pytest.mark.parametrize("step", [True, False], ids=["step", "prefill"])
def test_half_state(spec: OpSpec, step: bool) -> None:
    if not any(port.type == "S" for port in spec.outputs):
        pytest.skip("its state has the type of its inputs")
    types = {"T": "float32", "S": "float16"}
    sizes = tiny(spec, T=1 if step else 131, B=2)
    inputs = spec.make_inputs(np.random.default_rng(4), sizes, (), True)
    feeds, made = run_plan(spec, inputs, types, step=step, in_place=True, chip=VAST)
    check(spec, feeds, made, "float32", "float16")


@of(ODD)
def test_odd_sizes(spec: OpSpec, entry: Mapping[str, int]) -> None:
    for length in (1, 10):
        sizes = {**tiny(spec, T=length, B=2), **entry}
        inputs = spec.make_inputs(np.random.default_rng(7), sizes, (), True)
        types = {"T": "float32", "S": "float32"}
        feeds, made = run_plan(spec, inputs, types, step=length == 1, in_place=True)
        check(spec, feeds, made, "float32")


@of(OTHER)
def test_other_attributes(spec: OpSpec, entry: Mapping[str, Any]) -> None:
    for length in (1, 10):
        inputs = spec.make_inputs(np.random.default_rng(8), tiny(spec, T=length, B=2), (), True)
        if entry.get("dt_softplus") == 0:
            inputs["dt"] = np.abs(inputs["dt"]) / 40
            inputs["dt_bias"] = np.abs(inputs["dt_bias"]) / 40
        feeds, made = run_plan(
            spec, inputs, {"T": "float32", "S": "float32"}, step=length == 1, **entry
        )
        check(spec, feeds, made, "float32", **entry)


def pieces(
    spec: OpSpec, inputs: Mapping[str, np.ndarray], types: Mapping[str, str], cuts: list[int]
) -> dict[str, np.ndarray]:
    """A prompt fed piece by piece, each from the state that the one before it left."""
    feeds = rounded(spec, inputs, types)
    timed = [port.name for port in spec.inputs if "T" in port.axes and port.name in feeds]
    outputs: dict[str, list[np.ndarray]] = {}
    for start, stop in pairwise(cuts):
        piece = {**feeds, **{name: feeds[name][:, start:stop] for name in timed}}
        _, made = run_plan(spec, piece, types, step=stop - start == 1)
        for name, value in made.items():
            outputs.setdefault(name, []).append(value)
        for name in states(spec):
            past = name.replace("present", "past")
            feeds[past] = made[name].astype(feeds[past].dtype)
    last = set(states(spec))
    return {
        name: parts[-1] if name in last else np.concatenate(parts, axis=1)
        for name, parts in outputs.items()
    }


@by_name
def test_prompt_in_pieces(spec: OpSpec) -> None:
    types = {"T": "float32", "S": "float32"}
    inputs = spec.make_inputs(np.random.default_rng(9), tiny(spec, T=75, B=2), (), False)
    made = pieces(spec, inputs, types, [0, 1, 4, 67, 68, 75])
    check(spec, rounded(spec, inputs, types), made, "float32")


@by_name
@pytest.mark.parametrize(("state", "bound"), [("float32", 1e-5), ("float16", 2e-3)])
def test_drift_over_many_steps(spec: OpSpec, state: str, bound: float) -> None:
    if state == "float16" and not any(port.type == "S" for port in spec.outputs):
        pytest.skip("its state has the type of its inputs")
    steps = 4096 if DEVICE == "cuda" else 48
    types = {"T": "float32", "S": state}
    inputs = spec.make_inputs(np.random.default_rng(10), tiny(spec, T=steps, B=1), (), False)
    made = pieces(spec, inputs, types, list(range(steps + 1)))
    expected = spec.reference(rounded(spec, inputs, types), spec.attributes)
    for name, value in expected.items():
        assert np.linalg.norm(made[name] - value) <= bound * np.linalg.norm(value), name


@by_name
def test_any_sizes(spec: OpSpec) -> None:
    """Whatever small sizes, type, lengths and inputs a call has, the kernel agrees."""
    optional = [port.name for port in spec.inputs if port.optional]
    letters, least = sorted(set(spec.sizes) - {"B", "T"}), LEAST.get(spec.name, 1)

    @settings(max_examples=6, deadline=None, derandomize=True, database=None)
    @given(
        sizes=st.fixed_dictionaries(
            {
                "B": st.integers(1, 3),
                "T": st.integers(1, 20),
                **{letter: st.integers(least, TINY[letter] + 3) for letter in letters},
            }
        ),
        omit=st.sets(st.sampled_from(optional)),
        kind=st.sampled_from(KINDS),
        seed=st.integers(0, 999),
    )
    def agrees(sizes: dict[str, int], omit: set[str], kind: str, seed: int) -> None:
        if "G" in sizes:
            sizes["H"] *= sizes["G"]
        rng = np.random.default_rng(seed)
        inputs = spec.make_inputs(rng, sizes, omit, "sequence_lengths" not in omit)
        feeds, made = run_plan(spec, inputs, {"T": kind, "S": "float32"})
        check(spec, feeds, made, kind)

    agrees()


@by_name
def test_scratch_memory_of_a_profile_is_enough(spec: OpSpec) -> None:
    """An engine asks once, for its profile's largest sizes: no smaller call may need more."""
    types = {"T": "float16", "S": "float32"}
    inputs = spec.make_inputs(np.random.default_rng(0), tiny(spec, T=2, B=1), (), False)
    for chip in (ORIN, H100, VAST):
        plan = make_plan(spec, call_of(spec, inputs, types), chip)
        sizes = [1, 2, 3, 7, 16, 63, 64, 65, 200, 1000, 4097]
        for workspace in plan.workspaces():
            need = [[workspace.elements.value({"B": b, "T": t}) for t in sizes] for b in sizes]
            assert (np.diff(need, axis=0) >= 0).all(), workspace.name
            assert (np.diff(need, axis=1) >= 0).all(), workspace.name


@of({name: (sizes,) for name, (sizes, _) in BEYOND.items()})
@pytest.mark.parametrize("step", [True, False], ids=["step", "prefill"])
def test_size_beyond_the_kernels(spec: OpSpec, entry: Mapping[str, int], step: bool) -> None:
    sizes = {**tiny(spec, T=1, B=1), **entry}
    inputs = spec.make_inputs(np.random.default_rng(0), sizes, (), False)
    with pytest.raises(SsmExportError) as caught:
        make_plan(spec, call_of(spec, inputs, {}, step))
    assert caught.value.code == errors.KERNEL_UNSUPPORTED
    assert spec.name in str(caught.value)
    assert f"'{BEYOND[spec.name][1]}'" in str(caught.value)


def refuse(plan: Plan, tensors: Mapping[str, Any], name: str) -> None:
    """The call fails and names the operator and the tensor."""
    with pytest.raises(SsmExportError) as caught:
        run(plan, tensors)
    assert caught.value.code == errors.BAD_OPERATOR_CALL
    assert plan.op in str(caught.value) and f"'{name}'" in str(caught.value)


@by_name
@pytest.mark.parametrize("step", [True, False], ids=["step", "prefill"])
def test_wrong_tensors(spec: OpSpec, step: bool) -> None:
    """Each input in turn with a wrong rank, size, type, stride, alignment, or missing."""
    inputs = spec.make_inputs(np.random.default_rng(0), tiny(spec, T=1 if step else 3, B=2))
    types = {"T": "float32", "S": "float32"}
    feeds = rounded(spec, inputs, types)
    plan = make_plan(spec, call_of(spec, feeds, types, step))
    tensors = {name: to_torch(value) for name, value in feeds.items()}
    run(plan, tensors)
    for name, tensor in tensors.items():
        refuse(plan, {**tensors, name: tensor[None]}, name)
        refuse(plan, {**tensors, name: tensor.repeat_interleave(2, dim=-1)}, name)
        refuse(plan, {**tensors, name: tensor.double()}, name)
        twice = tensor.repeat_interleave(2, dim=0)[::2]
        refuse(plan, {**tensors, name: twice}, name)
        shifted = tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape)
        refuse(plan, {**tensors, name: shifted}, name)
        refuse(plan, {key: value for key, value in tensors.items() if key != name}, name)
    refuse(plan, {**tensors, "another": tensors[name]}, "another")


@by_name
@pytest.mark.parametrize("letter", ["B", "T"])
def test_no_rows_and_no_tokens(spec: OpSpec, letter: str) -> None:
    inputs = spec.make_inputs(np.random.default_rng(0), tiny(spec, T=3, B=2))
    types = {"T": "float32", "S": "float32"}
    plan = make_plan(spec, call_of(spec, inputs, types))
    tensors = {
        port.name: to_torch(rounded(spec, inputs, types)[port.name][: 0 if letter == "B" else None])
        if letter == "B" and port.axes[0] == "B"
        else to_torch(rounded(spec, inputs, types)[port.name])
        for port in spec.inputs
        if port.name in inputs
    }
    if letter == "T":
        for port in spec.inputs:
            if "T" in port.axes:
                tensors[port.name] = tensors[port.name][:, :0].contiguous()
    refuse(plan, tensors, spec.inputs[0].name)
