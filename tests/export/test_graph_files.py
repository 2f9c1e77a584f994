"""What counts as a large model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from toy_bundle import make_toy_bundle

from ssm_export.graph_files import is_large


@pytest.mark.parametrize(
    ("parameters", "precision", "large"),
    [
        (130_000_000, "fp32", False),
        (370_000_000, "fp32", True),
        (370_000_000, "fp16", False),
        (1_400_000_000, "bf16", True),
    ],
)
def test_a_model_counts_with_its_float_weights(
    tmp_path: Path, parameters: int, precision: str, large: bool
) -> None:
    manifest = make_toy_bundle(tmp_path / "toy").manifest
    sizes = {**manifest.sizes, "parameters": parameters}
    found = dataclasses.replace(manifest, sizes=sizes, precision=precision)
    assert found.weights.bytes < 1 << 20  # whatever the file holds
    assert is_large(found) is large
