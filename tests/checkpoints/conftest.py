"""Tiny real checkpoints: transformers' own models saved by transformers, and the same weights
written by hand as mamba_ssm saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_sources import MAMBA2_SIZES, MAMBA_SIZES, Source


def _build(model_type: str) -> Any:
    import transformers

    torch.manual_seed(7)
    if model_type == "mamba":
        return transformers.MambaForCausalLM(transformers.MambaConfig(**MAMBA_SIZES))
    return transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**MAMBA2_SIZES))


def _save(model: Any, folder: Path, **options: Any) -> Source:
    model.save_pretrained(folder, **options)
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    return Source(folder, json.loads((folder / "config.json").read_text()), weights)


@pytest.fixture(scope="session", params=["mamba", "mamba2"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A folder with one ``model.safetensors``."""
    return _save(_build(request.param), tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A Mamba-2 folder with several safetensors files and an index."""
    folder = tmp_path_factory.mktemp("sharded")
    made = _save(_build("mamba2"), folder, max_shard_size="12KB")
    assert len(list(folder.glob("*.safetensors"))) >= 3
    return made


@pytest.fixture(scope="session")
def mamba_source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A Mamba-1 folder, for tests that need one family only."""
    return _save(_build("mamba"), tmp_path_factory.mktemp("mamba-only"))


@pytest.fixture(scope="session")
def mamba2_source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A Mamba-2 folder, for tests that need one family only."""
    return _save(_build("mamba2"), tmp_path_factory.mktemp("mamba2-only"))
