"""Runtimes that run a bundle, and builders that make engines of it; one interface for all."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import asdict, dataclass
from typing import Any, Final

from ssm_export import errors
from ssm_export.bundle import Bundle
from ssm_export.engines.runner import Arrays, Recurrent, Resident, Runner, RunnerInfo
from ssm_export.errors import SsmExportError

__all__ = [
    "RUNNERS",
    "Arrays",
    "Availability",
    "Recurrent",
    "Resident",
    "Runner",
    "RunnerInfo",
    "available_runners",
    "open_runner",
]

RUNNERS: Final = ("onnxruntime", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx")
"""Names that :func:`open_runner` knows."""


@dataclass(frozen=True)
class Availability:
    """Whether a runner can run on this machine, and what it lacks when it cannot."""

    name: str
    available: bool
    detail: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def open_runner(
    bundle: Bundle | str | os.PathLike[str],
    name: str = "onnxruntime",
    *,
    lowering: str | None = None,
    threads: int | None = None,
    low_memory: bool = False,
    cuda_graph: bool = True,
) -> Runner:
    """Open a bundle in a runtime.

    Args:
        bundle: the open bundle, or its path.
        name: one of :data:`RUNNERS`.
        lowering: which graphs ONNX Runtime runs; the manifest's choice when left out. The TensorRT
            runners run engines, so they take none.
        threads: threads inside an operator on the CPU; one per core when left out.
        low_memory: ONNX Runtime in about the memory of the weights file, slower.
        cuda_graph: TensorRT decodes under a CUDA graph; no other runner has one.

    Raises:
        SsmExportError: ``BAD_OPTION`` for an unknown name or an option that the runner does not
            have, ``MISSING_PACKAGE``, ``MISSING_PROVIDER``, ``NO_ENGINE``, ``ENGINE_MISMATCH``,
            ``HASH_MISMATCH`` or ``NO_GPU``.
    """
    if name not in RUNNERS:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"there is no runner '{name}'",
            where="--runner",
            fix=f"use one of {', '.join(RUNNERS)}",
        )
    if threads is not None and threads < 1:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"threads is {threads}",
            where="--threads",
            fix="give 1 or more, or leave it out for one per core",
        )
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    if name == "onnxruntime-cuda":
        from ssm_export.engines._ort_device import DeviceRunner

        return DeviceRunner(opened, name, lowering=lowering, threads=threads)
    if name == "onnxruntime":
        from ssm_export.engines.onnxruntime import OnnxRuntimeRunner

        return OnnxRuntimeRunner(
            opened, name, lowering=lowering, threads=threads, low_memory=low_memory
        )
    if lowering is not None:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"the runner '{name}' runs the bundle's engines, whose lowering was chosen at build",
            where="--lowering",
            fix="leave --lowering out; ssm-export build BUNDLE --lowering native|plugin",
        )
    from ssm_export.engines._trt_runner import TensorRtRunner

    return TensorRtRunner(opened, name, cuda_graph=cuda_graph)


def available_runners() -> list[Availability]:
    """What each runner says of this machine; a probe that fails is an answer, not an error."""
    return [_probe(name) for name in RUNNERS]


def _probe(name: str) -> Availability:
    try:
        return Availability(name, *_probe_unguarded(name))
    except Exception as error:  # a broken installation can raise anything while it is imported
        return Availability(name, False, f"{type(error).__name__}: {error}")


def _probe_unguarded(name: str) -> tuple[bool, str]:
    if name.startswith("onnxruntime"):
        from ssm_export.engines.onnxruntime import PROVIDERS, installed_providers

        providers = installed_providers()
        if not providers:
            return False, "onnxruntime is not installed"
        if PROVIDERS[name] not in providers:
            return False, f"onnxruntime is installed without {PROVIDERS[name]}"
        if name == "onnxruntime":
            return True, "CPU"
    elif importlib.util.find_spec(name.replace("-", "_")) is None:
        return False, f"{name} is not installed"
    from ssm_export.machine import find_gpus

    gpus = find_gpus()
    if not gpus:
        builds = " (engines can be built)" if name == "tensorrt-rtx" else ""
        return False, f"no NVIDIA GPU{builds}"
    return True, gpus[0].name
