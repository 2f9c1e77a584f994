"""The plugin library is built once per session, where headers and compilers are."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from builds import building
from fake_gpu import FakeGpu
from plugin_harness import Harness

from ssm_export.machine import load_driver
from ssm_export_plugins import library

FAKE_DRIVER = "libssm_export_fake_driver.so"


@pytest.fixture(scope="session")
def headers() -> Path:
    """The folder of TensorRT's headers."""
    found = library.find_headers()
    if found is None:
        pytest.skip("TensorRT's headers are not here; TENSORRT_ROOT names the folder of include/")
    return found


@pytest.fixture(scope="session")
def build_root(pytestconfig: pytest.Config, headers: Path) -> Path:
    """A folder for builds that stays between sessions while the sources are the same."""
    version = (headers / "NvInferVersion.h").read_bytes()
    name = f"{library.source_hash()[:16]}-{hashlib.sha256(version).hexdigest()[:8]}"
    return Path(pytestconfig.cache.mkdir("ssm_export_plugins")) / name


@pytest.fixture(scope="session")
def built(request: pytest.FixtureRequest) -> Path:
    """The folder of the library, the harness and the fake driver.

    ``SSM_EXPORT_PLUGIN_BUILD`` names one that was built elsewhere, with ``-DSSM_EXPORT_TOOLS=ON``.
    """
    given = os.environ.get("SSM_EXPORT_PLUGIN_BUILD")
    if given:
        return Path(given).resolve()
    headers: Path = request.getfixturevalue("headers")
    build_root: Path = request.getfixturevalue("build_root")
    for tool in ("cmake", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on this machine")
    out = build_root / "native"
    with building(build_root):
        library.build_library(headers, out, tools=True)
    return out


@pytest.fixture(scope="session")
def fake_gpu(built: Path) -> FakeGpu:
    """The fake driver, which the library loads instead of a real one."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here: the kernels are compiled, not interpreted")
    assert load_driver() is None
    os.environ["SSM_EXPORT_CUDA_DRIVER"] = str(built / FAKE_DRIVER)
    return FakeGpu(ctypes.CDLL(str(built / FAKE_DRIVER)))


@pytest.fixture
def gpu(fake_gpu: FakeGpu) -> Iterator[FakeGpu]:
    """The fake GPU, as new, and checked for what went wrong in a launch."""
    fake_gpu.reset()
    yield fake_gpu
    fake_gpu.reset()


@pytest.fixture(scope="session")
def opened(built: Path) -> Harness:
    """The library in the harness."""
    return Harness(built)


@pytest.fixture
def harness(opened: Harness) -> Iterator[Harness]:
    """The harness without messages or plugins of other tests."""
    opened.log()
    yield opened
    opened.destroy_all()
