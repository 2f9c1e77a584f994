"""Packs of a hand-built bundle, unpacked where a test may change them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from toy_bundle import make_toy_bundle

from ssm_export.bundle import Bundle
from ssm_export.packaging import make_pack
from ssm_export.packaging.pack import BOARD


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of standard operators; nobody writes into it."""
    return make_toy_bundle(tmp_path_factory.mktemp("toy") / "toy")


@pytest.fixture(scope="session")
def packs(toy: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``packs(target)``: the toy bundle's archive for a target, made once."""
    folder = tmp_path_factory.mktemp("packs")

    def make(target: str) -> Path:
        archive = folder / f"toy-{target}.tar"
        if not archive.exists():
            make_pack(toy, target, archive, lowering="native")
        return archive

    return make


@pytest.fixture
def unpacked(packs: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """``unpacked(target)``: the folder of a pack, for this test alone."""

    def unpack(target: str) -> Path:
        with tarfile.open(packs(target)) as tar:
            tar.extractall(tmp_path, filter="data")
        return tmp_path / f"toy-{target}"

    return unpack


@pytest.fixture(scope="session")
def check() -> ModuleType:
    """The script that looks at a machine, as a module."""
    spec = importlib.util.spec_from_file_location("pack_check", BOARD / "check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_sh(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``run_sh(folder, *words, **environment)``: the pack's script, without this environment."""

    def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "LANG": "C.UTF-8",
            "PYTHON": sys.executable,
        }
        # Where packages come from is the machine's own affair.
        clean |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        return subprocess.run(
            [str(folder / "run.sh"), *words],
            env=clean | environment,
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run


@pytest.fixture
def programs(tmp_path: Path) -> Callable[..., str]:
    """``programs(uname="…")``: a PATH on which these shell scripts go before the real programs."""

    def make(**scripts: str) -> str:
        folder = tmp_path / "programs"
        folder.mkdir(exist_ok=True)
        for name, text in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        return f"{folder}:{os.path.dirname(shutil.which('sh') or '/bin/sh')}:/usr/bin:/bin"

    return make
