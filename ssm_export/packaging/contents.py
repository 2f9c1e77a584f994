"""What of a bundle goes to a device: the graphs that can run there, and what they need.

``canonical`` and ``native`` graphs run in every ONNX Runtime and make every engine, the lowering of
the manifest runs fastest in a new ONNX Runtime; they share one weights file. Plugin graphs carry
the kernels of one chip, so only the target's goes. Engines are built on the device. What was
measured elsewhere (``verify``, ``bench``, HTML) stays here: the device writes its own.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ssm_export import errors
from ssm_export.bundle import FORMS, MANIFEST, UNIFIED, Bundle, FileEntry, Manifest
from ssm_export.engines._plugins import PLUGIN, plugin_graph, plugin_lowering
from ssm_export.engines._sources import BUILD_LOWERINGS, NATIVE, native_graph
from ssm_export.errors import SsmExportError
from ssm_export.packaging.archive import Packed
from ssm_export.progress import SILENT, Progress
from ssm_export.targets import Target

_ALWAYS: Final = ("canonical", NATIVE)
_MEASURED_ELSEWHERE: Final = ("verify", "bench", "build")
_OPTIONS: Final = "effective_config.yaml"


@contextmanager
def view_of(bundle: Bundle, target: Target | None = None) -> Iterator[Bundle]:
    """The part of a bundle that goes away, as a temporary bundle of links.

    Graphs that are made for it are written there; the bundle itself is only read.

    Args:
        bundle: the open bundle.
        target: whose plugin graph is kept; none where None.
    """
    manifest = copy.deepcopy(bundle.manifest)
    kept = {*_ALWAYS, str(manifest.lowering["chosen"])}
    manifest.graphs = {
        form: {name: entry for name, entry in manifest.graphs[form].items() if name in kept}
        for form in FORMS
    }
    held = bundle.manifest.graphs.get(UNIFIED, {})
    name = plugin_lowering(target) if target is not None and target.capability else ""
    if name in held:
        manifest.graphs[UNIFIED] = {name: held[name]}
    manifest.packed_weights = {
        name: entry for name, entry in manifest.packed_weights.items() if name in kept
    }
    manifest.engines = ()
    with tempfile.TemporaryDirectory(prefix="ssm-export-") as folder:
        view = Bundle(Path(folder), manifest)
        for entry in _entries(manifest):
            link = view.path / entry.path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(bundle.file(entry).resolve())
        yield view


def add_graphs(
    view: Bundle, target: Target, lowering: str | None, progress: Progress = SILENT
) -> tuple[str, tuple[str, ...]]:
    """Give a view the graphs that its target builds engines from.

    Args:
        view: of :func:`view_of`.
        target: the device.
        lowering: ``native`` or ``plugin``; plugins where they can be had when None.
        progress: gets a bar while kernels are compiled.

    Returns:
        what engines will be built from, and notes for the person who packs.

    Raises:
        SsmExportError: ``BAD_OPTION``, ``MISSING_PACKAGE`` for plugins that are asked for where
            kernels have to be compiled and Triton is not there, and what compiling raises.
    """
    if lowering not in (None, *BUILD_LOWERINGS):
        raise SsmExportError(
            errors.BAD_OPTION,
            f"no engines are built from '{lowering}'",
            where="--lowering",
            fix=f"use {' or '.join(BUILD_LOWERINGS)}",
        )
    for form in FORMS:
        native_graph(view, form)
    possible = target.engines[0] == "tensorrt"
    if lowering == PLUGIN and not possible:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"{target.name} runs {target.engines[0]}, which has no plugins",
            where="--lowering plugin",
            fix="leave --lowering out",
        )
    notes: list[str] = []
    chosen = NATIVE
    if possible and lowering != NATIVE:
        try:
            plugin_graph(view, target, progress)
            chosen = PLUGIN
        except SsmExportError as error:
            if lowering == PLUGIN or error.code is not errors.MISSING_PACKAGE:
                raise
            notes.append(f"no plugins: {error.what}; {error.fix}")
    if chosen == NATIVE:
        view.manifest.graphs.pop(UNIFIED, None)
    return chosen, tuple(notes)


def bundle_files(bundle: Bundle, view: Bundle) -> list[Packed]:
    """The files of a pack's ``bundle/``."""
    packed = [Packed(f"bundle/{MANIFEST}", view.manifest.to_json().encode())]
    packed += [
        Packed(f"bundle/{entry.path}", view.file(entry)) for entry in _entries(view.manifest)
    ]
    others = {_OPTIONS: bundle.path / _OPTIONS}
    for folder in (bundle.path, view.path):  # the view has what compilers said of its kernels
        for file in sorted((folder / "reports").glob("*.json")):
            if not file.name.startswith(_MEASURED_ELSEWHERE):
                others[f"reports/{file.name}"] = file
    known = {file.path for file in packed}
    for path, file in others.items():
        if file.is_file() and f"bundle/{path}" not in known:
            packed.append(Packed(f"bundle/{path}", file))
    return packed


def left_out(bundle: Bundle, view: Bundle) -> tuple[str, ...]:
    """Files of a bundle's manifest that stay here."""
    kept = {entry.path for entry in _entries(view.manifest)}
    engines = [entry.file.path for entry in bundle.manifest.engines]
    here = [entry.path for entry in _entries(bundle.manifest)]
    return tuple(sorted({path for path in here if path not in kept} | set(engines)))


def _entries(manifest: Manifest) -> list[FileEntry]:
    entries = [manifest.weights, *manifest.packed_weights.values(), *manifest.files]
    entries += [entry for graphs in manifest.graphs.values() for entry in graphs.values()]
    entries += [case.file for case in manifest.parity]
    return list({entry.path: entry for entry in entries}.values())
