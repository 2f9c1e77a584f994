"""The demo checkpoints and the script that trained them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ssm_export.bundle import Bundle
from ssm_export.engines import Recurrent, open_runner
from ssm_export.exporter import ExportOptions, export

SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "train_demo"
CHECKPOINTS = sorted(file.parent for file in SAMPLE.glob("*/model.safetensors"))
MOST_BYTES = 2_000_000
MOST_BITS_PER_BYTE = 2.5


def held_out(limit: int) -> bytes:
    script = "import sys, data; sys.stdout.buffer.write(data.held_out_text(int(sys.argv[1])))"
    command = [sys.executable, "-c", script, str(limit)]
    return subprocess.run(command, cwd=SAMPLE, capture_output=True, check=True).stdout


def test_there_is_one_of_each_family():
    families = [json.loads((p / "config.json").read_text())["model_type"] for p in CHECKPOINTS]
    assert families == ["mamba", "mamba2"]


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda path: path.name)
def test_they_are_small(checkpoint):
    assert sum(file.stat().st_size for file in checkpoint.iterdir()) <= MOST_BYTES


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda path: path.name)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_held_out_bits_per_byte_through_the_exported_graph(checkpoint, precision, tmp_path):
    """The number in the README, computed with the prefill graph instead of torch."""
    options = ExportOptions(precision=precision, logits="all", parity="quick", lowering="ort")
    export(checkpoint, tmp_path / "bundle", options)
    bundle = Bundle.open(tmp_path / "bundle")
    text = np.frombuffer(held_out(16 * 1024), dtype=np.uint8)
    windows = text[: len(text) // 1024 * 1024].reshape(-1, 1024).astype(np.int64)
    runner = open_runner(bundle)
    logits, _ = Recurrent(bundle, runner).prefill(windows[:, :-1])
    runner.close()
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    log_likelihood = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    taken = np.take_along_axis(log_likelihood, windows[:, 1:, None], axis=-1)
    bits = float(-taken.mean() / np.log(2))
    assert bits < MOST_BITS_PER_BYTE


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_the_training_script_runs(family, tmp_path):
    """A few steps, then transformers loads what was written."""
    transformers = pytest.importorskip("transformers")
    command = ["train.py", "--family", family, "--steps", "2", "--out", str(tmp_path / "made")]
    done = subprocess.run(
        [sys.executable, *command], cwd=SAMPLE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    assert model.config.model_type == family
