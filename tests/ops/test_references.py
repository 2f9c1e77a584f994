"""The float64 references against formulas that share nothing with them."""

from __future__ import annotations

import numpy as np
import pytest

from ssm_export.ops import all_ops
from ssm_export.ops.spec import Inputs


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, x)


def _double_sum(
    log_decay: np.ndarray, inflow: np.ndarray, past: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """h_t = Σ_{s≤t} exp(Σ_{s<k≤t} l_k) b_s + exp(Σ_{k≤t} l_k) past, written out as sums.

    ``log_decay`` and ``inflow`` are (T, …) and broadcast; gives every h and the last one.
    """
    states = []
    for t in range(len(inflow)):
        total = np.exp(log_decay[: t + 1].sum(0)) * past
        for s in range(t + 1):
            total = total + np.exp(log_decay[s + 1 : t + 1].sum(0)) * inflow[s]
        states.append(total)
    return np.stack(states), states[-1]


def test_selective_scan_is_its_double_sum() -> None:
    spec = all_ops()["SelectiveScan"]
    inputs = spec.make_inputs(np.random.default_rng(0), {**spec.sizes, "T": 9})
    result = spec.reference(inputs, spec.attributes)
    for row in range(spec.sizes["B"]):
        u, dt, B, C, z = (inputs[name][row] for name in ("u", "dt", "B", "C", "z"))
        delta = _softplus(dt + inputs["dt_bias"])
        log_decay = delta[:, :, None] * inputs["A"]
        inflow = (delta * u)[:, :, None] * B[:, None, :]
        states, last = _double_sum(log_decay, inflow, inputs["past"][row])
        y = np.einsum("tdn,tn->td", states, C) + inputs["D"] * u
        y = y * (z * (1.0 + np.tanh(z / 2.0)) / 2.0)
        np.testing.assert_allclose(result["y"][row], y, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(result["present"][row], last, rtol=1e-12)


def test_ssd_scan_is_its_double_sum() -> None:
    spec = all_ops()["SsdScan"]
    inputs = spec.make_inputs(np.random.default_rng(0), {**spec.sizes, "T": 9})
    attributes = {**spec.attributes, "dt_min": 0.01, "dt_max": 0.1}
    result = spec.reference(inputs, attributes)
    each = spec.sizes["H"] // spec.sizes["G"]
    for row in range(spec.sizes["B"]):
        for head in range(spec.sizes["H"]):
            x, dt = inputs["x"][row, :, head], inputs["dt"][row, :, head]
            B, C = (inputs[name][row, :, head // each] for name in "BC")
            delta = np.minimum(np.maximum(_softplus(dt + inputs["dt_bias"][head]), 0.01), 0.1)
            log_decay = (delta * inputs["A"][head])[:, None, None]
            inflow = (delta[:, None] * x)[:, :, None] * B[:, None, :]
            states, last = _double_sum(log_decay, inflow, inputs["past"][row, head])
            y = np.einsum("tpn,tn->tp", states, C) + inputs["D"][head] * x
            np.testing.assert_allclose(result["y"][row, :, head], y, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(result["present"][row, head], last, rtol=1e-12)


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("time", [1, 2, 11])
def test_convolution_is_torch_conv1d(activation: str, time: int) -> None:
    torch = pytest.importorskip("torch")
    spec = all_ops()["CausalConv1d"]
    inputs = spec.make_inputs(np.random.default_rng(0), {**spec.sizes, "T": time})
    result = spec.reference(inputs, {"activation": activation})
    window = torch.from_numpy(np.concatenate([inputs["past"], inputs["x"]], 1)).transpose(1, 2)
    kernel = torch.from_numpy(inputs["weight"])[:, None]
    y = torch.nn.functional.conv1d(
        window, kernel, torch.from_numpy(inputs["bias"]), groups=len(kernel)
    )
    if activation == "silu":
        y = torch.nn.functional.silu(y)
    np.testing.assert_allclose(result["y"], y.transpose(1, 2).numpy(), rtol=1e-12, atol=1e-12)
    taps = kernel.shape[2]
    np.testing.assert_array_equal(
        result["present"], window[:, :, window.shape[2] - taps + 1 :].transpose(1, 2).numpy()
    )


@pytest.mark.parametrize("name", list(all_ops()))
def test_a_row_of_a_ragged_batch_is_that_row_alone(name: str) -> None:
    spec = all_ops()[name]
    sizes = {**spec.sizes, "B": 4, "T": 12}
    inputs = spec.make_inputs(np.random.default_rng(3), sizes, (), True)
    together = spec.reference(inputs, spec.attributes)
    for row, length in enumerate(inputs["sequence_lengths"]):
        alone = spec.reference(_row(spec.inputs, inputs, row, int(length)), spec.attributes)
        np.testing.assert_array_equal(together["y"][row, :length], alone["y"][0])
        np.testing.assert_array_equal(together["present"][row], alone["present"][0])
        assert not together["y"][row, length:].any()


def _row(ports: tuple, inputs: Inputs, row: int, length: int) -> Inputs:  # type: ignore[type-arg]
    cut = {}
    for port in ports:
        if port.name not in inputs or port.name == "sequence_lengths":
            continue
        value = inputs[port.name]
        value = value[row : row + 1] if "B" in port.axes else value
        cut[port.name] = value[:, :length] if "T" in port.axes else value
    return cut
