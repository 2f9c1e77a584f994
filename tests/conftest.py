"""Fixtures shared by all tests: tiny checkpoints of every family, and bundles made from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = sorted(file.stem for file in (ROOT / "configs" / "models").glob("*.yaml"))
"""Every family, found as the tool finds them: a new one is tested without an edit here."""


def tiny_values(family: str) -> dict[str, Any]:
    """config.json values of a family's smallest model."""
    text = (ROOT / "configs" / "models" / f"{family}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text)["tiny"])


def save_tiny(family: str, folder: Path, **changes: Any) -> Any:
    """Save transformers' model of a family with random weights; gives the model."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(11)
    config = transformers.AutoConfig.for_model(family, **{**tiny_values(family), **changes})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # initialisation leaves norms and D at one
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return model


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
