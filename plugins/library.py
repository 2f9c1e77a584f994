"""The TensorRT plugin library: where it is, what builds it, and which one it is.

The sources are in ``tensorrt/`` beside this file; its README has the same builds as commands.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ssm_export import errors
from ssm_export.errors import SsmExportError

NAME: Final = "libssm_export_plugins.so"
SOURCES: Final = Path(__file__).resolve().parent / "tensorrt"
VARIABLE: Final = "SSM_EXPORT_PLUGIN_LIBRARY"
"""Environment variable that names the library."""

_BUILT: Final = SOURCES.parents[1] / "build" / "plugins"
"""Where the README's command builds in a checkout."""

AARCH64: Final = SOURCES / "aarch64-linux-gnu.cmake"
"""CMake toolchain file that cross-compiles for a Jetson."""

_MACHINES: Final = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
"""``e_machine`` of an ELF header, by the names of ``platform.machine``. Source: elf.h."""

_SAME: Final = {"amd64": "x86_64", "arm64": "aarch64"}
_BUILT_FOR: Final = re.compile(rb"ssm_export_plugins built for TensorRT (\d+(?:\.\d+)+)\0")
"""What ``src/built_for.cpp`` leaves in the file."""

_HEADER: Final = "NvInfer.h"
_FOLDERS: Final = ("/usr/local/lib", "/usr/lib", "/usr/lib/x86_64-linux-gnu",
                   "/usr/lib/aarch64-linux-gnu")  # fmt: skip
_HEADER_FOLDERS: Final = ("/usr/include/x86_64-linux-gnu", "/usr/include/aarch64-linux-gnu",
                          "/usr/include", "/usr/local/tensorrt/include",
                          "/opt/tensorrt/include")  # fmt: skip


def find_library() -> Path | None:
    """The library: the one that ``SSM_EXPORT_PLUGIN_LIBRARY`` names, else a built or installed one.

    None where there is none.

    Raises:
        SsmExportError: ``PLUGIN_LIBRARY`` where the variable names no file.
    """
    named = os.environ.get(VARIABLE)
    if named:
        if Path(named).is_file():
            return Path(named)
        what = "is a folder" if Path(named).is_dir() else "is not there"
        raise SsmExportError(
            errors.PLUGIN_LIBRARY,
            f"the plugin library that {VARIABLE} names {what}: {named}",
            fix=f"set {VARIABLE} to the file {NAME} itself, or unset it",
        )
    folders = (_BUILT, SOURCES, *map(Path, _FOLDERS))
    return next((folder / NAME for folder in folders if (folder / NAME).is_file()), None)


def architecture(library: Path) -> str:
    """The machine that an ELF file is for, as ``platform.machine`` names it; empty for others."""
    with library.open("rb") as file:
        head = file.read(20)
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return ""
    number = int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")
    return _MACHINES.get(number, f"ELF machine {number}")


def tensorrt_version(library: Path) -> str:
    """The TensorRT release whose headers a library was built with; empty where it says none."""
    found = _BUILT_FOR.search(library.read_bytes())
    return found[1].decode() if found else ""


def check_library(library: Path) -> None:
    """See from the first bytes of a library whether this machine can load it.

    Raises:
        SsmExportError: ``PLUGIN_LIBRARY`` for one of another architecture, or no library at all.
    """
    here = platform.machine().lower()
    here, made_for = _SAME.get(here, here), architecture(library)
    if made_for == here:
        return
    named = os.environ.get(VARIABLE)
    raise SsmExportError(
        errors.PLUGIN_LIBRARY,
        f"it is built for {made_for}, this machine is {here}"
        if made_for
        else "it is no shared library (no ELF file)",
        where=f"{library} ({VARIABLE} names it)" if named else str(library),
        fix=f"build it for {here} (plugins/tensorrt/README.md has the command) and set {VARIABLE} "
        "to its path",
    )


def find_headers() -> Path | None:
    """A folder with TensorRT's C++ headers: of ``TENSORRT_ROOT``, else where packages put them."""
    root = os.environ.get("TENSORRT_ROOT")
    return _with_header((f"{root}/include", root) if root else _HEADER_FOLDERS)


def _with_header(folders: Sequence[str]) -> Path | None:
    return next((Path(folder) for folder in folders if (Path(folder) / _HEADER).is_file()), None)


def source_hash() -> str:
    """SHA-256 of everything that the library is built from, but for the headers of others."""
    found = hashlib.sha256()
    for file in sorted(SOURCES.rglob("*")):
        if file.is_file() and file.suffix in {".cpp", ".h", ".txt", ".cmake", ".map"}:
            relative = file.relative_to(SOURCES)
            if relative.parts[0] != "build":
                found.update(f"{relative}\0".encode() + file.read_bytes())
    return found.hexdigest()


def build_library(
    tensorrt_root: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    toolchain: str | os.PathLike[str] | None = None,
    *,
    tools: bool = False,
    jobs: int = 2,
) -> Path:
    """Build the library with CMake.

    Args:
        tensorrt_root: folder that holds ``include/NvInfer.h`` or the header itself; None for where
            packages put it.
        out: build folder; what is up to date in it stays.
        toolchain: CMake toolchain file, such as :data:`AARCH64`; None for this machine.
        tools: also build the harness, the fake driver and the probe, which tests use.
        jobs: compilers at a time.

    Returns:
        Path of the library in ``out``.

    Raises:
        SsmExportError: ``PLUGIN_LIBRARY`` with the last lines of what CMake or the compiler said,
            or naming the tool or the header that is missing.
    """
    if shutil.which("cmake") is None:
        raise _failed("cmake is not on this machine", fix="sudo apt-get install cmake g++")
    out = Path(out)
    configure = ["cmake", "-S", str(SOURCES), "-B", str(out)]
    if tensorrt_root is not None:
        root = os.fspath(tensorrt_root)
        if _with_header((f"{root}/include", root)) is None:
            raise _failed(
                f"{root} holds no include/{_HEADER}",
                fix="give the folder above TensorRT's headers; they are public, in the folder "
                "include of the repository NVIDIA/TensorRT",
            )
        configure.append(f"-DTENSORRT_ROOT={Path(root).resolve()}")
    if toolchain is not None:
        configure.append(f"-DCMAKE_TOOLCHAIN_FILE={Path(toolchain).resolve()}")
    configure.append(f"-DSSM_EXPORT_TOOLS={'ON' if tools else 'OFF'}")
    _run(configure)
    _run(["cmake", "--build", str(out), "--parallel", str(jobs)])
    return out / NAME


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()[-20:]
        raise _failed("the plugin library could not be built:\n" + "\n".join(said))


def _failed(what: str, fix: str = "see plugins/tensorrt/README.md") -> SsmExportError:
    return SsmExportError(errors.PLUGIN_LIBRARY, what, where=NAME, fix=fix)
