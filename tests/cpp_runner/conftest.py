"""The C++ runner and its test program are built once, where compilers and headers are."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
from pathlib import Path

import pytest
from runner_builds import README, RTX_LIBRARY, SANITIZED, build_folder, compile_in, require
from toy_bundle import make_toy_bundle

from ssm_export.bundle import Bundle
from ssm_export.resources import load_plugins

CHUNK = 32


@pytest.fixture(scope="session")
def parts(pytestconfig: pytest.Config) -> Path:
    """The test program: everything but TensorRT."""
    require("cmake", "g++")
    with build_folder(pytestconfig, "parts") as folder:
        compile_in(
            folder,
            "-DRUNTIME=none",
            "-DSSM_RUNNER_TESTS=ON",
            "-DCMAKE_BUILD_TYPE=Debug",
            f"-DCMAKE_CXX_FLAGS={SANITIZED}",
        )
    return folder / "ssm_runner_tests"


@pytest.fixture(scope="session")
def runner(pytestconfig: pytest.Config) -> Path:
    """The runner itself, by the README's command for the wheel of TensorRT-RTX."""
    require("cmake", "g++")
    load_plugins()
    from ssm_export_plugins import library

    headers = library.find_headers()
    if headers is None:
        pytest.skip("TensorRT's headers are not here; TENSORRT_ROOT names the folder of include/")
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("tensorrt-rtx is not installed")
    rtx = Path(spec.submodule_search_locations[0]) / RTX_LIBRARY
    (command,) = re.findall(r"^cmake .*=FILE.*$", README, re.MULTILINE)
    words = re.findall(r"-D\S+", command)
    values = {"DIR": str(headers), "FILE": str(rtx)}
    definitions = [re.sub(r"=(DIR|FILE)$", lambda m: f"={values[m[1]]}", word) for word in words]
    assert len(definitions) == 3
    name = f"rtx-{hashlib.sha256(f'{headers} {rtx}'.encode()).hexdigest()[:8]}"
    with build_folder(pytestconfig, name) as folder:
        compile_in(folder, *definitions, "-DCMAKE_CXX_FLAGS=-Werror")
    return folder / "ssm_runner"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A toy bundle with engines of TensorRT-RTX, built here."""
    pytest.importorskip("tensorrt_rtx")
    from ssm_export.engines.tensorrt import build

    bundle = make_toy_bundle(tmp_path_factory.mktemp("runner") / "toy")
    build(bundle, "rtx-any", max_batch=4, max_chunk=CHUNK)
    return Bundle.open(bundle.path)


@pytest.fixture
def copied(built: Bundle, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may damage."""
    return Path(shutil.copytree(built.path, tmp_path / "copy"))
