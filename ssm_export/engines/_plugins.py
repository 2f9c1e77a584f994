"""Scans as TensorRT plugins: the unified graph of a bundle, and the library that runs its nodes.

The library and the kernels belong to ``ssm_export_plugins``; nothing here needs Triton where the
bundle holds the graph already, so a board builds engines from what a workstation compiled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ssm_export import errors
from ssm_export.bundle import UNIFIED, Bundle, disk_errors, write_atomically
from ssm_export.engines._graphs import store_graph
from ssm_export.errors import SsmExportError
from ssm_export.machine import machine_platform
from ssm_export.progress import SILENT, Progress
from ssm_export.resources import load_plugins
from ssm_export.targets import Target

if TYPE_CHECKING:
    import onnx

PLUGIN: Final = "plugin"
"""The lowering that turns scans into plugin nodes; a bundle names it with its target."""


def plugin_lowering(target: Target) -> str:
    """The name under which a bundle holds the plugin graph of a target: ``plugin-h100``.

    Kernels depend on the number of multiprocessors too, so two boards of one chip have two graphs.

    Raises:
        SsmExportError: ``BAD_OPTION`` for a target that stands for more than one chip.
    """
    target.one_chip()
    return f"{PLUGIN}-{target.name}"


def plugin_graph_name(target: Target) -> str:
    """The file name of a target's plugin graph."""
    return f"{UNIFIED}.{plugin_lowering(target)}.onnx"


def plugin_graph(bundle: Bundle, target: Target, progress: Progress = SILENT) -> Path:
    """The plugin graph of a target; made from the canonical one and stored where missing.

    What the compiler said of every kernel is written to ``reports/kernels-<target>.json``.

    Raises:
        SsmExportError: ``BAD_OPTION``, ``MISSING_PACKAGE`` where kernels have to be compiled and
            Triton is not there, ``KERNEL_UNSUPPORTED``, ``KERNEL_COMPILE_FAILED``, ``DISK_FULL``.
    """
    name = plugin_lowering(target)
    graphs = bundle.manifest.graphs.setdefault(UNIFIED, {})
    if name in graphs:
        return bundle.file(graphs[name])
    import onnx_ir as ir

    from ssm_export.lowering import fuse_calls, lower_for_plugin
    from ssm_export.lowering.bodies import call_key

    load_plugins()
    from ssm_export_plugins import aot, model_calls

    try:
        _check_triton(target, sorted(graphs))
        canonical = ir.load(bundle.graph_path("prefill", "canonical"))
        fuse_calls(canonical)
        calls = [(spec, call) for _, spec, call in model_calls.model_calls(canonical)]
        compiled = aot.compile_calls(calls, aot.chip_of(target), progress=progress)
        blobs = {
            call_key(spec.name, call): one.blob
            for (spec, call), one in zip(calls, compiled, strict=True)
        }
        lowered = lower_for_plugin(
            canonical, lambda spec, call: blobs[call_key(spec.name, call)]
        ).model
        graphs[name] = store_graph(bundle, lowered, plugin_graph_name(target))
    finally:
        if not graphs:
            del bundle.manifest.graphs[UNIFIED]
    reports = bundle.path / "reports"
    with disk_errors(bundle.path):
        reports.mkdir(exist_ok=True)
    found = list({id(one): one.report for one in compiled}.values())
    write_atomically(
        reports / f"kernels-{target.name}.json", json.dumps(found, indent=2, default=str) + "\n"
    )
    bundle.save()
    return bundle.file(graphs[name])


def _check_triton(target: Target, held: list[str]) -> None:
    """Where kernels have to be compiled and cannot be, say which ones the bundle has."""
    from ssm_export_plugins import aot

    try:
        aot.triton_version()
    except SsmExportError as error:
        if held:
            have = ", ".join(name.removeprefix(f"{PLUGIN}-") for name in held)
            error.why = f"the bundle holds kernels for {have} and none for {target.name}"
            error.fix += (
                f"; or make them on a workstation: ssm-export export CHECKPOINT -o BUNDLE "
                f"--lowering plugin --target {target.name}"
            )
        raise


def plugin_nodes(model: onnx.ModelProto) -> int:
    """How many nodes of a graph must become plugins."""
    from ssm_export.lowering import PLUGIN_DOMAIN

    return sum(node.domain == PLUGIN_DOMAIN for node in model.graph.node)


def find_library() -> Path | None:
    """The plugin library on this machine, None where it was not built.

    Raises:
        SsmExportError: ``PLUGIN_LIBRARY`` where ``SSM_EXPORT_PLUGIN_LIBRARY`` names no file.
    """
    load_plugins()
    from ssm_export_plugins.library import find_library as find

    found = find()
    return Path(found) if found else None


def library_on(target: Target) -> Path:
    """The plugin library as a command on a target names it.

    The one here where it could run there too, and else its bare name.
    """
    load_plugins()
    from ssm_export_plugins.library import NAME

    here = target.platform in ("", machine_platform())
    return (find_library() if here else None) or Path(NAME)


def require_library() -> Path:
    """The plugin library, for this machine by its ELF header; it is not loaded.

    Raises:
        SsmExportError: ``PLUGIN_LIBRARY`` with what builds it where there is none, where
            ``SSM_EXPORT_PLUGIN_LIBRARY`` names no file, or one for another architecture.
    """
    found = find_library()
    if found is None:
        raise SsmExportError(
            errors.PLUGIN_LIBRARY,
            "the plugin library libssm_export_plugins.so is not on this machine",
            fix="build it (plugins/tensorrt/README.md has the command) and set "
            "SSM_EXPORT_PLUGIN_LIBRARY to its path; or build with --lowering native",
        )
    from ssm_export_plugins.library import check_library

    check_library(found)
    return found
