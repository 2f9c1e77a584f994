"""GPTQ, against the paper's own updates in float64, nearest rounding and exhaustive search."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.quantization.rounding import gptq
from ssm_export.quantization.schemes import quantize_weight


def correlated(samples: int, inputs: int, seed: int = 0) -> np.ndarray:
    """H = XᵀX/n of inputs that hang together and differ in size."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((samples, inputs)) @ rng.standard_normal((inputs, inputs))
    x = mixed * np.exp(rng.standard_normal(inputs))
    return x.T @ x / samples


def objective(weight, tensor, hessian) -> float:
    """tr((W−Q)ᵀ·H·(W−Q)) in float64."""
    error = weight.astype(np.float64) - tensor.values * spread_scale(tensor)
    return float(np.trace(error.T @ hessian @ error))


def spread_scale(tensor) -> np.ndarray:
    scale = tensor.scale.astype(np.float64)
    if tensor.block:
        return np.repeat(scale, tensor.block, axis=0)
    return np.broadcast_to(scale, tensor.values.shape)


def paper_codes(weight, hessian, scale, maximum, damping, order) -> np.ndarray:
    """Frantar et al. 2022, equations 2 and 3, one input after another, inverse and all."""
    inputs = len(weight)
    damped = hessian + damping * np.mean(np.diagonal(hessian)) * np.eye(inputs)
    left = weight.astype(np.float64).copy()
    codes = np.zeros_like(left)
    remaining = list(range(inputs))
    for at in order:
        inverse = np.linalg.inv(damped[np.ix_(remaining, remaining)])
        own = remaining.index(at)
        codes[at] = np.clip(np.rint(left[at] / scale[at]), -maximum, maximum)
        error = (left[at] - codes[at] * scale[at]) / inverse[own, own]
        left[remaining] -= np.outer(inverse[:, own], error)
        remaining.remove(at)
    return codes


@pytest.mark.parametrize("order", ["activations", "natural"])
@pytest.mark.parametrize("scheme,block", [("int4", 0), ("int4", 16), ("int8", 0), ("int8", 32)])
def test_codes_are_those_of_the_paper(scheme, block, order):
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((64, 40)).astype(np.float32)
    hessian = correlated(500, 64)
    tensor = gptq(weight, hessian, scheme, block=block, order=order, clip="minmax")
    sequence = np.argsort(-np.diagonal(hessian)) if order == "activations" else range(64)
    maximum = {"int8": 127, "int4": 7}[scheme]
    expected = paper_codes(weight, hessian, spread_scale(tensor), maximum, 0.01, sequence)
    nearest = quantize_weight(weight, scheme, axis=0 if block else 1, block=block)
    np.testing.assert_array_equal(tensor.scale, nearest.scale)
    from_paper = (tensor.values == expected).all(axis=0)
    from_nearest = (tensor.values == nearest.values).all(axis=0)
    assert (from_paper | from_nearest).all()
    assert from_paper.sum() >= 36


def test_batches_join_without_a_seam():
    """160 inputs are two batches; the codes are still those of one input after another."""
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((160, 6)).astype(np.float32)
    hessian = correlated(1000, 160, seed=3)
    tensor = gptq(weight, hessian, "int4", damping=0.05)
    sequence = np.argsort(-np.diagonal(hessian))
    expected = paper_codes(weight, hessian, spread_scale(tensor), 7, 0.05, sequence)
    assert (tensor.values == expected).mean() > 0.999


def test_exhaustive_search_over_all_codes():
    """All 15⁴ codings of four inputs: GPTQ lies between the best of them and nearest rounding."""
    hessian = correlated(100, 4, seed=5)
    rng = np.random.default_rng(6)
    every = np.array(list(product(range(-7, 8), repeat=4)), np.float64)
    sums = np.zeros(3)
    for _ in range(40):
        weight = rng.standard_normal((4, 1)).astype(np.float32)
        nearest = quantize_weight(weight, "int4", axis=1)
        tensor = gptq(weight, hessian, "int4", clip="minmax", damping=1e-6)
        error = weight[:, 0] - float(nearest.scale[0]) * every
        best = float(np.einsum("ck,kl,cl->c", error, hessian, error, optimize=True).min())
        own, plain = objective(weight, tensor, hessian), objective(weight, nearest, hessian)
        assert best * (1 - 1e-6) <= own <= plain * (1 + 1e-5)
        sums += [best, own, plain]
    assert sums[0] < sums[1] < sums[2]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 9999),
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 9),
    samples=st.integers(1, 60),
    scheme=st.sampled_from(["int8", "int4"]),
    block=st.sampled_from([0, 16]),
    order=st.sampled_from(["activations", "natural"]),
    clip=st.sampled_from(["mse", "minmax"]),
)
def test_never_worse_than_nearest(seed, inputs, outputs, samples, scheme, block, order, clip):
    """Fewer samples than inputs too, where H is singular."""
    inputs *= 16
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((inputs, outputs)).astype(np.float32)
    hessian = correlated(samples, inputs, seed)
    tensor = gptq(weight, hessian, scheme, block=block, order=order, clip=clip)
    nearest = quantize_weight(weight, scheme, axis=0 if block else 1, block=block, clip=clip)
    assert tensor.values.shape == weight.shape and tensor.values.dtype == np.int8
    assert tensor.scale.shape == nearest.scale.shape
    own, plain = objective(weight, tensor, hessian), objective(weight, nearest, hessian)
    assert own <= plain * (1 + 1e-4) + 1e-9 * np.trace(hessian)


@pytest.mark.parametrize("scheme,block", [("int4", 0), ("int4", 32), ("int8", 0)])
def test_it_pays_on_inputs_that_hang_together(scheme, block):
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((192, 64)).astype(np.float32)
    hessian = correlated(4000, 192, seed=8)
    nearest = quantize_weight(weight, scheme, axis=0 if block else 1, block=block, clip="mse")
    own = objective(weight, gptq(weight, hessian, scheme, block=block), hessian)
    assert own < 0.6 * objective(weight, nearest, hessian)


def test_scales_are_those_that_suit_the_inputs():
    """Inputs of different size: better than the paper's updates with scales of the weight alone."""
    rng = np.random.default_rng(9)
    weight = rng.standard_normal((64, 16)).astype(np.float32)
    hessian = correlated(1000, 64, seed=10)
    tensor = gptq(weight, hessian, "int4", block=32)
    plain = quantize_weight(weight, "int4", axis=0, block=32, clip="mse")
    scale, order = spread_scale(plain), np.argsort(-np.diagonal(hessian))
    error = weight - scale * paper_codes(weight, hessian, scale, 7, 0.01, order)
    assert objective(weight, tensor, hessian) < 0.9 * np.trace(error.T @ hessian @ error)


def test_independent_inputs_are_rounded_to_nearest():
    weight = np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)
    nearest = quantize_weight(weight, "int4", axis=1)
    tensor = gptq(weight, np.diag(np.arange(1.0, 33.0)), "int4", clip="minmax")
    np.testing.assert_array_equal(tensor.values, nearest.values)


def test_inputs_that_were_always_zero():
    weight = np.random.default_rng(0).standard_normal((48, 8)).astype(np.float32)
    hessian = correlated(300, 48)
    dead = [3, 17, 40]
    hessian[dead] = 0
    hessian[:, dead] = 0
    tensor = gptq(weight, hessian, "int8", clip="minmax")
    nearest = quantize_weight(weight, "int8", axis=1)
    np.testing.assert_array_equal(tensor.values[dead], nearest.values[dead])
    live = [at for at in range(48) if at not in dead]
    assert (tensor.values[live] != nearest.values[live]).any()


def test_no_activity_at_all():
    weight = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    tensor = gptq(weight, np.zeros((16, 16)), "int8")
    nearest = quantize_weight(weight, "int8", axis=1, clip="mse")
    np.testing.assert_array_equal(tensor.values, nearest.values)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_singular_hessian_is_damped_until_it_is_not(dtype):
    ones = np.ones((64, 64), dtype) * 1e6
    weight = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    tensor = gptq(weight, ones, "int4", damping=0.0)
    nearest = quantize_weight(weight, "int4", axis=1, clip="mse")
    assert objective(weight, tensor, ones) < 0.1 * objective(weight, nearest, ones)


def test_a_factor_of_the_hessian_does_not_matter():
    weight = np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)
    hessian = correlated(300, 32)
    small, large = gptq(weight, hessian / 1024, "int4"), gptq(weight, hessian * 1024, "int4")
    np.testing.assert_array_equal(small.values, large.values)


def test_more_outputs_than_one_slice():
    weight = np.random.default_rng(0).standard_normal((16, 5000)).astype(np.float32)
    hessian = correlated(300, 16)
    whole = gptq(weight, hessian, "int4")
    parts = [gptq(part, hessian, "int4") for part in np.split(weight, [1234], axis=1)]
    np.testing.assert_array_equal(whole.values, np.hstack([part.values for part in parts]))


def test_an_embedding_is_rounded_as_its_transpose():
    table = np.random.default_rng(0).standard_normal((100, 64)).astype(np.float32)
    hessian = correlated(300, 64)
    tensor = gptq(table.T, hessian, "int8", block=32).transposed()
    assert tensor.values.shape == (100, 64)
    assert tensor.scale.shape == (100, 2) and tensor.axis == 1
    assert np.abs(tensor.dequantized() - table).max() < 0.2


def test_the_inputs_keep_their_values():
    weight = np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)
    hessian = correlated(300, 32)
    kept = weight.copy(), hessian.copy()
    gptq(weight, hessian, "int4")
    np.testing.assert_array_equal(weight, kept[0])
    np.testing.assert_array_equal(hessian, kept[1])


@pytest.mark.parametrize(
    "changes",
    [
        {"scheme": "fp8"},
        {"order": "random"},
        {"hessian": np.eye(7)},
        {"block": 24},
        {"hessian": -np.eye(32)},
        {"hessian": np.eye(32) - 1e12},
        {"hessian": np.eye(32) - 1e12 * (1 - np.eye(32))},
    ],
)
def test_what_cannot_be_is_refused(changes):
    arguments = {"weight": np.ones((32, 3), np.float32), "hessian": np.eye(32), "scheme": "int4"}
    with pytest.raises(SsmExportError) as caught:
        gptq(**{**arguments, **changes})
    assert caught.value.code is errors.BAD_OPTION
    assert caught.value.fix


def test_a_hessian_that_is_not_finite_is_refused():
    hessian = np.eye(32)
    hessian[3, 4] = np.nan
    with pytest.raises(SsmExportError, match=r"layers\.0\.in_proj") as caught:
        gptq(np.ones((32, 3), np.float32), hessian, "int4", name="layers.0.in_proj")
    assert caught.value.code is errors.NOT_FINITE
