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
from ssm_export.progress import SILENT, Progress
from ssm_export.resources import load_plugins
from ssm_export.targets import Target

if TYPE_CHECKING:
    import onnx

PLUGIN: Final = "plugin"
"""The lowering that turns scans into plugin nodes; a bundle names it with its chip."""


def plugin_lowering(target: Target) -> str:
    """The name under which a bundle holds the plugin graph of a target's chip: ``plugin-sm87``.

    Raises:
        SsmExportError: ``BAD_OPTION`` for a target that stands for more than one chip.
    """
    if target.capability is None:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"the target {target.name} stands for many GPUs, kernels are compiled for one",
            where="--target",
            fix="ssm-export list targets; take the one of your board or card",
        )
    major, minor = target.capability
    return f"{PLUGIN}-sm{major}{minor}"


def plugin_graph(bundle: Bundle, target: Target, progress: Progress = SILENT) -> Path:
    """The plugin graph of a target's chip; made from the canonical one and stored where missing.

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

    from ssm_export.lowering import lower_for_plugin
    from ssm_export.lowering.bodies import call_key

    load_plugins()
    from ssm_export_plugins import aot, model_calls

    try:
        canonical = ir.load(bundle.graph_path("prefill", "canonical"))
        calls = [(spec, call) for _, spec, call in model_calls.model_calls(canonical)]
        compiled = aot.compile_calls(calls, aot.chip_of(target), progress=progress)
        blobs = {
            call_key(spec.name, call): one.blob
            for (spec, call), one in zip(calls, compiled, strict=True)
        }
        lowered = lower_for_plugin(
            canonical, lambda spec, call: blobs[call_key(spec.name, call)]
        ).model
        graphs[name] = store_graph(bundle, lowered, f"{UNIFIED}.{name}.onnx")
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


def plugin_nodes(model: onnx.ModelProto) -> int:
    """How many nodes of a graph must become plugins."""
    from ssm_export.lowering import PLUGIN_DOMAIN

    return sum(node.domain == PLUGIN_DOMAIN for node in model.graph.node)


def find_library() -> Path | None:
    """The plugin library on this machine, None where it was not built."""
    load_plugins()
    from ssm_export_plugins.library import find_library as find

    found = find()
    return Path(found) if found else None


def require_library() -> Path:
    """The plugin library; ``PLUGIN_LIBRARY`` with what builds it where it is missing."""
    found = find_library()
    if found is None:
        raise SsmExportError(
            errors.PLUGIN_LIBRARY,
            "the plugin library libssm_export_plugins.so is not on this machine",
            fix="build it (plugins/tensorrt/README.md has the command) and set "
            "SSM_EXPORT_PLUGIN_LIBRARY to its path; or build with --lowering native",
        )
    return found
