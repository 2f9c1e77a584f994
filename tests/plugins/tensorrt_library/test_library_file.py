"""The library as a file: what it needs and exports, its builds, and where it is found."""

from __future__ import annotations

import ctypes
import os
import platform
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
from ssm_export.bundle import sha256
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
    assert sorted(name.split("@")[0] for name in defined) == [
        "getCreators", "setLoggerFinder", "ssm_export_built_for"]  # fmt: skip


def test_what_it_needs_and_exports(built: Path) -> None:
    check_file(built / library.NAME)


def test_it_loads_without_a_gpu(built: Path) -> None:
    count = ctypes.c_int32()
    loaded = ctypes.CDLL(str(built / library.NAME))
    loaded.getCreators.restype = ctypes.POINTER(ctypes.c_void_p)
    assert loaded.getCreators(ctypes.byref(count)) and count.value == 9


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
    assert sha256(file) == ("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")


def test_find_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / library.NAME
    monkeypatch.setenv(library.VARIABLE, str(file))
    file.write_bytes(b"")
    assert library.find_library() == file
    monkeypatch.delenv(library.VARIABLE)
    monkeypatch.setattr(library, "_BUILT", tmp_path)
    assert library.find_library() == file
    monkeypatch.setattr(library, "_BUILT", tmp_path / "nothing")
    monkeypatch.setattr(library, "_FOLDERS", ())
    assert library.find_library() is None


@pytest.mark.parametrize(("named", "said"), [("nothing.so", "is not there"), ("", "is a folder")])
def test_a_variable_that_names_no_file(
    named: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(library.VARIABLE, str(tmp_path / named))
    with pytest.raises(SsmExportError) as caught:
        library.find_library()
    assert caught.value.code == errors.PLUGIN_LIBRARY
    assert f"SSM_EXPORT_PLUGIN_LIBRARY names {said}: {tmp_path / named}" in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="programs here are no ELF files")
def test_the_architecture_of_a_program_of_this_machine() -> None:
    assert library.architecture(Path(sys.executable)) == platform.machine()
    library.check_library(Path(sys.executable))


@pytest.mark.parametrize(
    ("head", "machine"),
    [
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\xb7\x00", "aarch64"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\x3e\x00", "x86_64"),
        (b"\x7fELF\x02\x02\x01" + bytes(9) + b"\x00\x03\x00\x15", "ELF machine 21"),
        (b"\x7fELF\x02\x01\x01", ""),
        (b"not a library at all", ""),
    ],
)
def test_a_library_that_this_machine_cannot_load(
    head: bytes, machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / library.NAME
    file.write_bytes(head)
    assert library.architecture(file) == machine
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    monkeypatch.delenv(library.VARIABLE, raising=False)
    with pytest.raises(SsmExportError) as unnamed:
        library.check_library(file)
    monkeypatch.setenv(library.VARIABLE, str(file))
    with pytest.raises(SsmExportError) as named:
        library.check_library(file)
    said = f"it is built for {machine}, this machine is riscv64" if machine else "no ELF file"
    for caught in (unnamed, named):
        assert caught.value.code == errors.PLUGIN_LIBRARY
        assert said in caught.value.what and str(file) in caught.value.where
    assert library.VARIABLE not in unnamed.value.where
    assert f"{library.VARIABLE} names it" in named.value.where


def test_the_machine_of_other_systems_by_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / library.NAME
    file.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\xb7\x00")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    library.check_library(file)


def test_the_library_names_its_tensorrt(built: Path, headers: Path, tmp_path: Path) -> None:
    """The compiler's own reading of the headers is the truth, for the file and for CMake."""
    source = tmp_path / "version.cpp"
    parts = " ".join(f"NV_TENSORRT_{part}" for part in ("MAJOR", "MINOR", "PATCH"))
    source.write_text(f"#include <NvInferVersion.h>\n{parts}\n")
    if os.environ.get("SSM_EXPORT_PLUGIN_BUILD"):
        pytest.skip("the library was built elsewhere, perhaps with other headers")
    read = output_of("g++", "-E", "-P", "-I", str(headers), str(source))
    version = ".".join(read.split())
    assert library.tensorrt_version(built / library.NAME) == version
    assert library.tensorrt_version(Path(sys.executable)) == ""
    said = output_of(*configure(tmp_path / "build", TENSORRT_ROOT=headers))
    assert f"-- TensorRT {version}: " in said


def test_find_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
    assert library.find_headers() is None
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "NvInfer.h").touch()
    assert library.find_headers() == tmp_path / "include"


def test_a_build_without_headers(tmp_path: Path) -> None:
    if shutil.which("cmake") is None or shutil.which("g++") is None:
        pytest.skip("cmake or g++ is not on this machine")
    root = tmp_path / "nothing"
    for given in (root, str(root)):
        with pytest.raises(SsmExportError) as caught:
            library.build_library(given, tmp_path / "build")
        assert caught.value.code == errors.PLUGIN_LIBRARY
        assert f"{root} holds no include/NvInfer.h" in str(caught.value)
    (tmp_path / "NvInfer.h").touch()
    with pytest.raises(SsmExportError, match=r"NvInferVersion\.h"):
        library.build_library(str(tmp_path), str(tmp_path / "build"))


def configure(build: Path, **options: object) -> list[str]:
    given = [f"-D{name}={value}" for name, value in options.items()]
    return ["cmake", "-S", str(ROOT), "-B", str(build), *given]


def test_cmake_names_the_folder_that_lacks_a_header(headers: Path, tmp_path: Path) -> None:
    """Also where the same folder was configured with a good one before."""
    output_of(*configure(tmp_path, TENSORRT_ROOT=headers))
    for options, said in (
        ({"TENSORRT_ROOT": "/nope"}, "/nope holds no include/NvInfer.h"),
        ({"TENSORRT_ROOT": headers, "CUDA_INCLUDE": "/no"}, "/no holds no cuda_runtime_api.h"),
    ):
        done = subprocess.run(
            configure(tmp_path, **options), capture_output=True, text=True, check=False
        )
        assert done.returncode != 0 and said in done.stderr


COMMANDS = re.findall(r"^cmake -S .+$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)


def test_the_readme_has_a_command_for_either_architecture() -> None:
    assert ["aarch64" in command for command in COMMANDS] == [False, True]


@pytest.mark.parametrize("command", COMMANDS, ids=["native", "aarch64"])
def test_the_commands_of_the_readme(command: str, headers: Path, tmp_path: Path) -> None:
    """As they stand there, from the root of a checkout; what comes before the compiler."""
    compiler = "aarch64-linux-gnu-g++" if "aarch64" in command else "g++"
    for tool in ("cmake", compiler):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on this machine")
    (tmp_path / "plugins").symlink_to(ROOT.parent)
    step, _, build = command.replace("=DIR", f"={headers}").partition(" && ")
    done = subprocess.run(
        ["bash", "-c", step], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    folder = step.split(" -B ")[1].split()[0]
    assert build == f"cmake --build {folder} --parallel"
    (found,) = (tmp_path / folder / "CMakeFiles").glob("*/CMakeCXXCompiler.cmake")
    assert ("aarch64-linux-gnu-g++" in found.read_text()) == (compiler != "g++")


def test_folders_may_be_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to where the caller is, which is not where CMake looks for a toolchain file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    commands: list[list[str]] = []
    monkeypatch.setattr(library, "_run", commands.append)
    Path("headers").mkdir()
    Path("headers/NvInfer.h").touch()
    made = library.build_library("headers", "out", "chain.cmake")
    assert made == Path("out") / library.NAME
    assert {f"-DTENSORRT_ROOT={tmp_path / 'headers'}",
            f"-DCMAKE_TOOLCHAIN_FILE={tmp_path / 'chain.cmake'}"} <= set(commands[0])  # fmt: skip
    assert all(isinstance(word, str) for command in commands for word in command)


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
    assert library.architecture(made) == "aarch64"
    assert library.tensorrt_version(made)
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
    assert len(lines) == 10
