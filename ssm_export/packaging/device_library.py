"""The plugin library of a pack: compiled here for the device, with its sources beside it."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ssm_export.errors import SsmExportError
from ssm_export.machine import machine_platform
from ssm_export.packaging.archive import Packed
from ssm_export.packaging.wheel import source_files
from ssm_export.progress import SILENT, Progress
from ssm_export.resources import load_plugins
from ssm_export.targets import Target

_CROSS_COMPILER: Final = "aarch64-linux-gnu-g++"
_AARCH64: Final = "linux-aarch64"


@dataclass(frozen=True)
class DeviceLibrary:
    """What a pack has of the plugin library.

    Attributes:
        files: its sources, and the library where it could be compiled.
        tensorrt: release of the headers that it was compiled with; empty without a library.
        path: of the library in the pack; empty without one.
        note: why it was not compiled; empty where it was.
    """

    files: tuple[Packed, ...]
    tensorrt: str = ""
    path: str = ""
    note: str = ""


def device_library(target: Target, progress: Progress = SILENT) -> DeviceLibrary:
    """Compile the library for a target where compiler and headers are here.

    The headers, which ``TENSORRT_ROOT`` names, have to be of the target's major release of
    TensorRT: loggers differ between major releases. Elsewhere the sources go alone, and the device
    compiles them.
    """
    load_plugins()
    from ssm_export_plugins import library

    sources = tuple(
        Packed(f"plugin/source/{relative}", file)
        for file, relative in source_files(library.SOURCES)
        if not relative.startswith("harness/")
    )
    with tempfile.TemporaryDirectory(prefix="ssm-export-") as folder:
        try:
            why, toolchain = _obstacle(target)
            if why:
                return DeviceLibrary(sources, note=why)
            progress.task("compiling the plugin library")
            headers = library.find_headers()
            made = library.build_library(headers, folder, toolchain)
        except SsmExportError as error:
            return DeviceLibrary(sources, note=error.what.splitlines()[0])
        path = f"plugin/{library.NAME}"
        files = (*sources, Packed(path, made.read_bytes(), executable=True))
        return DeviceLibrary(files, library.tensorrt_version(made), path)


def _obstacle(target: Target) -> tuple[str, Path | None]:
    """Why the library cannot be compiled here, or the toolchain file that does it."""
    from ssm_export_plugins import library

    toolchain = None
    if target.platform not in ("", machine_platform()):
        if target.platform != _AARCH64:
            return f"nothing here compiles for {target.platform}", None
        if shutil.which(_CROSS_COMPILER) is None:
            return f"{_CROSS_COMPILER} is not here (apt-get install g++-aarch64-linux-gnu)", None
        toolchain = library.AARCH64
    if shutil.which("cmake") is None:
        return "cmake is not here (apt-get install cmake)", None
    headers = library.find_headers()
    if headers is None:
        return "TensorRT's headers are not here (TENSORRT_ROOT names their folder)", None
    found = _major(headers)
    wanted = target.tensorrt.partition(".")[0]
    if wanted and found != wanted:
        return (
            f"the headers in {headers.name}/ are of TensorRT {found}, the target has {wanted}",
            None,
        )
    return "", toolchain


def _major(headers: Path) -> str:
    text = (headers / "NvInferVersion.h").read_text(encoding="utf-8", errors="replace")
    found = re.search(r"define\s+(?:NV_TENSORRT|TRT)_MAJOR\w*\s+(\d+)", text)
    return found[1] if found else "an unknown release"
