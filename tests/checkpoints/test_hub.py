"""Checkpoints named by a hub id, served from a local cache in the hub's own layout."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_sources import Source

from ssm_export import errors
from ssm_export.checkpoints import open_checkpoint
from ssm_export.checkpoints.hub import HubId
from ssm_export.errors import SsmExportError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub client that is not to use the network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def put(cache: Path, repository: str, folder: Path, branch: str = "main") -> Path:
    """Put a model into the cache as a download would have: blobs by refs and snapshots."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    shutil.copytree(folder, snapshot)
    (root / "refs").mkdir()
    (root / "refs" / branch).write_text(COMMIT)
    return snapshot


def test_a_model_in_the_cache(source: Source, cache: Path) -> None:
    snapshot = put(cache, "someone/tiny", source.folder)
    with open_checkpoint("someone/tiny") as checkpoint:
        assert checkpoint.path == snapshot
        name = "backbone.norm_f.weight"
        assert torch.equal(checkpoint.tensors[name].read(), source.weights[name])


def test_a_revision(mamba_source: Source, cache: Path) -> None:
    put(cache, "someone/tiny", mamba_source.folder, branch="v2")
    with open_checkpoint("someone/tiny@v2") as checkpoint:
        assert checkpoint.model_type == "mamba"
    with pytest.raises(SsmExportError) as caught:
        open_checkpoint("someone/tiny@v3")
    assert caught.value.code is errors.HUB_FAILED


def test_a_model_with_torch_files_only(mamba_source: Source, cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    shutil.copy(mamba_source.folder / "config.json", folder)
    torch.save(mamba_source.weights, folder / "pytorch_model.bin")
    put(cache, "someone/older", folder)
    with open_checkpoint("someone/older") as checkpoint:
        assert set(checkpoint.tensors) == set(mamba_source.weights)


def test_a_model_that_cannot_be_had(cache: Path) -> None:
    with pytest.raises(SsmExportError) as caught:
        open_checkpoint("someone/absent")
    assert caught.value.code is errors.HUB_FAILED
    assert "someone/absent" in caught.value.what
    assert "\n" not in str(caught.value)


def test_a_folder_is_preferred_to_the_hub(
    mamba_source: Source, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(mamba_source.folder, tmp_path / "someone" / "tiny")
    with open_checkpoint("someone/tiny") as checkpoint:
        assert checkpoint.path == Path("someone/tiny")


WITHOUT_HUB = """
import sys
sys.modules["huggingface_hub"] = None  # as if it were not installed
from ssm_export.checkpoints import open_checkpoint
from ssm_export.errors import SsmExportError
try:
    open_checkpoint("someone/tiny")
except SsmExportError as error:
    print(error.code.exit_status, error)
"""


def test_without_the_hub_client() -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", WITHOUT_HUB]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("3 SSM-E601")
    assert "ssm-export[hub]" in done.stdout


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("state-spaces/mamba-130m", HubId("state-spaces/mamba-130m")),
        ("a/b@refs/pr/3", HubId("a/b", "refs/pr/3")),
        ("/a/b", None),
        ("./a", None),
        ("../a", None),
        ("a", None),
        ("a/b/c", None),
        ("~/models", None),
    ],
)
def test_what_looks_like_a_hub_id(text: str, expected: HubId | None) -> None:
    assert HubId.parse(text) == expected
