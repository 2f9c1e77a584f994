"""Opening a checkpoint reads no weights, and reading one tensor reads no other."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_sources import Source

from ssm_export.checkpoints import open_checkpoint

GIANT = 1 << 36  # 64 GiB of float32 zeros in a sparse file


def write_giant(folder: Path, source: Source) -> None:
    """A safetensors file with one small tensor behind one far larger than any memory."""
    small = torch.arange(1000, dtype=torch.float32)
    header = json.dumps(
        {
            "giant": {"dtype": "F32", "shape": [GIANT // 4], "data_offsets": [0, GIANT]},
            "small": {"dtype": "F32", "shape": [1000], "data_offsets": [GIANT, GIANT + 4000]},
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.seek(GIANT, 1)
        stream.write(small.numpy().tobytes())
    (folder / "config.json").write_text(json.dumps(source.config))


def test_a_tensor_behind_a_giant_one(mamba_source: Source, tmp_path: Path) -> None:
    try:
        write_giant(tmp_path, mamba_source)
    except OSError as error:
        pytest.skip(f"the file system has no sparse files of this size: {error}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tensors["giant"].shape == (GIANT // 4,)
        small = checkpoint.tensors["small"].read()
    assert torch.equal(small, torch.arange(1000, dtype=torch.float32))
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 64 * 1024


PEAK = """
import sys
import torch
from ssm_export.checkpoints import open_checkpoint

def peak():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0]) * 1024

before = peak()
with open_checkpoint(sys.argv[1]) as checkpoint:
    opened = peak()
    for lazy in checkpoint.tensors.values():
        lazy.read()
print(opened - before, peak() - before)
"""
# VmHWM and not ru_maxrss, which a child inherits from the process that started it


def growth(folder: Path) -> tuple[int, int]:
    """How many bytes a fresh process grows by opening a checkpoint, and by reading it all."""
    command = [sys.executable, "-c", PEAK, str(folder)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    opened, read = (int(word) for word in done.stdout.split())
    return opened, read


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_opening_reads_no_data_and_reading_keeps_none(
    mamba_source: Source, tmp_path: Path, file: str
) -> None:
    """Six tensors of 40 MiB: reading them one by one never holds them all.

    40 MiB is more than malloc keeps for itself, so that what is freed is gone.
    """
    from safetensors.torch import save_file

    one = 40 << 20
    weights = {f"tensor.{i}": torch.full((one // 4,), float(i)) for i in range(6)}
    (tmp_path / "config.json").write_text(json.dumps(mamba_source.config))
    if file.endswith(".bin"):
        torch.save(weights, tmp_path / file)
    else:
        save_file(weights, tmp_path / file)
    del weights
    base_opened, base_read = growth(mamba_source.folder)
    opened, read = growth(tmp_path)
    assert opened - base_opened < one
    assert read - base_read < 4 * one
