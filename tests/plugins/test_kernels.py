"""Every kernel against its operator's float64 reference, interpreted or on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_calls import run_plan
from one_call import PRECISION, assert_within
from ssm_export_plugins import kernels

from ssm_export.ops import OpSpec, all_ops

OPS = [spec for spec in all_ops().values() if kernels.has_kernels(spec.name)]
by_name = pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.name)
by_type = pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])


def check(spec: OpSpec, feeds: dict, made: dict, kind: str, **attributes: object) -> None:
    expected = spec.reference(feeds, {**spec.attributes, **attributes})
    for name, value in expected.items():
        assert_within(made[name], value, spec.tolerances[PRECISION[kind]], name)


@by_name
@by_type
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65])
def test_prefill(spec: OpSpec, kind: str, length: int) -> None:
    rng = np.random.default_rng(length)
    inputs = spec.make_inputs(rng, {**spec.sizes, "T": length}, (), length % 2 == 1)
    feeds, made = run_plan(spec, inputs, {"T": kind, "S": "float32"})
    check(spec, feeds, made, kind)
