"""What this machine is: the facts that reports and manifests carry.

What the machine can do is in :mod:`ssm_export.engines.doctor`.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

_TOOLS: Final = ("ssm-export", "onnx", "onnx-ir", "onnxruntime", "torch", "tensorrt-rtx")


JETSON_RELEASE: Final = Path("/etc/nv_tegra_release")
JETSON_MODEL: Final = Path("/proc/device-tree/model")

_CAPABILITY_MAJOR = 75
_CAPABILITY_MINOR = 76


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver reports it; memory in bytes."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int
    driver_cuda: str


def load_driver() -> ctypes.CDLL | None:
    """The driver library, initialised, or None where there is none or no GPU."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


def find_gpus() -> list[Gpu]:
    """The GPUs of this machine; empty where there are none."""
    driver = load_driver()
    if driver is None:
        return []
    count, version = ctypes.c_int(), ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    driver.cuDriverGetVersion(ctypes.byref(version))
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    gpus = []
    for index in range(count.value):
        device, memory = ctypes.c_int(), ctypes.c_size_t()
        name = ctypes.create_string_buffer(256)
        major, minor = ctypes.c_int(), ctypes.c_int()
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetName(name, len(name), device)
        driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        driver.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device)
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device)
        gpus.append(
            Gpu(
                index,
                name.value.decode(errors="replace"),
                (major.value, minor.value),
                memory.value,
                cuda,
            )
        )
    return gpus


def machine_facts() -> dict[str, Any]:
    """The machine in a few words, for benchmark reports; what cannot be found out is empty."""
    gpus = _value(gpu_names, [])
    return {
        "cpu": _value(cpu_name, ""),
        "cores": _value(core_count, 0),
        "memory_gb": round(_value(memory_bytes, 0) / 1e9, 1),
        "os": _value(platform.platform, ""),
        "python": platform.python_version(),
        "gpu": gpus[0] if gpus else "",
        "jetson": _value(jetson, ""),
        "power_mode": _value(power_mode, ""),
    }


def tool_versions() -> dict[str, str]:
    """Versions of the tools that shape a bundle, from package metadata alone (nothing imported)."""
    found = {name: installed_version(name) for name in _TOOLS}
    installed = {name: version for name, version in found.items() if version}
    return {"python": platform.python_version(), **installed}


def cpu_name() -> str:
    """The processor's name."""
    file = Path("/proc/cpuinfo")
    if file.is_file():
        found = re.search(
            r"^model name\s*:\s*(.+)$", file.read_text(errors="replace"), re.MULTILINE
        )
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def core_count() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Memory of the machine, or of the control group it runs in where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total


def jetson() -> str:
    """Model and L4T release of a Jetson; empty on anything else."""
    if not JETSON_RELEASE.is_file():
        return ""
    text = JETSON_RELEASE.read_text(errors="replace")
    found = re.search(r"R(\d+).*REVISION:\s*([\d.]+)", text)
    name = "Jetson"
    if JETSON_MODEL.is_file():
        name = JETSON_MODEL.read_text(errors="replace").strip("\0 \n")
    return f"{name}, L4T {found[1]}.{found[2]}" if found else name


def power_mode() -> str:
    """The power mode of a Jetson (``nvpmodel -q``); empty on anything else."""
    if not jetson() or shutil.which("nvpmodel") is None:
        return ""
    said = run_tool("nvpmodel", "-q")
    found = re.search(r"NV Power Mode:\s*(\S+)", said)
    return found[1] if found else " ".join(said.split())


def machine_platform() -> str:
    """Operating system and machine as the manifest has them, such as ``linux-aarch64``."""
    system = "windows" if sys.platform == "win32" else platform.system().lower()
    return f"{system}-{platform.machine().lower()}"


def gpu_names() -> list[str]:
    """Every GPU here, in one line each."""
    return [
        f"{gpu.name} (compute capability {gpu.compute_capability[0]}.{gpu.compute_capability[1]}, "
        f"{gpu.memory_bytes / 1e9:.0f} GB, CUDA {gpu.driver_cuda})"
        for gpu in find_gpus()
    ]


def installed_version(distribution: str) -> str:
    """The version of an installed distribution, empty where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def run_tool(*command: str) -> str:
    """What a command of the system prints; an exception when it fails."""
    return subprocess.run(
        command, capture_output=True, text=True, timeout=20, check=True, stdin=subprocess.DEVNULL
    ).stdout


def _value(look: Callable[[], Any], otherwise: Any) -> Any:
    try:
        return look()
    except Exception:  # a fact that cannot be found out is left empty
        return otherwise
