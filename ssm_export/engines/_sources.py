"""What engines are built from: a graph per form, or one for both where scans are plugins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ssm_export import errors
from ssm_export.bundle import FORMS, UNIFIED, Bundle
from ssm_export.engines import _plugins
from ssm_export.engines._graphs import graph_ports, load_graph, refuse_unbuildable, store_graph
from ssm_export.engines._ports import Port
from ssm_export.engines._trt_profile import Ranges, trtexec_command
from ssm_export.errors import SsmExportError
from ssm_export.progress import SILENT, Progress
from ssm_export.targets import Target

if TYPE_CHECKING:
    import onnx

NATIVE: Final = "native"
BUILD_LOWERINGS: Final = (NATIVE, _plugins.PLUGIN)


@dataclass(frozen=True)
class Source:
    """A graph that becomes one engine.

    Attributes:
        form: ``step``, ``prefill``, or ``unified`` for both.
        lowering: ``native`` or ``plugin-<target>``.
        graph: the ONNX file; its weights are beside it.
        ports: its inputs.
        profiles: one range of sizes per optimization profile, the widest last.
        library: the plugin library, None for a graph of standard operators.
        plugins: how many of its nodes are plugins.
    """

    form: str
    lowering: str
    graph: Path
    ports: tuple[Port, ...]
    profiles: tuple[Ranges, ...]
    library: Path | None = None
    plugins: int = 0

    def shapes(self) -> list[dict[str, list[list[int]]]]:
        """Per profile: input name to its smallest, best and largest shape."""
        return [ranges.shapes(self.ports, f"{self.form} graph") for ranges in self.profiles]

    def command(self, kind: str, output: Path, target: Target) -> str:
        """The command of NVIDIA's own tool that builds the same engine."""
        return trtexec_command(
            kind, self.graph, output, self.shapes(), target.capability, self.library
        )


def sources(
    bundle: Bundle,
    target: Target,
    kind: str,
    lowering: str | None,
    ranges: Ranges,
    version: str | None = None,
    progress: Progress = SILENT,
) -> list[Source]:
    """The graphs to build for a target; what the bundle lacks is made and stored.

    Args:
        bundle: the open bundle.
        target: what is built for.
        kind: ``tensorrt`` or ``tensorrt-rtx``.
        lowering: ``native`` or ``plugin``; when left out, plugins where the engine kind runs them
            and the bundle holds their graph or their library is on this machine.
        ranges: sizes that the engines have to take.
        version: of the engine kind's library, for what its parser reads; None where nothing is
            built, so that neither parser nor plugin library have to be there.
        progress: gets a bar while kernels are compiled.

    Raises:
        SsmExportError: ``BAD_OPTION``, ``PLUGIN_LIBRARY``, ``PLUGIN_IN_GRAPH``, ``LOWERING_FAILED``
            and what compiling kernels raises.
    """
    if _wants_plugins(bundle, target, kind, lowering):
        if version is None:
            return [_planned(bundle, target, ranges)]
        library = _plugins.require_library()
        path = _plugins.plugin_graph(bundle, target, progress)
        return [_unified(target, ranges, path, load_graph(path), library)]
    found = []
    for form in FORMS:
        path = native_graph(bundle, form)
        model = load_graph(path)
        if version is not None:
            refuse_unbuildable(
                model,
                f"{form} graph ({path.name})",
                kind,
                version,
                "export again: the lowering 'native' holds standard operators only",
            )
        found.append(Source(form, NATIVE, path, graph_ports(model)[0], (ranges,)))
    return found


def _planned(bundle: Bundle, target: Target, ranges: Ranges) -> Source:
    """The plugin graph where it is or will be, for a command that is shown: nothing is compiled."""
    path = bundle.path / "onnx" / _plugins.plugin_graph_name(target)
    canonical = load_graph(bundle.graph_path("prefill", "canonical"))
    library = _plugins.library_on(target)
    return _unified(target, ranges, path, canonical, library)


def _unified(
    target: Target, ranges: Ranges, path: Path, model: onnx.ModelProto, library: Path
) -> Source:
    """One engine with a profile for single tokens and one for prompts."""
    return Source(
        UNIFIED,
        _plugins.plugin_lowering(target),
        path,
        graph_ports(model)[0],
        (replace(ranges, time=(1, 1, 1)), ranges),
        library,
        _plugins.plugin_nodes(model),
    )


def _wants_plugins(bundle: Bundle, target: Target, kind: str, lowering: str | None) -> bool:
    if lowering not in (None, *BUILD_LOWERINGS):
        what, fix = f"there are no engines from '{lowering}'", f"use {' or '.join(BUILD_LOWERINGS)}"
    elif lowering == _plugins.PLUGIN and kind != "tensorrt":
        what = f"'{kind}' runs no plugins, its parser ends the process at the first"
        fix = "--lowering native, or --engine tensorrt --target TARGET on the device; "
        fix += "ssm-export list targets has the targets"
    elif lowering is None:
        if kind != "tensorrt" or target.capability is None:
            return False
        # A bundle that was exported for plugins is not quietly built without them.
        held = _plugins.plugin_lowering(target) in bundle.manifest.graphs.get(UNIFIED, {})
        return held or _plugins.find_library() is not None
    else:
        return lowering == _plugins.PLUGIN
    raise SsmExportError(errors.BAD_OPTION, what, where="--lowering", fix=fix)


def native_graph(bundle: Bundle, form: str) -> Path:
    """The ``native`` graph of a form; lowered from the canonical one and stored where missing."""
    graphs = bundle.manifest.graphs[form]
    if NATIVE in graphs:
        return bundle.file(graphs[NATIVE])
    import onnx_ir as ir

    from ssm_export.lowering import lower

    lowered = lower(ir.load(bundle.graph_path(form, "canonical")), NATIVE)
    graphs[NATIVE] = store_graph(bundle, lowered.model, f"{form}.{NATIVE}.onnx")
    bundle.save()
    return bundle.file(graphs[NATIVE])
