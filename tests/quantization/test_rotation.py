"""Hadamard rotations, against their definition and float64 products."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.quantization.rotation import block_size, hadamard, rotate, rotate_weight


@pytest.mark.parametrize("size", [1, 2, 4, 64, 128])
def test_hadamard_matrix(size):
    matrix = hadamard(size)
    assert matrix.dtype == np.float32
    expected = [[(-1) ** (i & j).bit_count() for j in range(size)] for i in range(size)]
    np.testing.assert_allclose(matrix * np.sqrt(size), expected, rtol=1e-6)
    wide = matrix.astype(np.float64)
    np.testing.assert_allclose(wide @ wide.T, np.eye(size), atol=1e-6)
    np.testing.assert_array_equal(matrix, matrix.T)


def test_a_hadamard_matrix_is_the_callers_own():
    hadamard(4)[0, 0] = 9
    assert hadamard(4)[0, 0] == 0.5


@pytest.mark.parametrize("size", [0, 3, 96, -2])
def test_other_sizes_are_refused(size):
    with pytest.raises(SsmExportError) as caught:
        hadamard(size)
    assert caught.value.code is errors.BAD_OPTION


@settings(max_examples=80)
@given(channels=st.integers(1, 6000), limit=st.integers(1, 512))
def test_block_size_is_the_largest_power_of_two(channels, limit):
    fitting = [2**k for k in range(14) if 2**k <= limit and channels % 2**k == 0]
    assert block_size(channels, limit) == max(fitting)


@settings(max_examples=40, deadline=None)
@given(
    blocks=st.integers(1, 4),
    block=st.sampled_from([1, 2, 8, 32]),
    outputs=st.integers(1, 7),
    rows=st.integers(1, 5),
    seed=st.integers(0, 999),
)
def test_a_folded_rotation_changes_no_product(blocks, block, outputs, rows, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, rows, blocks * block)).astype(np.float32)
    weight = rng.standard_normal((blocks * block, outputs)).astype(np.float32)
    plain = x.astype(np.float64) @ weight
    turned, folded = rotate(x, block), rotate_weight(weight, block)
    assert turned.shape == x.shape and folded.shape == weight.shape
    np.testing.assert_allclose(turned.astype(np.float64) @ folded, plain, atol=2e-5)
    whole = np.kron(np.eye(blocks), hadamard(block).astype(np.float64))
    np.testing.assert_allclose(turned, x @ whole, atol=1e-5)
    np.testing.assert_allclose(folded, whole.T @ weight, atol=1e-5)


def test_an_outlier_channel_is_spread():
    x = np.random.default_rng(0).standard_normal((1000, 256)).astype(np.float32)
    x[:, 7] *= 100
    amplitude = np.abs(rotate(x, 128)).max()
    assert amplitude < np.abs(x).max() / 8


def test_blocks_that_do_not_fit_are_refused():
    with pytest.raises(SsmExportError, match="take blocks of 32"):
        rotate(np.ones((2, 96), np.float32), 64)
