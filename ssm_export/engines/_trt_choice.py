"""Which engines of a bundle this machine can run, and the plugin library that they need."""

from __future__ import annotations

import importlib
from typing import Any

from ssm_export import errors
from ssm_export.bundle import UNIFIED, Bundle, EngineEntry, sha256
from ssm_export.engines import _plugins
from ssm_export.engines._trt_build import module_name, require_packages
from ssm_export.errors import SsmExportError
from ssm_export.machine import machine_platform


def choose_engines(
    bundle: Bundle, kind: str, capability: tuple[int, int] | None
) -> dict[str, EngineEntry]:
    """The engine of each form that this machine can run.

    Args:
        bundle: the open bundle.
        kind: ``tensorrt`` or ``tensorrt-rtx``.
        capability: compute capability of the GPU here, None where there is none.

    Raises:
        SsmExportError: ``NO_ENGINE`` when the bundle has none of this kind; otherwise what keeps
            the last one that was looked at from running.
    """
    entries = [entry for entry in bundle.manifest.engines if entry.engine == kind]
    if not entries:
        raise SsmExportError(
            errors.NO_ENGINE,
            f"the bundle has no engine of kind '{kind}'",
            where=str(bundle.path),
            fix=f"ssm-export build {bundle.path} --engine {kind} --target TARGET",
        )
    for entry in entries:
        path = bundle.file(entry.file)
        if path.stat().st_size != entry.file.bytes or sha256(path) != entry.file.sha256:
            raise SsmExportError(
                errors.HASH_MISMATCH,
                f"'{entry.file.path}' is not the engine that was built (its SHA-256 differs)",
                where=str(bundle.path),
                fix=f"ssm-export build {bundle.path} --target {entry.target}",
            )
    require_packages(kind)
    chosen: dict[str, EngineEntry] = {}
    misfit: SsmExportError | None = None
    for entry in entries:
        why = why_not_here(entry, capability)
        if why:
            misfit = mismatch(entry, why)
        elif entry.form not in chosen or "+" not in entry.compute_capability:
            # an engine made for this very GPU is preferred over one for every GPU
            chosen[entry.form] = entry
    if misfit is not None and not chosen:
        raise misfit
    return {UNIFIED: chosen[UNIFIED]} if UNIFIED in chosen else chosen


def load_library(trt: Any) -> None:
    """Let TensorRT's registry load the plugin library, once per process.

    Raises:
        SsmExportError: ``PLUGIN_LIBRARY`` where it is missing or TensorRT does not take it.
    """
    library = _plugins.require_library()
    registry = trt.get_plugin_registry()
    if registry.get_creator("SsdScan", "1", "ssm_export") is not None:
        return
    if registry.load_library(str(library)) is None:
        raise SsmExportError(
            errors.PLUGIN_LIBRARY,
            f"TensorRT {trt.__version__} does not load it; its message is above",
            where=str(library),
            fix="build the library on this machine: plugins/tensorrt/README.md has the command",
        )


def why_not_here(entry: EngineEntry, capability: tuple[int, int] | None) -> str:
    """Why an engine cannot run on this machine; empty when nothing known speaks against it."""
    module = module_name(entry.engine)
    built, here = entry.versions.get(module, "unknown"), _installed(module)
    if built != here:
        return f"it was built with {module} {built}, here is {here}"
    if entry.platform != machine_platform() and entry.engine != "tensorrt-rtx":
        return f"it was built on {entry.platform}, this is {machine_platform()}"
    if capability is None:
        return ""
    wanted = entry.compute_capability
    major, _, minor = wanted.rstrip("+").partition(".")
    needed = (int(major), int(minor))
    if capability == needed or (wanted.endswith("+") and capability >= needed):
        return ""
    have = f"{capability[0]}.{capability[1]}"
    return f"it was built for compute capability {wanted}, this GPU has {have}"


def _installed(module: str) -> str:
    return str(importlib.import_module(module).__version__)


def other_library(entry: EngineEntry) -> str:
    """A hint where the plugin library is another than the engine was built with."""
    library = _plugins.find_library() if entry.library else None
    if library is None or sha256(library) == entry.library:
        return ""
    return f" ({library} is another plugin library than it was built with)"


def mismatch(entry: EngineEntry, why: str) -> SsmExportError:
    return SsmExportError(
        errors.ENGINE_MISMATCH,
        f"this engine cannot run here: {why}",
        where=entry.file.path,
        fix=f"ssm-export build BUNDLE --target {entry.target} --engine {entry.engine}, here",
    )
