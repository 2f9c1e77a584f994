"""Histograms of activations, against numpy on the raw values and brute-force rounding."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.quantization.clipping import Histogram


def histogram_of(*parts: np.ndarray) -> Histogram:
    result = Histogram()
    for part in parts:
        result.add(part)
    return result


def same(a: Histogram, b: Histogram) -> bool:
    return bool((a.counts == b.counts).all() and a.reach == b.reach and a.largest == b.largest)


def counted(x: np.ndarray, reach: float) -> np.ndarray:
    """numpy's histogram of |x|, mirrored so that its half-open bins are open at the lower end."""
    magnitude = np.abs(x.astype(np.float64)).ravel()
    return np.histogram(-magnitude, bins=np.linspace(-reach, 0, 2049))[0][::-1]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 9999),
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=6),
    spread=st.floats(0, 6),
)
def test_counts_do_not_depend_on_pieces_and_order(seed, sizes, spread):
    rng = np.random.default_rng(seed)
    parts = [
        (rng.standard_normal(n) * np.exp(spread * rng.standard_normal())).astype(np.float32)
        for n in sizes
    ]
    whole = np.concatenate(parts)
    once = histogram_of(whole)
    assert same(once, histogram_of(*parts))
    assert same(once, histogram_of(*reversed(parts)))
    merged = histogram_of(*parts[:1])
    merged.merge(histogram_of(*parts[1:]))
    assert same(once, merged)
    assert once.total == whole.size
    assert once.largest == np.abs(whole).max() <= once.reach < 2 * once.largest
    np.testing.assert_array_equal(once.counts, counted(whole, once.reach))


def test_values_on_the_edges_of_bins():
    x = np.array([0, 0, 1, -1, 1024, 2048, -2047, 2047.5], np.float32)
    histogram = histogram_of(x)
    assert histogram.reach == 2048
    expected = np.zeros(2048, int)
    expected[[0, 1023, 2046]] = [4, 1, 1]
    expected[2047] = 2
    np.testing.assert_array_equal(histogram.counts, expected)
    histogram.add(np.float32([2049]))
    assert histogram.reach == 4096 and histogram.counts[0] == 4 and histogram.counts[511] == 1
    assert histogram.counts[1024] == 1 and histogram.total == 9


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types(dtype):
    x = np.random.default_rng(0).standard_normal((50, 7)).astype(dtype)
    np.testing.assert_array_equal(histogram_of(x).counts, counted(x, histogram_of(x).reach))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 9999),
    p=st.sampled_from([0, 1, 37.5, 50, 90, 99, 99.9, 99.95, 99.999, 100]),
    heavy=st.booleans(),
)
def test_percentiles_are_those_of_the_values(seed, p, heavy):
    rng = np.random.default_rng(seed)
    x = rng.standard_t(2, 5000) if heavy else rng.standard_normal(5000)
    x = x.astype(np.float32)
    histogram = histogram_of(x[:100], x[100:])
    magnitude = np.sort(np.abs(x.astype(np.float64)))
    width = histogram.reach / 2048
    # Between the two order statistics that numpy interpolates, and a bin around them.
    low = np.percentile(magnitude, p, method="lower")
    high = np.percentile(magnitude, p, method="higher")
    assert low - width <= histogram.percentile(p) <= high + width
    assert histogram.percentile(100) == histogram.minmax() == magnitude[-1]


def test_the_tail_is_cut_off():
    x = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    x[:5] = 60
    histogram = histogram_of(x)
    assert histogram.minmax() == 60
    assert histogram.percentile(99.999) < 5.5


def rounding_loss(x: np.ndarray, amplitude: float, scheme: str) -> float:
    x = x.astype(np.float64)
    if scheme == "fp8":
        scale = amplitude / 448
        codes = np.clip(x / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    else:
        top = {"int8": 127, "int4": 7}[scheme]
        scale = amplitude / top
        codes = np.clip(np.rint(x / scale), -top, top)
    return float(np.square(codes * scale - x).mean())


@pytest.mark.parametrize("scheme", ["int8", "int4", "fp8"])
@pytest.mark.parametrize("tail", ["normal", "laplace", "outliers"])
def test_mse_amplitude_is_near_the_best_for_the_raw_values(scheme, tail):
    rng = np.random.default_rng(7)
    x = rng.laplace(size=200_000) if tail == "laplace" else rng.standard_normal(200_000)
    x = x.astype(np.float32)
    if tail == "outliers":
        x[:20] *= 12
    histogram = histogram_of(x)
    top = float(np.abs(x).max())
    best = min(rounding_loss(x, top * share, scheme) for share in np.geomspace(1, 0.02, 150))
    found = rounding_loss(x, histogram.mse_amplitude(scheme), scheme)
    assert found <= best * 1.02
    if scheme != "fp8":
        assert found < rounding_loss(x, top, scheme)


def test_optimum_of_normal_values():
    """15 even levels, the expected error integrated over the normal density on a fine grid."""
    t = np.linspace(0, 9, 90_001)
    density = np.exp(-np.square(t) / 2)
    steps = np.linspace(0.3, 0.42, 241)
    errors_of = [(density * (np.minimum(np.rint(t / s), 7) * s - t) ** 2).sum() for s in steps]
    best = steps[int(np.argmin(errors_of))]
    x = np.random.default_rng(3).standard_normal(2_000_000).astype(np.float32)
    assert histogram_of(x).mse_amplitude("int4") / 7 == pytest.approx(best, rel=0.02)


def test_storage_keeps_everything():
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    histogram = histogram_of(x)
    arrays = histogram.to_arrays()
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    back = Histogram.from_arrays(arrays)
    assert same(histogram, back)
    back.add(x * 10)
    assert not same(histogram, back) and histogram.total == 1000
    assert same(back, histogram_of(x, x * 10))


def test_zeros_alone():
    histogram = histogram_of(np.zeros(10, np.float32))
    assert histogram.minmax() == histogram.percentile(99) == histogram.mse_amplitude("int8") == 0
    histogram.add(np.ones(1, np.float32))
    assert same(histogram, histogram_of(np.float32([0] * 10 + [1])))


def test_a_range_that_grows_by_a_hundred_powers():
    tiny, huge = np.float32([1e-38, 3e-38]), np.float32([1e38])
    assert same(histogram_of(tiny, huge), histogram_of(huge, tiny))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    histogram = histogram_of(np.ones(3, np.float32))
    with pytest.raises(SsmExportError) as caught:
        histogram.add(np.float32([1, bad, 2]))
    assert caught.value.code is errors.NOT_FINITE
    assert histogram.total == 3


def test_an_empty_histogram_has_no_amplitude():
    empty = histogram_of(np.zeros(0, np.float32))
    for ask in (empty.minmax, lambda: empty.percentile(50), lambda: empty.mse_amplitude("int8")):
        with pytest.raises(SsmExportError) as caught:
            ask()
        assert caught.value.code is errors.BAD_CALIBRATION


@pytest.mark.parametrize("p", [-1, 100.1, float("nan")])
def test_no_percentile(p):
    with pytest.raises(SsmExportError) as caught:
        histogram_of(np.ones(3)).percentile(p)
    assert caught.value.code is errors.BAD_OPTION
