"""A tiny checkpoint with a tokenizer, and a bundle made from it by the command line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import ROOT, Ended

from ssm_export.cli import group
from ssm_export.cli.running import run


@pytest.fixture
def ssm_export(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """``ssm-export`` in this process."""

    def call(*args: object) -> Ended:
        capsys.readouterr()
        status = run(group, [str(word) for word in args])
        captured = capsys.readouterr()
        return Ended(status, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mamba-2 model of one narrow layer over bytes, saved by transformers."""
    import transformers

    torch.manual_seed(3)
    config = transformers.Mamba2Config(
        vocab_size=256,
        hidden_size=16,
        state_size=8,
        num_hidden_layers=1,
        num_heads=4,
        head_dim=8,
        n_groups=1,
        chunk_size=16,
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    transformers.Mamba2ForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "samples" / "train_demo" / "mamba2-bytes" / name, folder)
    return folder


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of that checkpoint."""
    output = tmp_path_factory.mktemp("bundles") / "tiny"
    words = ["export", str(checkpoint), "-o", str(output), "--parity", "quick", "--quiet"]
    assert run(group, [*words, "--lowering", "native"]) == 0
    return output
