"""What is particular to SelectiveScan's kernels: the softplus, and the split along time."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_calls import H100, ORIN, VAST, call_of, make_plan, run_plan

from ssm_export.ops import all_ops
from ssm_export_plugins.plan import Chip, Tensor

SPEC = all_ops()["SelectiveScan"]
TYPES = {"T": "float32", "S": "float32"}


@pytest.mark.parametrize("step", [True, False], ids=["step", "prefill"])
def test_softplus_far_from_zero(step: bool) -> None:
    """With u = B = 1 and no past, the state after one token is softplus(dt) itself.

    Relative to it, an exponential's argument of size x is off by some roundings of x in fp32.
    """
    dt = np.array([-80, -50, -20, -8, -3, -1, -0.1, 0, 0.1, 1, 3, 20, 80, 1e4, 3e38], np.float32)
    channels = len(dt)
    inputs = {
        "u": np.ones((1, 1, channels)),
        "dt": dt[None, None],
        "A": -np.ones((channels, 1)),
        "B": np.ones((1, 1, 1)),
        "C": np.ones((1, 1, 1)),
        "past": np.zeros((1, channels, 1)),
    }
    _, made = run_plan(SPEC, inputs, TYPES, step=step)
    expected = np.logaddexp(0.0, dt.astype(np.float64))
    error = np.abs(made["present"][0, :, 0] - expected) / expected
    assert (error <= 3e-7 + 1.2e-7 * np.clip(-dt, 0, None)).all()


@pytest.mark.parametrize("gate", [-1e4, -100.0, 0.0, 100.0, 3e38])
def test_gate_far_from_zero(gate: float) -> None:
    """The gate's exponential overflows on one side; the product does not."""
    inputs = SPEC.make_inputs(np.random.default_rng(0), {"B": 1, "T": 2, "D": 3, "N": 2})
    inputs["z"] = np.full_like(inputs["z"], gate)
    inputs["C"], inputs["D"] = inputs["C"] * 0, np.ones(3)
    inputs["u"] = np.sign(inputs["u"])
    feeds, made = run_plan(SPEC, inputs, TYPES)
    np.testing.assert_allclose(made["y"], feeds["u"] * max(gate, 0.0), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("chip", [ORIN, H100, VAST, Chip((8, 6), 101_376, 1)])
@pytest.mark.parametrize("channels", [24, 1536, 5120, 5121])
def test_segments_fill_the_chip_and_cover_every_token(chip: Chip, channels: int) -> None:
    """Scratch memory has a slot for each segment of each row, and segments reach the last token."""
    small = {"B": 1, "T": 2, "D": 3, "N": 2}
    inputs = SPEC.make_inputs(np.random.default_rng(0), small)
    call = call_of(SPEC, inputs, TYPES)
    call.sizes.update({"D": channels, "N": 16})
    plan = make_plan(SPEC, call, chip)
    split = 0
    for batch in (1, 2, 3, 16, 64, 300):
        for time in (1, 2, 63, 64, 65, 129, 1000, 2048, 65_537, 1_000_000):
            sizes = {"B": batch, "T": time}
            launches = plan.case(sizes).launches
            x, y, z = (axis.value(sizes) for axis in launches[-1].grid)
            if len(launches) == 1:
                continue
            split += 1
            assert z == batch and x * y * z <= 16 * chip.multiprocessors
            names = [n for n in launches[-1].kernel.function.arg_names if n in ("T", "SEGMENT")]
            numbers = [a for a in launches[-1].arguments if not hasattr(a, "name")]
            numbers = [a.value(sizes) for a in numbers if not isinstance(a, Tensor)]
            length = dict(zip(names, numbers, strict=True))["SEGMENT"]
            assert y * length >= time
            for workspace, per_slot in zip(
                plan.workspaces(), (16 * channels, channels), strict=True
            ):
                assert y * z * per_slot <= workspace.elements.value(sizes), workspace.name
    assert bool(split) == (chip.multiprocessors * 16 // -(-channels // 32) >= 6)
