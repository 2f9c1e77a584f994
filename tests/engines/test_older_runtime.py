"""A bundle on an ONNX Runtime that lacks the fused operators it was lowered to."""

from __future__ import annotations

import pytest

from ssm_export.bundle import Bundle
from ssm_export.engines.onnxruntime import known_operators, runnable_lowering

pytest.importorskip("torch")


def test_the_installed_one_runs_what_was_chosen(bundle_of):
    bundle = Bundle.open(bundle_of("mamba2", lowering="auto"))
    bundle.manifest.lowering["chosen"] = "ort"
    if "LinearAttention" not in known_operators():
        pytest.skip("this ONNX Runtime has no LinearAttention")
    assert runnable_lowering(bundle, known_operators()) == "ort"


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_an_older_one_gets_standard_operators(bundle_of, family):
    bundle = Bundle.open(bundle_of(family, lowering="auto"))
    bundle.manifest.lowering["chosen"] = "ort"
    expected = "ort" if family == "mamba" else "native"  # Mamba-1 has no fused operator to lack
    assert runnable_lowering(bundle, frozenset()) == expected


def test_without_native_graphs_the_bodies_run(bundle_of):
    bundle = Bundle.open(bundle_of("mamba2", lowering="ort"))
    assert runnable_lowering(bundle, frozenset()) == "canonical"
