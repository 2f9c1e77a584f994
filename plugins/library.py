"""The TensorRT plugin library: where it is, what builds it, and which one it is.

The sources are in ``tensorrt/`` beside this file; its README has the same builds as commands.
"""

from __future__ import annotations

import hashlib
import os
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

_HEADER: Final = "NvInfer.h"
_FOLDERS: Final = ("/usr/local/lib", "/usr/lib", "/usr/lib/x86_64-linux-gnu",
                   "/usr/lib/aarch64-linux-gnu")  # fmt: skip
_HEADER_FOLDERS: Final = ("/usr/include/x86_64-linux-gnu", "/usr/include/aarch64-linux-gnu",
                          "/usr/include", "/usr/local/tensorrt/include",
                          "/opt/tensorrt/include")  # fmt: skip


def find_library() -> Path | None:
    """The library: the one that ``SSM_EXPORT_PLUGIN_LIBRARY`` names, else a built or installed one.

    None where there is none; a variable that names no file counts as none.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named) if Path(named).is_file() else None
    folders = (_BUILT, SOURCES, *map(Path, _FOLDERS))
    return next((folder / NAME for folder in folders if (folder / NAME).is_file()), None)


def library_hash(library: Path) -> str:
    """SHA-256 of the library, as manifests have it."""
    return hashlib.sha256(library.read_bytes()).hexdigest()


def find_headers() -> Path | None:
    """A folder with TensorRT's C++ headers: of ``TENSORRT_ROOT``, else where packages put them."""
    root = os.environ.get("TENSORRT_ROOT")
    folders = (f"{root}/include", root) if root else _HEADER_FOLDERS
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
    tensorrt_root: Path | None,
    out: Path,
    toolchain: Path | None = None,
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
            or naming the tool that is missing.
    """
    if shutil.which("cmake") is None:
        raise _failed("cmake is not on this machine", fix="sudo apt-get install cmake g++")
    configure = ["cmake", "-S", str(SOURCES), "-B", str(out)]
    if tensorrt_root is not None:
        configure.append(f"-DTENSORRT_ROOT={tensorrt_root}")
    if toolchain is not None:
        configure.append(f"-DCMAKE_TOOLCHAIN_FILE={toolchain}")
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
