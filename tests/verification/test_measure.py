"""The measures, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ssm_export.verification.measure import Measurement, element_error, squared_error


def test_squared_error_is_of_the_worst_row():
    want = np.array([[3.0, 4.0], [30.0, 40.0]])
    got = want + np.array([[0.5, 0.0], [0.5, 0.0]])
    value, row = squared_error(got, want)
    assert (value, row) == (pytest.approx(0.25 / 25), 0)


def test_element_error_names_the_element_that_a_mean_hides():
    want = np.ones((1, 1000, 100))
    got = want.copy()
    got[0, 17, 5] += 0.02
    assert squared_error(got, want)[0] < 1e-8
    value, index = element_error(got, want, relative=0.001, absolute=0.001)
    assert (value, index) == (pytest.approx(10.0), (0, 17, 5))


def test_element_error_uses_the_scale_of_its_own_row():
    want = np.array([[1.0, 0.0], [1000.0, 0.0]])
    got = want + np.array([[0.0, 0.1], [0.0, 0.1]])
    value, index = element_error(got, want, relative=0.0, absolute=0.1)
    assert index == (0, 1)
    assert value == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_infinitely_wrong(bad):
    want = np.ones((2, 4))
    got = want.copy()
    got[1, 2] = bad
    assert squared_error(got, want) == (math.inf, 1)
    assert element_error(got, want, 1.0, 1.0) == (math.inf, (1, 2))
    assert not Measurement("run", None, "nmse", math.nan, 1.0).ok


def test_a_row_of_zeros_must_be_zeros():
    want = np.zeros((1, 3))
    assert squared_error(want, want)[0] == 0.0
    assert squared_error(want + 1e-30, want)[0] == math.inf


def test_fp16_values_are_not_squared_in_fp16():
    want = np.full((1, 4), 60000.0)
    assert squared_error(want.astype(np.float16), want)[0] < 1e-6
