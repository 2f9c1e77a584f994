"""What is particular to ConvSsdScan: the blocks of one token count themselves. The rest of its
contract is checked with that of the other kernels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from kernel_calls import DEVICE, H100, call_of, make_plan, poisoned, to_numpy, to_torch
from one_call import assert_within, rounded

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.ops import Call, all_ops, fused_ops
from ssm_export_plugins import kernels
from ssm_export_plugins.kernels import conv_ssd_scan
from ssm_export_plugins.launch import prepare, run
from ssm_export_plugins.plan import Plan

SPEC = fused_ops()["ConvSsdScan"]
TYPES = {"T": "float32", "S": "float32"}
SIZES = {"B": 2, "H": 4, "P": 5, "G": 2, "N": 7, "K": 4}
STATES = {"present_conv": "past_conv", "present_ssm": "past_ssm"}


def feeds_of(time: int, **sizes: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(time)
    return rounded(SPEC, SPEC.make_inputs(rng, {**SIZES, **sizes, "T": time}), TYPES)


def launched(plan: Plan, batch: int, time: int) -> list[str]:
    case = plan.case({"B": batch, "T": time})
    return [launch.kernel.name for launch in case.launches]


def token(feeds: Mapping[str, np.ndarray], t: int) -> dict[str, np.ndarray]:
    return {name: feeds[name][:, t : t + 1] for name in ("xBC", "dt")}


def test_the_reference_is_that_of_both_operators() -> None:
    """Against the nodes that it stands for, taken apart by hand."""
    feeds = SPEC.make_inputs(np.random.default_rng(0), {**SIZES, "T": 6}, (), True)
    conv = {**{k: feeds[k] for k in ("weight", "bias", "sequence_lengths")}, "x": feeds["xBC"],
            "past": feeds["past_conv"]}  # fmt: skip
    first = all_ops()["CausalConv1d"].reference(conv, {"activation": "silu"})
    y = first["y"]
    scan = {
        **{k: feeds[k] for k in ("dt", "A", "D", "dt_bias", "sequence_lengths")},
        "x": np.stack([y[:, :, 5 * head : 5 * head + 5] for head in range(4)], axis=2),
        "B": np.stack([y[:, :, 20 + 7 * g : 27 + 7 * g] for g in range(2)], axis=2),
        "C": np.stack([y[:, :, 34 + 7 * g : 41 + 7 * g] for g in range(2)], axis=2),
        "past": feeds["past_ssm"],
    }
    ssd = all_ops()["SsdScan"]
    second = ssd.reference(scan, ssd.attributes)
    made = SPEC.reference(feeds, SPEC.attributes)
    np.testing.assert_array_equal(made["y"], second["y"])
    np.testing.assert_array_equal(made["present_ssm"], second["present"])
    np.testing.assert_array_equal(made["present_conv"], first["present"])


def test_a_token_is_one_launch() -> None:
    feeds = feeds_of(1)
    for step in (True, False):
        plan = make_plan(SPEC, call_of(SPEC, feeds, TYPES, step))
        assert launched(plan, 2, 1) == ["conv_ssd_scan_step"]
    assert launched(plan, 2, 64) == ["causal_conv1d_prefill", "ssd_scan_prefill"]


def test_many_tokens_with_what_was_prepared_once() -> None:
    """The counters are zero again after every launch, as a graph that is replayed needs it."""
    steps = 7
    feeds = feeds_of(steps)
    expected = SPEC.reference(feeds, SPEC.attributes)
    plan = make_plan(SPEC, call_of(SPEC, feeds, TYPES))
    tensors = {name: to_torch(value) for name, value in {**feeds, **token(feeds, 0)}.items()}
    outputs = poisoned(plan, {"B": 2, "T": 1})
    outputs |= {present: tensors[past] for present, past in STATES.items()}
    launch, made = prepare(plan, tensors, outputs)
    for t in range(steps):
        for name, value in token(feeds, t).items():
            tensors[name].copy_(to_torch(value))
        launch()
        y = to_numpy(made["y"])
        assert_within(y, expected["y"][:, t : t + 1], SPEC.tolerances["fp32"], f"y {t}")
    for name in STATES:
        assert_within(to_numpy(made[name]), expected[name], SPEC.tolerances["fp32"], name)


def test_the_counters_are_left_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[torch.Tensor] = []
    zeros = torch.zeros

    def recorded(*size: int, **options: object) -> torch.Tensor:
        kept.append(zeros(*size, **options))
        return kept[-1]

    monkeypatch.setattr(torch, "zeros", recorded)
    feeds = feeds_of(1, B=3)
    plan = make_plan(SPEC, call_of(SPEC, feeds, TYPES, step=True))
    launch, _ = prepare(plan, {name: to_torch(value) for name, value in feeds.items()})
    monkeypatch.undo()
    (tickets,) = kept
    assert tickets.numel() == conv_ssd_scan.MAX_TICKETS and tickets.dtype == torch.int32
    launch()
    assert not tickets.any()


@pytest.mark.skipif(DEVICE == "cuda", reason="the order of blocks is the interpreter's")
def test_any_order_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place, whichever block comes last writes the conv state of B and C, and no other."""
    from triton.runtime import interpreter

    place = interpreter.InterpreterBuilder.set_grid_idx
    feeds = feeds_of(1)
    expected = SPEC.reference(feeds, SPEC.attributes)
    plan = make_plan(SPEC, call_of(SPEC, feeds, TYPES, step=True))
    grid = tuple(axis.value({"B": 2}) for axis in plan.cases[0].launches[0].grid)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(int(np.prod(grid)))

        def scrambled(self: object, x: int, y: int, z: int, order: np.ndarray = order) -> None:
            index = order[np.ravel_multi_index((x, y, z), grid)]
            place(self, *map(int, np.unravel_index(index, grid)))

        monkeypatch.setattr(interpreter.InterpreterBuilder, "set_grid_idx", scrambled)
        tensors = {name: to_torch(value) for name, value in feeds.items()}
        made = run(plan, tensors, {present: tensors[past] for present, past in STATES.items()})
        for name, value in expected.items():
            assert_within(to_numpy(made[name]), value, SPEC.tolerances["fp32"], name)


@pytest.mark.parametrize("step", [True, False], ids=["step", "prefill"])
def test_more_rows_than_are_counted(monkeypatch: pytest.MonkeyPatch, step: bool) -> None:
    monkeypatch.setattr(conv_ssd_scan, "MAX_TICKETS", 4)
    feeds = feeds_of(1, B=3)
    plan = make_plan(SPEC, call_of(SPEC, feeds, TYPES, step))
    assert launched(plan, 2, 1) == ["conv_ssd_scan_step"]
    assert launched(plan, 3, 1) == ["causal_conv1d_step", "ssd_scan_step"]
    tensors = {name: to_torch(value) for name, value in feeds.items()}
    made = run(plan, tensors, {present: tensors[past] for present, past in STATES.items()})
    for name, value in SPEC.reference(feeds, SPEC.attributes).items():
        assert_within(to_numpy(made[name]), value, SPEC.tolerances["fp32"], name)


def test_channels_of_no_groups() -> None:
    call = call_of(SPEC, feeds_of(1), TYPES)
    odd = Call(call.present, call.attributes, {**call.sizes, "D": 47}, call.types)
    with pytest.raises(SsmExportError) as caught:
        next(kernels.plans(SPEC, odd, H100))
    assert caught.value.code == errors.KERNEL_UNSUPPORTED
    assert "'xBC' has 47 channels" in str(caught.value)
