"""The families under test, found as the tool finds them, and their tiny checkpoints."""

from __future__ import annotations

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
