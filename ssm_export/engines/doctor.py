"""``doctor``: what this machine can do with bundles.

Every probe is guarded: one that fails is a line of the report that says so, never an error.
"""

from __future__ import annotations

import ctypes
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module, util
from pathlib import Path
from typing import Any, Final

from ssm_export import machine
from ssm_export.engines import available_runners
from ssm_export.errors import SsmExportError
from ssm_export.machine import gpu_names, installed_version, run_tool

PACKAGES: Final = {
    "numpy": "numpy",
    "onnx": "onnx",
    "onnx-ir": "onnx_ir",
    "onnxscript": "onnxscript",
    "onnxruntime": "onnxruntime",
    "onnxruntime-gpu": "onnxruntime",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
    "polygraphy": "polygraphy",
    "torch": "torch",
    "triton": "triton",
    "safetensors": "safetensors",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "huggingface-hub": "huggingface_hub",
    "click": "click",
    "rich": "rich",
    "PyYAML": "yaml",
}
"""Distribution -> module of every package that some verb uses."""


@dataclass(frozen=True)
class Probe:
    """One line of the report: what was looked at, whether it is there, and what was found."""

    name: str
    group: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class DoctorReport:
    """What was found. ``ok`` says that bundles can be run here, by at least one runner."""

    probes: tuple[Probe, ...]

    @property
    def ok(self) -> bool:
        return any(probe.ok for probe in self.probes if probe.group == "runners")

    def as_json(self) -> dict[str, Any]:
        """The report as members of a ``doctor`` document."""
        return {
            "ok": self.ok,
            "checks": [asdict(probe) for probe in self.probes],
            "machine": machine.machine_facts(),
        }


def examine(*, try_build: bool = True) -> DoctorReport:
    """Look at everything.

    Args:
        try_build: really build a one-layer engine with TensorRT-RTX where it is installed (about
            two seconds).
    """
    probes = [
        _guard("python", "machine", lambda: (sys.version_info >= (3, 10), _python())),
        _guard("system", "machine", lambda: (True, platform.platform())),
        _guard(
            "cpu", "machine", lambda: (True, f"{machine.cpu_name()}, {machine.core_count()} cores")
        ),
        _guard("memory", "machine", lambda: (True, f"{machine.memory_bytes() / 1e9:.1f} GB")),
        _guard("disk", "machine", _disk),
        _guard("gpu", "machine", _gpu),
        _guard("nvidia-smi", "machine", _nvidia_smi),
        _guard(
            "jetson",
            "machine",
            lambda: (bool(machine.jetson()), machine.jetson() or "not a Jetson"),
        ),
    ]
    probes += [_package(name, module) for name, module in PACKAGES.items()]
    probes += _runners()
    probes.append(_guard("plugin library", "builders", _plugin_library))
    if try_build:
        probes.append(_guard("build tensorrt-rtx", "builders", _try_build))
    return DoctorReport(tuple(probes))


def _guard(name: str, group: str, look: Callable[[], tuple[bool, str]]) -> Probe:
    try:
        ok, detail = look()
    except Exception as error:  # a probe's failure is its result
        return Probe(name, group, False, f"{type(error).__name__}: {' '.join(str(error).split())}")
    return Probe(name, group, ok, detail)


def _python() -> str:
    return f"{platform.python_version()} ({sys.executable})"


def _disk() -> tuple[bool, str]:
    usage = shutil.disk_usage(Path.cwd())
    return usage.free > 1e9, f"{usage.free / 1e9:.1f} GB free here"


def _gpu() -> tuple[bool, str]:
    names = gpu_names()
    return bool(names), "; ".join(names) or "no NVIDIA GPU, or its driver does not run"


def _nvidia_smi() -> tuple[bool, str]:
    if shutil.which("nvidia-smi") is None:
        return False, "not there"
    said = run_tool("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return True, "; ".join(said.strip().splitlines())


def _package(distribution: str, module: str) -> Probe:
    def look() -> tuple[bool, str]:
        version = installed_version(distribution)
        # A module without metadata counts (TensorRT on a Jetson), except the one that two
        # distributions give.
        if not version and (distribution == "onnxruntime-gpu" or util.find_spec(module) is None):
            return False, "not installed"
        imported = import_module(module)
        return True, version or str(getattr(imported, "__version__", "no version"))

    return _guard(distribution, "packages", look)


def _runners() -> list[Probe]:
    try:
        return [
            Probe(runner.name, "runners", runner.available, runner.detail)
            for runner in available_runners()
        ]
    except Exception as error:  # as in _guard
        return [Probe("runners", "runners", False, f"{type(error).__name__}: {error}")]


def _plugin_library() -> tuple[bool, str]:
    """The library that runs scans inside TensorRT; the dynamic linker has to take it too."""
    from ssm_export.engines._plugins import find_library, require_library

    try:
        if find_library() is None:
            return False, "not built; plugins/tensorrt/README.md has the command"
        path = require_library()
    except SsmExportError as error:
        return False, str(error)
    ctypes.CDLL(str(path))
    from ssm_export_plugins.library import architecture, tensorrt_version

    release = tensorrt_version(path)
    made = f"built for TensorRT {release}" if release else "it does not say for which TensorRT"
    return True, f"{path} ({architecture(path)}, {made})"


def _try_build() -> tuple[bool, str]:
    """Build an engine of one layer with TensorRT-RTX, in a child process."""
    from onnx import TensorProto, helper, save_model

    from ssm_export.engines._trt_build import BuildRequest, build_in_child, require_packages
    from ssm_export.progress import SILENT

    require_packages("tensorrt-rtx")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "probe",
        [value("x", TensorProto.FLOAT, [1, 4])],
        [value("y", TensorProto.FLOAT, [1, 4])],
    )
    opsets = [helper.make_opsetid("", 20)]
    with tempfile.TemporaryDirectory() as folder:
        onnx_file, engine_file = Path(folder) / "probe.onnx", Path(folder) / "probe.engine"
        save_model(helper.make_model(graph, opset_imports=opsets, ir_version=10), onnx_file)
        shapes = [{"x": [[1, 4]] * 3}]
        request = BuildRequest("tensorrt-rtx", onnx_file, engine_file, shapes, None)
        built = build_in_child(request, "probe engine", SILENT)
        size = engine_file.stat().st_size
    return True, f"built a one-layer engine with {built.version} ({size / 1e3:.0f} kB)"
