"""The library as a file: what it needs and exports, its builds, and where it is found."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builds import building
from fake_gpu import FakeGpu
from node_runs import plan_of

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.ops import get
from ssm_export_plugins import library

ROOT = Path(library.SOURCES)


def output_of(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not on this machine")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def needed(path: Path) -> set[str]:
    text = output_of("readelf", "-d", str(path))
    return set(re.findall(r"NEEDED.*\[(.+?)\]", text))


def newest_glibc(path: Path) -> tuple[int, ...]:
    text = output_of("readelf", "--version-info", "--wide", str(path))
    return max(tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_([\d.]+)", text))


def check_file(path: Path) -> None:
    """It loads on JetPack 6 and Ubuntu 22.04: C library 2.35, nothing of NVIDIA's."""
    assert {name.split(".so")[0].split("-")[0] for name in needed(path)} <= {
        "libc", "libm", "libdl", "libpthread", "ld"}  # fmt: skip
    assert newest_glibc(path) <= (2, 35)
    symbols = output_of("readelf", "--dyn-syms", "--wide", str(path))
    defined = re.findall(r" GLOBAL DEFAULT +\d+ (\S+)", symbols)
    assert sorted(name.split("@")[0] for name in defined) == ["getCreators", "setLoggerFinder"]


def test_what_it_needs_and_exports(built: Path) -> None:
    check_file(built / library.NAME)


def test_it_loads_without_a_gpu(built: Path) -> None:
    count = ctypes.c_int32()
    loaded = ctypes.CDLL(str(built / library.NAME))
    loaded.getCreators.restype = ctypes.POINTER(ctypes.c_void_p)
    assert loaded.getCreators(ctypes.byref(count)) and count.value == 8


NO_DRIVER = """
import sys
from pathlib import Path

from ssm_export.resources import load_plugins

load_plugins()
sys.path.insert(0, sys.argv[1])
from plugin_harness import Harness

harness = Harness(Path(sys.argv[2]))
plugin = harness.create("CausalConv1d", {"kernels": Path(sys.argv[3]).read_bytes()})
print(plugin.output_types(["float32"] * 4 + ["int32"]), plugin.attach(), harness.errors())
"""


def test_a_machine_without_a_driver(built: Path, gpu: FakeGpu, tmp_path: Path) -> None:
    """Everything up to the execution context works there, and that says what is missing."""
    kernels = tmp_path / "conv.ssmk"
    kernels.write_bytes(gpu.section(plan_of(get("CausalConv1d"))))
    here = Path(__file__).resolve().parent
    done = subprocess.run(
        [sys.executable, "-c", NO_DRIVER, str(here), str(built), str(kernels)],
        capture_output=True, text=True, check=False, cwd=here.parents[2],
        env={**os.environ, "SSM_EXPORT_CUDA_DRIVER": str(tmp_path / "libcuda.so.1")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['float32', 'float32'] None ")
    assert "there is no CUDA driver on this machine" in done.stdout


def test_library_hash(tmp_path: Path) -> None:
    file = tmp_path / library.NAME
    file.write_bytes(b"abc")
    assert library.library_hash(file) == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_find_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / library.NAME
    monkeypatch.setenv(library.VARIABLE, str(file))
    assert library.find_library() is None
    file.write_bytes(b"")
    assert library.find_library() == file


def test_find_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
    assert library.find_headers() is None
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "NvInfer.h").touch()
    assert library.find_headers() == tmp_path / "include"


def test_a_build_without_headers(tmp_path: Path) -> None:
    if shutil.which("cmake") is None or shutil.which("g++") is None:
        pytest.skip("cmake or g++ is not on this machine")
    with pytest.raises(SsmExportError) as caught:
        library.build_library(tmp_path / "nothing", tmp_path / "build")
    assert caught.value.code == errors.PLUGIN_LIBRARY
    assert "NvInfer.h was not found: give -DTENSORRT_ROOT=DIR" in str(caught.value)


def test_a_build_without_cmake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SsmExportError) as caught:
        library.build_library(None, tmp_path)
    assert "cmake is not on this machine" in str(caught.value)


def test_the_sources_know_no_operator_but_by_name() -> None:
    """Names of operators are in one table."""
    for file in (ROOT / "src").glob("*.cpp"):
        if file.name != "operators.cpp":
            assert not re.search(r"\"(SsdScan|CausalConv1d|LinearAttention)\"", file.read_text())


@pytest.mark.slow
def test_aarch64(headers: Path, build_root: Path, gpu: FakeGpu, tmp_path: Path) -> None:
    """Cross-built, it loads under an emulator, and reads kernels and works out shapes there."""
    for tool in ("cmake", "aarch64-linux-gnu-g++", "qemu-aarch64-static"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on this machine")
    out = build_root / "aarch64"
    with building(build_root):
        made = library.build_library(headers, out, library.AARCH64, tools=True)
    assert "AArch64" in output_of("readelf", "-h", str(made))
    check_file(made)
    kernels = tmp_path / "conv.ssmk"
    plan = plan_of(get("CausalConv1d"))
    kernels.write_bytes(gpu.section(plan))
    shapes = [",".join("-1" if isinstance(n, str) else str(n) for n in o.shape)
              for o in plan.inputs]  # fmt: skip
    text = output_of(
        "qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu", str(out / "ssm_export_probe"),
        str(made), str(kernels), "CausalConv1d", "ssm_export", *shapes,
    )  # fmt: skip
    lines = text.splitlines()
    assert "CausalConv1d 1 ssm_export activation kernels" in lines
    assert lines[-1] == "outputs: 0.0 0.1 24, 0.0 3 24"
    assert len(lines) == 9
