"""``package``: one archive with which a device builds, verifies, measures and reports by itself.

The archive holds one folder::

    pack.json           what it is for, and the SHA-256 of every file
    run.sh, check.py    does everything; checks files and machine before anything is installed
    README.txt          what to type
    requirements*.txt   pinned packages; the wheel of this program is in wheels/
    bundle/             graphs, weights, parity vectors
    plugin/             the plugin library and its sources, where the graphs hold plugins
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ssm_export import errors
from ssm_export.bundle import Bundle, disk_errors, refuse_existing
from ssm_export.engines._plugins import PLUGIN
from ssm_export.errors import SsmExportError
from ssm_export.packaging.archive import Packed, write_archive
from ssm_export.packaging.contents import add_graphs, bundle_files, left_out, view_of
from ssm_export.packaging.device_library import DeviceLibrary, device_library
from ssm_export.packaging.wheel import make_wheel, wheel_name
from ssm_export.prediction import Prediction, predict
from ssm_export.progress import SILENT, Progress
from ssm_export.targets import Target, get_target

BOARD: Final = Path(__file__).resolve().parent / "board"
"""What goes into a pack as it is."""
PYTHON: Final = ((3, 10), (3, 13))
"""Oldest and newest Python that the requirements have releases for."""
_ENVIRONMENT_BYTES: Final = 400_000_000
"""What run.sh installs, measured on x86-64 and aarch64: 330 MB without TensorRT-RTX."""
_RTX_BYTES: Final = 300_000_000
_RUNTIME_BYTES: Final = 400_000_000
_COPIES: Final = 3
"""ONNX Runtime packs the weights once for each of two graphs, beside the file's own pages."""


@dataclass(frozen=True)
class PackReport:
    """What was packed.

    Attributes:
        pack: the archive.
        target: what for.
        lowering: what the device builds engines from: ``native`` or ``plugin``.
        bytes, sha256: of the archive.
        parts: name of each part to its bytes.
        left_out: files of the bundle that the target has no use for.
        library: TensorRT release of the compiled plugin library; empty where there is none.
        predicted: memory that the engine and its build take there; marked as a prediction.
        notes: what the device has to do without, or to do itself.
    """

    pack: str
    target: str
    lowering: str
    bytes: int
    sha256: str
    parts: dict[str, int]
    left_out: tuple[str, ...]
    library: str
    predicted: dict[str, Any]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The report as members of a ``package`` document."""
        return asdict(self)


def make_pack(
    bundle: Bundle,
    target: str,
    output: str | os.PathLike[str],
    *,
    lowering: str | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> PackReport:
    """Pack a bundle for a device; the bundle is only read.

    Args:
        bundle: the open bundle, its hashes checked.
        target: a name of ``ssm-export list targets``.
        output: the archive to make, ``.tar``.
        lowering: ``native`` or ``plugin``: what the device builds from; plugins where they can be
            had when None.
        force: pack although the bundle is predicted not to fit into the device's memory.
        progress: shows bars.

    Raises:
        SsmExportError: ``BAD_OPTION``, ``OUTPUT_EXISTS``, ``UNKNOWN_TARGET``,
            ``TOO_LITTLE_MEMORY``, ``MISSING_PACKAGE``, ``KERNEL_UNSUPPORTED``, ``DISK_FULL``.
    """
    archive = _checked(output)
    goal = get_target(target)
    prediction = predict(bundle, goal)
    if prediction.fits is False and not force:
        raise _too_large(prediction)
    top = archive.name.removesuffix(".tar")
    with view_of(bundle, goal) as view:
        built_from, notes = add_graphs(view, goal, lowering, progress)
        made = device_library(goal, progress) if built_from == PLUGIN else DeviceLibrary(())
        if made.note:
            notes += (f"the plugin library is built on the device: {made.note}",)
        files = bundle_files(bundle, view)
        files += [*_board_files(goal), *made.files]
        files.append(Packed(f"wheels/{wheel_name()}", make_wheel()))
        index = _index(top, goal, bundle, built_from, made, prediction, notes)
        with disk_errors(archive.parent):
            archive.parent.mkdir(parents=True, exist_ok=True)
        digest = write_archive(archive, top, index, files, progress)
        return PackReport(
            pack=os.fspath(output),
            target=goal.name,
            lowering=built_from,
            bytes=archive.stat().st_size,
            sha256=digest,
            parts=_parts(files),
            left_out=left_out(bundle, view),
            library=made.tensorrt,
            predicted=prediction.as_json(),
            notes=notes,
        )


def _checked(output: str | os.PathLike[str]) -> Path:
    path = Path(output)
    if path.suffix != ".tar":
        raise SsmExportError(
            errors.BAD_OPTION,
            f"'{path}' does not end in .tar",
            where="-o",
            why="a pack is a plain tar: quantized weights hardly compress",
            fix=f"-o {path.with_suffix('.tar') if path.suffix else f'{path}.tar'}",
        )
    refuse_existing(path)
    return path


def _too_large(prediction: Prediction) -> SsmExportError:
    available = prediction.available_bytes or 0
    return SsmExportError(
        errors.TOO_LITTLE_MEMORY,
        f"predicted: it needs {_memory(prediction) / 1e9:.1f} GB there, "
        f"{prediction.target} has {available / 1e9:.1f} GB for it",
        fix="ssm-export quantize BUNDLE -o SMALLER --recipe w8a16, another --target, or --force",
    )


def _memory(prediction: Prediction) -> int:
    return prediction.weights_bytes + prediction.states_bytes + prediction.workspace_bytes


def _index(
    top: str,
    target: Target,
    bundle: Bundle,
    lowering: str,
    library: DeviceLibrary,
    prediction: Prediction,
    notes: tuple[str, ...],
) -> dict[str, Any]:
    kind = target.engines[0]
    weights = bundle.manifest.weights.bytes
    packed = sum(entry.bytes for entry in bundle.manifest.packed_weights.values())
    # A copy of the bundle where the disk has no links, and an engine of about the weights' size.
    disk = _ENVIRONMENT_BYTES + 2 * weights + packed
    return {
        "name": top,
        "target": target.name,
        "description": target.description,
        "compute_capability": target.compute_capability,
        "platform": target.platform,
        "jetpack": [asdict(release) for release in target.jetpack],
        "engine": kind,
        "lowering": lowering,
        "library": {"file": library.path, "tensorrt": library.tensorrt} if library.path else None,
        "python": PYTHON,
        "needs": {
            "disk_bytes": disk + (_RTX_BYTES if kind == "tensorrt-rtx" else 0),
            "memory_bytes": {
                kind: _memory(prediction),
                "onnxruntime": _RUNTIME_BYTES + _COPIES * max(weights, packed),
            },
        },
        "codes": {
            "changed": errors.PACK_CHANGED.code,
            "device": errors.WRONG_DEVICE.code,
            "memory": errors.TOO_LITTLE_MEMORY.code,
            "tool": errors.MISSING_TOOL.code,
        },
        "notes": notes,
    }


def _board_files(target: Target) -> list[Packed]:
    names = ["run.sh", "check.py", "requirements.txt", "README.txt"]
    if target.engines[0] == "tensorrt-rtx":
        names.append("requirements-rtx.txt")
    return [
        Packed(name, (BOARD / name).read_bytes(), executable=name == "run.sh") for name in names
    ]


def _parts(files: list[Packed]) -> dict[str, int]:
    """Bytes by part, in the words of a person."""
    parts: dict[str, int] = {}
    for file in files:
        size = len(file.source) if isinstance(file.source, bytes) else file.source.stat().st_size
        words = file.path.split("/")
        part = "/".join(words[:2]) if words[0] == "bundle" and len(words) > 2 else words[0]
        part = part if "/" in part or len(words) > 1 else "instructions"
        parts[part] = parts.get(part, 0) + size
    return dict(sorted(parts.items()))
