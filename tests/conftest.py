"""Fixtures shared by all tests: tiny checkpoints of every family, and bundles made from them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    # Triton decides when it is imported whether kernels are interpreted, and parts of torch that
    # other tests use import it.
    os.environ["TRITON_INTERPRET"] = "1"

from families import FAMILIES, save_tiny


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each family in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_checkpoint(family, **changes)``: a transformers folder, made once for each call."""
    made: dict[str, Path] = {}

    def make(family: str, **changes: Any) -> Path:
        key = f"{family}-{sorted(changes.items())}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp(family) / "checkpoint"
            save_tiny(family, made[key], **changes)
        return made[key]

    return make


@pytest.fixture(scope="session")
def bundle_of(
    tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """``bundle_of(family, **options)``: a verified bundle, exported once for each set of options.

    A test that changes a bundle copies it first.
    """
    made: dict[str, Path] = {}

    def make(family: str, **options: Any) -> Path:
        from ssm_export.exporter import ExportOptions, export

        key = f"{family}-{sorted(options.items())}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("bundles") / "bundle"
            chosen = {"parity": "quick", "lowering": "ort", **options}
            export(tiny_checkpoint(family), made[key], ExportOptions(**chosen))
        return made[key]

    return make
