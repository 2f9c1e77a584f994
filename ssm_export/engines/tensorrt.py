"""TensorRT and TensorRT-RTX: engines from a bundle's ``native`` or ``plugin`` graphs.

One engine per form, or one for both where scans are plugins; a child process builds it
(:mod:`ssm_export.engines._trt_worker`). Types are written in the graph, so every network is
strongly typed. The weights file is read by the parser from beside the graph. What runs an engine
is in :mod:`ssm_export.engines._trt_runner`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from ssm_export import errors
from ssm_export.bundle import (
    Bundle,
    EngineEntry,
    FileEntry,
    disk_errors,
    sha256,
    write_atomically,
)
from ssm_export.device_formats import refuse_formats
from ssm_export.engines._graphs import check_states
from ssm_export.engines._sources import Source, sources
from ssm_export.engines._trt_build import (
    BuildRequest,
    Built,
    build_in_child,
    module_name,
    require_packages,
)
from ssm_export.engines._trt_profile import Ranges
from ssm_export.errors import SsmExportError
from ssm_export.machine import find_gpus, installed_version, machine_platform
from ssm_export.progress import SILENT, Progress
from ssm_export.targets import ENGINE_KINDS, Target, get_target

FROM_AMPERE: Final = "8.6+"
"""Compute capability of an engine that TensorRT-RTX built for no GPU in particular: RTX cards of
the Ampere generation and later. Older releases of its documentation count 8.0 in, newer ones do
not."""

BUILT_ONLY: Final = "built, not run: no GPU"


@dataclass(frozen=True)
class BuildReport:
    """The engines that were built; iterates over their entries of the manifest.

    Attributes:
        target, engine: what they were built for, and the engine kind.
        engines: one entry per form.
        warnings: what the parser and the builder warned of, by form.
        seconds: wall time of each build, by form.
        commands: the equivalent command of NVIDIA's own tool, by form.
    """

    target: str
    engine: str
    engines: tuple[EngineEntry, ...]
    warnings: dict[str, tuple[str, ...]]
    seconds: dict[str, float]
    commands: dict[str, str]

    def __iter__(self) -> Iterator[EngineEntry]:
        return iter(self.engines)

    def __len__(self) -> int:
        return len(self.engines)

    def as_json(self) -> dict[str, Any]:
        """The report as members of a ``build`` document."""
        return asdict(self)


def build(
    bundle: Bundle | str | os.PathLike[str],
    target: str | Target = "rtx-any",
    engine: str | None = None,
    *,
    lowering: str | None = None,
    max_batch: int = 8,
    opt_batch: int = 1,
    max_chunk: int = 1024,
    opt_chunk: int | None = None,
    progress: Progress = SILENT,
) -> BuildReport:
    """Build the engines of both forms and enter them in the manifest.

    A bundle that lacks the graphs of a lowering gets them first, from its canonical graphs.
    Engines are written to ``engines/<target>/<form>.engine`` under a temporary name and take their
    place, and their lines in the manifest, when all are there.

    Args:
        bundle: the open bundle, or its path.
        target: the target, or its name.
        engine: ``tensorrt-rtx`` or ``tensorrt``; the target's first kind when left out.
        lowering: ``native``, or ``plugin`` (``tensorrt`` only): scans as nodes of our library, and
            one engine for both forms. Plugins where they can be had when left out.
        max_batch, opt_batch: largest batch, and the one to tune for.
        max_chunk, opt_chunk: longest piece of a prompt that is fed at once, and the length to tune
            for (512, or the longest). States carry over, so this bounds memory and not prompts.
        progress: gets a bar per form.

    Raises:
        SsmExportError: ``BAD_OPTION``, ``UNKNOWN_TARGET``, ``MISSING_PACKAGE``, ``NO_GPU``
            (``tensorrt`` builds only where the engine will run), ``UNSUPPORTED_SCHEME`` for a
            quantized bundle that the target cannot compute with, ``PLUGIN_IN_GRAPH``,
            ``PLUGIN_LIBRARY``, ``LOWERING_FAILED``, ``ENGINE_BUILD_FAILED``, ``DISK_FULL``.
    """
    ranges = Ranges.checked(max_batch, opt_batch, max_chunk, opt_chunk)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    goal = target if isinstance(target, Target) else get_target(target)
    kind = engine or goal.engines[0]
    _check_kind(kind, goal, opened)
    _check_formats(kind, goal, opened)
    gpus = [gpu.compute_capability for gpu in find_gpus()]
    if kind == "tensorrt":
        # What is to be done elsewhere is said before what would be missing here.
        _check_gpu(goal, gpus)
    require_packages(kind)
    version = installed_version(_distribution(kind))

    found = sources(opened, goal, kind, lowering, ranges, version, progress)

    folder = opened.path / "engines" / goal.name
    entries, warnings, seconds = [], {}, {}
    finished: dict[Path, Path] = {}
    try:
        with disk_errors(opened.path):
            folder.mkdir(parents=True, exist_ok=True)
            for source in found:
                form = source.form
                final = folder / _file_name(form, kind, goal)
                partial = final.with_name(f".{final.name}.{os.getpid()}.part")
                finished[partial] = final
                request = BuildRequest(
                    engine=kind,
                    onnx=source.graph,
                    output=partial,
                    profiles=source.shapes(),
                    capability=goal.capability if kind == "tensorrt-rtx" else None,
                    has_gpu=_can_load(goal, gpus),
                    library=source.library,
                    plugins=source.plugins,
                )
                began = time.perf_counter()
                built = build_in_child(request, f"{form} engine for {goal.name}", progress)
                seconds[form] = round(time.perf_counter() - began, 3)
                warnings[form] = built.warnings
                _check_built(opened, built, form)
                entries.append(_entry(opened, partial, final, source, goal, kind, built))
            for partial, final in finished.items():
                os.replace(partial, final)
    finally:
        for partial in finished:
            partial.unlink(missing_ok=True)
        _remove_empty(folder, opened.path)
    report = BuildReport(
        target=goal.name,
        engine=kind,
        engines=tuple(entries),
        warnings=warnings,
        seconds=seconds,
        commands=_commands(opened, goal, kind, found),
    )
    _enter(opened, report)
    return report


def trtexec_commands(
    bundle: Bundle,
    target: str | Target = "rtx-any",
    engine: str | None = None,
    *,
    lowering: str | None = None,
    max_batch: int = 8,
    opt_batch: int = 1,
    max_chunk: int = 1024,
    opt_chunk: int | None = None,
) -> dict[str, str]:
    """The command of NVIDIA's own tool (``trtexec`` or ``tensorrt_rtx``) that builds each form.

    Nothing is built; a bundle that lacks the graphs of the lowering gets them.
    """
    ranges = Ranges.checked(max_batch, opt_batch, max_chunk, opt_chunk)
    goal = target if isinstance(target, Target) else get_target(target)
    kind = engine or goal.engines[0]
    _check_kind(kind, goal, bundle)
    _check_formats(kind, goal, bundle)
    return _commands(bundle, goal, kind, sources(bundle, goal, kind, lowering, ranges))


def mark_ran(bundle: Bundle, engine: EngineEntry, device: str) -> None:
    """Note in the manifest that an engine was run, and where; verify does so when it passes."""
    bundle.manifest.engines = tuple(
        replace(entry, ran=True, note=f"run on {device}") if entry == engine else entry
        for entry in bundle.manifest.engines
    )
    bundle.save()


def _distribution(kind: str) -> str:
    """The installed distribution that gives an engine kind's module."""
    owners = metadata.packages_distributions().get(module_name(kind)) or [kind]
    return owners[0]


def _check_kind(kind: str, target: Target, bundle: Bundle) -> None:
    if kind not in ENGINE_KINDS:
        what, fix = f"there is no engine kind '{kind}'", f"use one of {', '.join(ENGINE_KINDS)}"
    elif kind not in target.engines:
        what = f"'{kind}' does not build for {target.name} ({target.compute_capability})"
        fix = f"use --engine {target.engines[0]}, or another --target"
    elif bundle.manifest.precision not in target.precisions:
        what = f"{target.name} has no {bundle.manifest.precision}"
        fix = f"export with --precision {target.precisions[-1]}"
    else:
        return
    raise SsmExportError(errors.BAD_OPTION, what, where="--engine", fix=fix)


def _check_formats(kind: str, target: Target, bundle: Bundle) -> None:
    """Refuse a quantized bundle whose number formats the target does not have."""
    said = bundle.manifest.quantization
    weights = said.get("weights", {}).values()
    inputs = said.get("activations", {}).values()
    refuse_formats(
        (entry["scheme"] for entry in (*weights, *inputs)),
        (entry["block"] for entry in weights if entry["scheme"] == "int4"),
        target,
        kind,
        str(bundle.path),
    )


def _check_gpu(target: Target, gpus: list[tuple[int, int]]) -> None:
    """TensorRT measures kernels while it builds, so it builds on the GPU that will run them."""
    if not gpus:
        raise SsmExportError(
            errors.NO_GPU,
            f"there is no GPU here, and TensorRT builds engines for {target.name} on that device",
            fix=f"copy the bundle there and run ssm-export build BUNDLE --target {target.name}",
        )
    if target.capability is not None and gpus[0] != target.capability:
        here = f"{gpus[0][0]}.{gpus[0][1]}"
        raise SsmExportError(
            errors.BAD_OPTION,
            f"{target.name} has capability {target.compute_capability}, the GPU here {here}",
            where="--target",
            fix="ssm-export list targets; build on the device that will run the engine",
        )


def _can_load(target: Target, gpus: list[tuple[int, int]]) -> bool:
    return bool(gpus) and (target.capability is None or gpus[0] == target.capability)


def _file_name(form: str, kind: str, target: Target) -> str:
    """A kind that is not the target's default has its name in the file's."""
    return f"{form}.engine" if kind == target.engines[0] else f"{form}.{kind}.engine"


def _check_built(bundle: Bundle, built: Built, form: str) -> None:
    check_states(bundle.manifest, built.inputs, built.outputs, f"{form} engine")
    if built.loads is False:
        raise SsmExportError(
            errors.ENGINE_BUILD_FAILED,
            "the engine was built, and the runtime here does not load it",
            where=f"{form} engine",
            fix="ssm-export doctor shows the GPU and the versions; build for this GPU's target",
        )


def _entry(
    bundle: Bundle,
    partial: Path,
    final: Path,
    source: Source,
    target: Target,
    kind: str,
    built: Built,
) -> EngineEntry:
    measured = bundle.entry(partial.relative_to(bundle.path).as_posix())
    relative = final.relative_to(bundle.path).as_posix()
    capability = FROM_AMPERE if target.capability is None else target.compute_capability
    return EngineEntry(
        form=source.form,
        target=target.name,
        engine=kind,
        file=FileEntry(relative, measured.bytes, measured.sha256),
        versions={
            module_name(kind): built.version,
            "onnx": installed_version("onnx"),
            "polygraphy": installed_version("polygraphy"),
        },
        platform=machine_platform(),
        compute_capability=capability,
        profile=source.profiles[-1].of(source.ports),
        ran=False,
        note=BUILT_ONLY if built.loads is None else "built and loaded, not run",
        lowering=source.lowering,
        library=sha256(source.library) if source.library else "",
    )


def _enter(bundle: Bundle, report: BuildReport) -> None:
    """Put the entries in the place of older ones of the same files, and save."""
    replaced = {entry.file.path for entry in report.engines}
    kept = tuple(entry for entry in bundle.manifest.engines if entry.file.path not in replaced)
    bundle.manifest.engines = kept + report.engines
    reports = bundle.path / "reports"
    with disk_errors(bundle.path):
        reports.mkdir(exist_ok=True)
    write_atomically(
        reports / f"build-{report.target}-{report.engine}.json",
        json.dumps(report.as_json(), indent=2) + "\n",
    )
    bundle.save()


def _remove_empty(folder: Path, stop: Path) -> None:
    while folder != stop and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _commands(bundle: Bundle, target: Target, kind: str, found: list[Source]) -> dict[str, str]:
    folder = bundle.path / "engines" / target.name
    return {
        source.form: source.command(kind, folder / _file_name(source.form, kind, target), target)
        for source in found
    }
