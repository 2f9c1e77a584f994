"""Toy bundles: sound ones made once, faulty ones made where they are wanted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from toy_bundle import Fault, PlainRunner, make_toy_bundle

from ssm_export.verification import VerifyReport, verify


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    """A bundle without a fault that takes sequence_lengths."""
    return make_toy_bundle(tmp_path_factory.mktemp("toy") / "sound", ragged=True)


@pytest.fixture
def verify_fault(tmp_path: Path) -> Callable[..., VerifyReport]:
    """Verify a new bundle with one planted fault."""

    def run(fault: Fault, *checks: str, ragged: bool = False, bisect: bool = False) -> VerifyReport:
        bundle = make_toy_bundle(tmp_path / "faulty", fault=fault, ragged=ragged)
        return verify(
            bundle, runner=PlainRunner(bundle), checks=checks or None, bisect=bisect, save=False
        )

    return run
