"""Checkpoints that are not what they seem: one error each, with a code and the file's name."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_sources import Source
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssm_export import errors
from ssm_export.checkpoints import open_checkpoint
from ssm_export.errors import SsmExportError


def failure(folder: Path | str) -> SsmExportError:
    with pytest.raises(SsmExportError) as caught:
        open_checkpoint(folder)
    return caught.value


@pytest.fixture
def folder(mamba_source: Source, tmp_path: Path) -> Path:
    """A copy to spoil."""
    copy = tmp_path / "checkpoint"
    shutil.copytree(mamba_source.folder, copy)
    return copy


@pytest.fixture
def bin_file(mamba_source: Source, tmp_path: Path) -> Path:
    """A folder whose ``pytorch_model.bin`` is to be written."""
    shutil.copy(mamba_source.folder / "config.json", tmp_path)
    return tmp_path / "pytorch_model.bin"


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    error = failure(folder)
    assert error.code is errors.NO_CONFIG
    assert error.where == str(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b"null", b'{"hidden_size": 3}', b"[" * 99999]
)
def test_unreadable_config(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    error = failure(folder)
    assert error.code is errors.BAD_MODEL_CONFIG
    assert error.where.endswith("config.json")


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    error = failure(folder)
    assert error.code is errors.NO_WEIGHTS
    assert "model.safetensors" in error.what


def test_no_such_folder(tmp_path: Path) -> None:
    assert failure(tmp_path / "nowhere").code is errors.NO_SUCH_PATH
    assert failure("./no/such/thing").code is errors.NO_SUCH_PATH


def test_a_file_instead_of_its_folder(folder: Path) -> None:
    error = failure(folder / "model.safetensors")
    assert error.code is errors.BAD_OPTION
    assert str(folder) in error.fix


def test_missing_shard(sharded: Source, tmp_path: Path) -> None:
    copy = tmp_path / "checkpoint"
    shutil.copytree(sharded.folder, copy)
    gone = sorted(copy.glob("*.safetensors"))[1]
    gone.unlink()
    error = failure(copy)
    assert error.code is errors.MISSING_SHARD
    assert gone.name in error.what


def test_shard_of_another_model(sharded: Source, tmp_path: Path) -> None:
    """Two shards exchanged: the index disagrees with what a file holds, or names nothing wrong."""
    copy = tmp_path / "checkpoint"
    shutil.copytree(sharded.folder, copy)
    first, second = sorted(copy.glob("*.safetensors"))[:2]
    shutil.copy(first, second)
    error = failure(copy)
    assert error.code is errors.CORRUPT_WEIGHTS
    assert second.name in error.where


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "[]",
        '{"weight_map": 3}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": "../other/model.safetensors"}}',
        '{"weight_map": {"a": "/etc/passwd"}}',
    ],
)
def test_broken_index(folder: Path, index: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    error = failure(folder)
    assert error.code is errors.CORRUPT_WEIGHTS
    assert error.where.endswith("index.json")


@given(cut=st.floats(0, 1, exclude_max=True))
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_truncated_safetensors(folder: Path, cut: float, mamba_source: Source) -> None:
    whole = (mamba_source.folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: int(cut * len(whole))])
    error = failure(folder)
    assert error.code is errors.CORRUPT_WEIGHTS
    assert error.where.endswith("model.safetensors")


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, -1])
def test_safetensors_cut_at_the_seams(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert failure(folder).code is errors.CORRUPT_WEIGHTS


@given(position=st.integers(0, 200), value=st.integers(0, 255))
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_changed_header_is_noticed_or_harmless(
    folder: Path, mamba_source: Source, position: int, value: int
) -> None:
    """No byte of the header can be changed so that anything but our error comes out."""
    content = bytearray((mamba_source.folder / "model.safetensors").read_bytes())
    content[position] = value
    (folder / "model.safetensors").write_bytes(content)
    try:
        with open_checkpoint(folder) as checkpoint:
            for lazy in checkpoint.tensors.values():
                assert tuple(lazy.read().shape) == lazy.shape
    except SsmExportError as error:
        assert error.code is errors.CORRUPT_WEIGHTS


def test_a_file_that_shrinks_after_it_was_opened(folder: Path) -> None:
    with open_checkpoint(folder) as checkpoint:
        os.truncate(folder / "model.safetensors", 4096)
        with pytest.raises(SsmExportError) as caught:
            for lazy in checkpoint.tensors.values():
                lazy.read()
    assert caught.value.code is errors.CORRUPT_WEIGHTS


def test_lfs_pointer(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123456\n"
    (folder / "model.safetensors").write_text(pointer)
    error = failure(folder)
    assert error.code is errors.CORRUPT_WEIGHTS
    assert "git lfs pull" in error.fix


class Malicious:
    """Pickles to a call of ``os.system``."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle2", "pickle4"])
def test_a_pickle_that_runs_code(bin_file: Path, form: str) -> None:
    witness = bin_file.with_name("witness")
    content = {"weight": torch.ones(2), "trap": Malicious(f"touch {witness}")}
    if form in ("zip", "legacy"):
        torch.save(content, bin_file, _use_new_zipfile_serialization=form == "zip")
    else:
        trap = Malicious(f"touch {witness}")
        bin_file.write_bytes(pickle.dumps(trap, protocol=int(form[-1])))
    error = failure(bin_file.parent)
    assert error.code is errors.UNSAFE_PICKLE
    assert error.where == str(bin_file)
    assert "system" in error.what
    assert not witness.exists()


def test_a_pickle_that_asks_for_an_attribute_of_torch(bin_file: Path) -> None:
    """A call that names only torch, outside what torch itself holds safe."""

    class Trap:
        def __reduce__(self) -> Any:
            return torch.hub.load, ("/nowhere", "x")

    torch.save({"weight": Trap()}, bin_file)
    assert failure(bin_file.parent).code is errors.UNSAFE_PICKLE


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_torch_file(
    mamba_source: Source, bin_file: Path, share: float, zipped: bool
) -> None:
    stream = io.BytesIO()
    torch.save(mamba_source.weights, stream, _use_new_zipfile_serialization=zipped)
    whole = stream.getvalue()
    bin_file.write_bytes(whole[: int(share * len(whole))])
    error = failure(bin_file.parent)
    assert error.code is errors.CORRUPT_WEIGHTS
    assert error.where == str(bin_file)


def test_a_zip_that_torch_did_not_write(bin_file: Path) -> None:
    with zipfile.ZipFile(bin_file, "w") as archive:
        archive.writestr("hello.txt", "hello")
    assert failure(bin_file.parent).code is errors.CORRUPT_WEIGHTS


@pytest.mark.parametrize("content", [[torch.ones(1)], {"a": 3}, {"model": {"a": torch.ones(1)}}])
def test_a_torch_file_of_something_else(bin_file: Path, content: Any) -> None:
    torch.save(content, bin_file)
    assert failure(bin_file.parent).code is errors.CORRUPT_WEIGHTS


def test_a_type_that_cannot_be_read(folder: Path) -> None:
    header = json.dumps({"w": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    data = len(header).to_bytes(8, "little") + header + b"\0\0"
    (folder / "model.safetensors").write_bytes(data)
    error = failure(folder)
    assert error.code is errors.CORRUPT_WEIGHTS
    assert "F4" in error.what
